from __future__ import annotations

import math

import pytest

from haljax.campaign import Limits, Progress, why_stop

SO_FAR = Progress(labels=10, iterations=4, scores=(0.9, 0.3, 0.1, 0.05), wall_s=60.0)


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (Limits(), None),
        (Limits(max_labels=11, max_iterations=5, tolerance=0.05, patience=1, max_wall_s=61.0), None),
        (Limits(max_labels=10), "10 labels done (max_labels = 10)"),
        (Limits(max_labels=9), "10 labels done (max_labels = 9)"),
        (Limits(max_iterations=4), "4 iterations done (max_iterations = 4)"),
        (Limits(max_wall_s=60.0), "60 s of wall time used (max_wall_s = 60)"),
        (
            Limits(tolerance=0.2, patience=2),
            "converged: the criterion was below 0.2 in the last 2 iterations",
        ),
        (Limits(tolerance=0.2, patience=3), None),  # 0.3 is among the last three
        (Limits(tolerance=1.0, patience=5), None),  # only four iterations yet
        (
            Limits(tolerance=1.0, patience=4, max_labels=1),
            "converged: the criterion was below 1 in the last 4 iterations",
        ),
    ],
)
def test_reason(limits, reason):
    assert why_stop(limits, SO_FAR) == reason


def test_nan_is_not_converged():
    assert why_stop(Limits(tolerance=1.0, patience=2), SO_FAR._replace(scores=(0.1, math.nan))) is None


def test_a_campaign_whose_boldest_exploration_finds_nothing_ends_without_any_limit():
    assert why_stop(Limits(patience=3), SO_FAR._replace(idle=2)) is None
    reason = "nothing left to find: the boldest exploration found nothing in the last 3 iterations"
    assert why_stop(Limits(patience=3), SO_FAR._replace(idle=3)) == reason


@pytest.mark.parametrize("bad", [{"max_labels": 0}, {"tolerance": math.nan}, {"patience": -1}, {"max_wall_s": -1.0}])
def test_senseless_limits(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Limits(**bad)
