"""Groups of rows left out in closed form, against fits without them; and which structures make a group."""

import numpy as np
import pytest

from haljax.bayes.leave_out import groups_of, left_out_residual, left_out_variance


@pytest.mark.parametrize("size", [1, 4, 8, 9, 20])  # rows left out of 40, of 8 coefficients: fewer, as many, more
def test_residuals_and_variances_are_those_of_a_fit_without_the_group(size):
    rng = np.random.default_rng(size)
    noise, prior = 0.3, np.logspace(-1, 1, 8)
    X = rng.normal(size=(40, 8))
    y = X @ rng.normal(size=8) + noise * rng.normal(size=40)

    def posterior(rows, targets):
        precision = rows.T @ rows / noise**2 + np.diag(1 / prior**2)
        covariance = np.linalg.inv(precision)
        return covariance @ rows.T @ targets / noise**2, covariance

    mean, covariance = posterior(X, y)
    group = rng.permutation(40)[:size]
    others = np.setdiff1d(np.arange(40), group)
    without, wider = posterior(X[others], y[others])
    factor = np.linalg.cholesky(covariance)
    whitened = X[group] @ factor / noise
    residual = left_out_residual(whitened, (y - X @ mean)[group] / noise)
    variance = left_out_variance(whitened)
    # The closed form regularises by 1e-9.
    np.testing.assert_allclose(noise * residual, (y - X @ without)[group], rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(noise**2 * variance, np.einsum("rk,kl,rl->r", X[group], wider, X[group]), rtol=1e-6)


@pytest.mark.parametrize("size", [2, 6])  # at most as many rows as coefficients, and more
def test_a_direction_that_one_group_alone_determines_is_unknown_without_it(size):
    """Its whitened rows have length 1: rounding may make it more, and the variance is very large, never negative."""
    whitened = np.zeros((size, 4))
    whitened[:, 0], whitened[0, 1] = 1 / np.sqrt(size), 0.1
    residual, variance = left_out_residual(whitened, np.full(size, 1e-3)), left_out_variance(whitened)
    assert np.isfinite(residual).all() and np.all(variance > 1e6)


def test_groups_are_names_and_near_copies():
    """Five points a unit or more apart, a copy of the third at 0.01, and names that join the first and the fourth."""
    points = np.array([[0.0, 0], [1, 0], [0, 1], [1.2, 1.3], [2, 0], [0, 1.01]])
    groups = groups_of(["a", None, None, "a", None, None], points)
    assert groups[0] == groups[3] and groups[2] == groups[5]
    assert len(set(groups)) == 4
    # Numbered from 0 without gaps, as they are counted.
    assert set(groups) == set(range(4))
    # A name joins copies of its members to it, and so do names whose members are copies of each other.
    assert len(set(groups_of(["a", None, "b", "a", None, "a"], points))) == 3
    assert groups_of([None, None, "b", "a", None, "a"], points).tolist() == [0, 1, 2, 2, 3, 2]
    # All apart.
    assert len(set(groups_of([None] * 5, points[:5]))) == 5


def test_two_structures_have_no_median_distance_to_be_near_by():
    assert groups_of([None, None], np.zeros((2, 3))).tolist() == [0, 1]
    assert groups_of(["x", "x"], np.zeros((2, 3))).tolist() == [0, 0]
