import jax
import numpy as np
import pytest

from haljax.free_energy.criteria import fill
from haljax.free_energy.data import empty
from haljax.free_energy.mean_field import exact_labels, mean_field
from haljax.free_energy.weighting import improvement, reweight, shares

from .half_cube import DOMAIN, PATTERNS, ZIGZAG, ordering


def test_improvement_is_the_fall_of_the_standardised_error():
    labels = exact_labels(ZIGZAG, fill(jax.random.key(0), DOMAIN, 30), 300.0)
    off = mean_field(lambda eta: ordering(eta) + 0.01 * eta[0], PATTERNS)  # mu_0 off by 0.01 eV everywhere
    expected = 0.01**2 / np.mean(labels.mu[:, 0] ** 2) / 7
    np.testing.assert_allclose(improvement(off, ZIGZAG, labels, 300.0), expected, rtol=1e-10)
    np.testing.assert_allclose(improvement(ZIGZAG, off, labels, 300.0), -expected, rtol=1e-10)
    assert np.isnan(improvement(off, ZIGZAG, empty(7), 300.0))


def test_weights_follow_improvements_and_average_one():
    weights = dict(a=1.0, b=1.0, c=1.0, d=1.0)
    new = reweight(weights, dict(a=3e-6, b=1e-6, c=-2e-6, d=np.nan), strength=0.5)
    raw = np.array([1 + 0.75, 1 + 0.25, 1 - 0.5])
    np.testing.assert_allclose([new[k] for k in "abc"], raw * 3 / raw.sum(), rtol=1e-12)
    assert new["d"] == 1.0 and np.isclose(np.mean(list(new.values())), 1)
    scaled = reweight(weights, dict(a=3.0, b=1.0, c=-2.0), strength=0.5)  # no unit of energy enters
    assert all(np.isclose(scaled[k], new[k]) for k in "abc")


def test_weights_are_clipped_at_zero_and_can_come_back():
    new = reweight(dict(a=1.0, b=1.0), dict(a=1.0, b=-1.0), strength=2)
    assert new == dict(a=2.0, b=0.0)
    assert reweight(new, dict(b=1.0, a=0.0), strength=2)["b"] > 0
    assert reweight(dict(a=1.0, b=1.0), dict(a=-1.0, b=-1.0), strength=5) == dict(a=1.0, b=1.0)
    assert reweight(dict(a=0.5, b=1.5), {}) == dict(a=0.5, b=1.5)
    assert reweight(dict(a=0.5, b=1.5), dict(a=0.0)) == dict(a=0.5, b=1.5)


def test_shares_keep_the_total_and_do_not_compound():
    counts = dict(a=100, b=50, c=10, off=0)
    assert shares(counts, {}) == counts
    once = shares(counts, dict(a=0.5, b=2.0, c=1.0))
    assert sum(once.values()) == 160 and once["off"] == 0
    assert once == shares(counts, dict(a=0.5, b=2.0, c=1.0))  # the same weights another round: the same counts
    assert once["b"] > 95 and once["a"] < 53
    assert shares(counts, dict(a=0.0, b=1.0, c=1.0))["a"] == 1
    assert sum(shares(counts, dict(a=0.0, b=0.0, c=0.0)).values()) == 160
    assert sum(shares(dict(a=1, b=1, c=1), dict(a=3.0)).values()) == 3
    assert shares(dict(a=0), {}) == dict(a=0)


def test_bad_weights():
    with pytest.raises(ValueError, match="weight of a is -1"):
        reweight(dict(a=-1.0), dict(a=1.0))
    with pytest.raises(ValueError, match="b has an improvement but no weight"):
        reweight(dict(a=1.0), dict(b=1.0))
