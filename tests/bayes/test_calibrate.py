from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from haljax.bayes import calibration, coverage

N = 20_000
RNG = np.random.default_rng(0)
SIGMAS = RNG.uniform(0.1, 3, N)
RESIDUALS = SIGMAS * RNG.normal(size=N)


@pytest.mark.parametrize("factor", [0.2, 1.0, 4.0])
def test_the_scale_of_gaussian_errors_is_found(factor):
    # standard error of the estimate: factor / sqrt(2 N) = 0.5 %; five of them
    assert calibration(factor * RESIDUALS, SIGMAS) == pytest.approx(factor, rel=0.025)


def test_it_is_the_maximum_likelihood_scale():
    best = calibration(RESIDUALS, 2 * SIGMAS)
    scales = [2 * SIGMAS * best * s for s in (0.999, 1, 1.001)]
    likelihood = [scipy.stats.norm.logpdf(RESIDUALS, scale=scale).sum() for scale in scales]
    assert likelihood[1] > max(likelihood[0], likelihood[2])


@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_coverage_of_gaussian_errors(factor):
    levels = (0.5, 0.68, 0.9, 0.95)
    expected = 2 * scipy.stats.norm.cdf(scipy.stats.norm.ppf((1 + np.array(levels)) / 2) / factor) - 1
    # five binomial standard errors, at most sqrt(0.25/N) = 0.0035
    np.testing.assert_allclose(coverage(factor * RESIDUALS, SIGMAS), expected, atol=0.018)


def test_coverage_of_given_levels():
    inside = coverage(np.array([0.0, 1.0, -1.5, 9.0]), np.ones(4), [0.6, 0.7, 0.9])
    np.testing.assert_array_equal(inside, [0.25, 0.5, 0.75])


@pytest.mark.parametrize("function", [calibration, coverage])
@pytest.mark.parametrize(
    "residuals, sigmas, message",
    [
        ([1.0, 2.0], [1.0, 0.0], "1 of 2 items.* index 1,"),
        ([1.0, np.nan], [1.0, 1.0], "1 of 2 items.* index 1,"),
        ([1.0, 2.0], [1.0], "one shape"),
        ([], [], "n > 0"),
    ],
)
def test_what_cannot_be_judged_is_refused(function, residuals, sigmas, message):
    with pytest.raises(ValueError, match=message):
        function(np.array(residuals), np.array(sigmas))


def test_levels_are_probabilities():
    with pytest.raises(ValueError, match="between 0 and 1"):
        coverage(RESIDUALS, SIGMAS, [0.5, 95.0])
