"""Levels of exploration: their order and limits, and how a campaign moves between them."""

import pytest

from haljax.config import Dynamics, Ramp
from haljax.hal.boldness import STEPS, Boldness, emboldened, found_by, levels, next_level


def dynamics(**changes):
    return Dynamics(**{"temperature_K": 600.0, "tau_rel": 0.1, "n_steps": 1000} | changes)


def test_levels_grow_one_factor_at_a_time_up_to_the_limits():
    found = levels(dynamics(bolder={"tau_rel": 4.0, "temperature": 3.0, "n_steps": 1.5}))
    assert found[0] == Boldness() and [b.level for b in found] == list(range(len(found)))
    assert found[-1][1:] == pytest.approx((3.0, 4.0, 1.5))
    for a, b in zip(found, found[1:], strict=False):
        grown = [name for name in STEPS if getattr(b, name) != getattr(a, name)]
        assert len(grown) == 1 and 1 < getattr(b, *grown) / getattr(a, *grown) <= STEPS[grown[0]] * (1 + 1e-12)
    order = [next(n for n in STEPS if getattr(b, n) != getattr(a, n)) for a, b in zip(found, found[1:], strict=False)]
    assert sorted(order, key=list(STEPS).index) == order


def test_a_factor_of_one_and_a_bias_of_zero_leave_no_level():
    assert levels(dynamics(bolder={"tau_rel": 1.0, "temperature": 1.0, "n_steps": 1.0})) == [Boldness()]
    unbiased = levels(dynamics(tau_rel=[0.0, 0.0]))
    assert len(unbiased) > 1 and all(b.tau_rel == 1 for b in unbiased)
    ramp = dynamics(tau_rel=[0.0, {"from": 0.0, "to": 0.1}], bolder={"tau_rel": 2.0})
    assert any(b.tau_rel == 2 for b in levels(ramp))


def test_emboldened_dynamics():
    given = dynamics(temperature_K=[300, {"from": 600, "to": 1200}], tau_rel={"from": 0, "to": 0.2}, tolerance=0.3)
    assert emboldened(given, Boldness()) == given
    bold = emboldened(given, Boldness(5, 1.5, 4.0, 2.5))
    assert bold.tau_rel == Ramp(0.0, 0.8) and bold.temperature_K == (450.0, Ramp(900.0, 1800.0))
    assert bold.n_steps == 2500 and bold.tolerance == 0.3
    # What a start structure sets is multiplied too.
    assert emboldened(given.overridden({"hal_tau_rel": 0.5}), Boldness(1, tau_rel=2.0)).tau_rel == 1.0


def test_temperatures_stay_far_below_the_guard():
    """Instantaneous ones fluctuate, and a guard that strikes because of them would count as found."""
    bold = Boldness(3, temperature=2.0)
    given = dynamics(temperature_K=[900, 1400, {"from": 300, "to": 1900}], max_temperature_K=3000.0)
    assert emboldened(given, bold).temperature_K == (1500.0, 1500.0, Ramp(600.0, 1900.0))


def request(found, replicas=8, level=None):
    statuses = ["uncertain"] * found + ["finished"] * (replicas - found)
    new = {} if level is None else {"found": found, "boldness": Boldness(level)._asdict()}
    return {"replicas": [{"status": status} for status in statuses], **new}


@pytest.mark.parametrize(
    ("last", "level"),
    [
        (None, 0),
        (request(0, level=0), 1),
        (request(0, level=2), 3),
        (request(0, level=3), 3),  # the top
        (request(0, level=7), 3),  # the limits were lowered
        (request(1, level=2), 2),
        (request(3, level=2), 2),
        (request(4, level=2), 1),
        (request(8, level=0), 0),
        (request(0), 1),  # of an older version
        (request(2), 0),
    ],
)
def test_next_level(last, level):
    assert next_level(last, top=3) == level


def test_what_an_older_request_found():
    assert found_by(request(3)) == found_by(request(3, level=1)) == 3
