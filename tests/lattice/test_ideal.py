from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import gammaln, logsumexp

from haljax.lattice import zigzag
from haljax.lattice.expansion import load_expansion
from haljax.lattice.ideal import checked, fields, fractions, negentropy

from .crystals import LIXCOO2

ZIGZAG = np.array(zigzag(load_expansion(LIXCOO2).lattice).patterns, float)
SQUARE = np.array([[1.0, a, b] for a in (1, -1) for b in (1, -1)]).T  # four sublattices, their checkerboard left free
WEIGHTS = np.array([[1.0, 1, 1, 1, 1], [2, -1, -1, 0, 1]])
EVERY = pytest.mark.parametrize("patterns", [ZIGZAG, SQUARE, WEIGHTS, np.ones((1, 3))])


def points(patterns, n=20, seed=0):
    """Order parameters (n, d) of random sublattices, so that order beyond them is there too."""
    x = np.random.default_rng(seed).uniform(0.02, 0.98, (n, patterns.shape[1]))
    return x @ patterns.T / patterns.shape[1]


@EVERY
def test_no_other_fractions_have_more_entropy(patterns):
    n_s = patterns.shape[1]
    for eta in points(patterns, 4):
        held = {
            "type": "eq",
            "fun": partial(lambda eta, x: patterns @ x / n_s - eta, eta),
            "jac": lambda x: patterns / n_s,
        }
        found = minimize(
            lambda x: np.mean(x * np.log(x) + (1 - x) * np.log(1 - x)),
            np.full(n_s, 0.5),
            jac=lambda x: np.log(x / (1 - x)) / n_s,
            bounds=[(1e-9, 1 - 1e-9)] * n_s,
            constraints=held,
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 500},
        )
        np.testing.assert_allclose(negentropy(patterns, eta), found.fun, atol=1e-9)  # SLSQP's constraint
        np.testing.assert_allclose(fractions(patterns, eta), found.x, atol=1e-4)  # a flat minimum
        np.testing.assert_allclose(patterns @ fractions(patterns, eta) / n_s, eta, atol=1e-14)


def test_it_counts_states():
    """All ways to fill four sublattices of n sites at one eta; only the checkerboard can vary."""
    n, filled = 10**6, np.array([700_000, 200_000, 450_000, 120_000])
    checkerboard = np.array([1, -1, -1, 1])
    width = min(filled.min(), (n - filled).min()) - 1
    numbers = filled + checkerboard * np.arange(-width, width + 1)[:, None]
    ways = logsumexp((gammaln(n + 1) - gammaln(numbers + 1) - gammaln(n - numbers + 1)).sum(axis=1))
    x = np.asarray(fractions(SQUARE, SQUARE @ filled / n / 4))
    room = n * x * (1 - x)  # Stirling's formula, and the Gaussian sum over the checkerboard
    ways += 0.5 * np.log(2 * np.pi * room).sum() - 0.5 * np.log(2 * np.pi / np.sum(1 / room))
    np.testing.assert_allclose(negentropy(SQUARE, SQUARE @ filled / n / 4), -ways / n / 4, atol=1e-11)


def test_with_as_many_order_parameters_as_sublattices_it_is_explicit():
    patterns = np.vstack([SQUARE, [1, -1, -1, 1]])
    x = np.array([0.7, 0.2, 1e-9, 0.99])
    eta = patterns @ x / 4
    np.testing.assert_allclose(fractions(patterns, eta), x, atol=1e-15, rtol=1e-6)
    np.testing.assert_allclose(negentropy(patterns, eta), np.mean(x * np.log(x) + (1 - x) * np.log(1 - x)), rtol=1e-12)
    np.testing.assert_allclose(fields(patterns, eta) @ patterns, np.log(x / (1 - x)), rtol=1e-7)


@EVERY
def test_derivatives(patterns):
    eta, step = points(patterns, 3, seed=1), 1e-5
    at = jax.jit(jax.vmap(lambda e: negentropy(patterns, e)))
    slope = jax.jit(jax.vmap(jax.grad(lambda e: negentropy(patterns, e))))
    bend = jax.jit(jax.vmap(jax.hessian(lambda e: negentropy(patterns, e))))
    np.testing.assert_allclose(slope(eta), jax.vmap(lambda e: fields(patterns, e))(eta), atol=1e-13)
    for i, e in enumerate(step * np.eye(len(patterns))):
        np.testing.assert_allclose((at(eta + e) - at(eta - e)) / 2 / step, slope(eta)[:, i], rtol=1e-7, atol=1e-8)
        change = (slope(eta + e) - slope(eta - e)) / 2 / step
        np.testing.assert_allclose(change, bend(eta)[:, :, i], rtol=1e-6, atol=1e-6)
        third = jax.jvp(bend, (eta,), (np.tile(e / step, (3, 1)),))[1]
        np.testing.assert_allclose((bend(eta + e) - bend(eta - e)) / 2 / step, third, rtol=1e-5, atol=1e-5)


def test_derivatives_by_the_patterns():
    eta, change = points(SQUARE, 1)[0], np.random.default_rng(1).normal(size=SQUARE.shape)
    for of in (negentropy, fields):
        exact = jax.jvp(of, (SQUARE, eta), (change, np.zeros(3)))[1]
        numeric = (of(SQUARE + 1e-5 * change, eta) - of(SQUARE - 1e-5 * change, eta)) / 2e-5
        np.testing.assert_allclose(numeric, exact, rtol=1e-6, atol=1e-7)


def test_jit_vmap_and_float32():
    eta = points(ZIGZAG)
    one = jax.jit(lambda e: fields(ZIGZAG, e))
    loop = np.array([one(e) for e in eta])
    np.testing.assert_allclose(jax.jit(jax.vmap(lambda e: fields(ZIGZAG, e)))(eta), loop, rtol=1e-12, atol=1e-13)
    with jax.disable_jit():
        np.testing.assert_allclose(fields(ZIGZAG, eta[0]), loop[0], rtol=1e-12, atol=1e-13)
    single = jax.vmap(lambda e: fields(ZIGZAG, e))(jnp.asarray(eta, jnp.float32))
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(single, loop, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_boundary_and_beyond(dtype):
    """Pure states, and eta that no filling has: finite, and drawn back inside."""
    ordered = np.array([0.5, 0.5, 0, 0, 0, 0, 0])
    middle = np.eye(7)[0] / 2
    for end in (np.zeros(7), np.eye(7)[0], ordered):
        eta = jnp.asarray([middle + t * (end - middle) for t in (0.0, 0.9, 0.999, 1.0, 1.01, 1.5)], dtype)
        value, slope = jax.vmap(jax.value_and_grad(lambda e: negentropy(ZIGZAG, e)))(eta)
        along = slope @ (end - middle).astype(dtype)
        assert np.all(np.isfinite(value)) and np.all(np.diff(along) > 0), along
        np.testing.assert_allclose(value[3], 0, atol=1e-5 if dtype == np.float32 else 1e-10)
        bend = jax.vmap(jax.hessian(lambda e: negentropy(ZIGZAG, e)))(eta)
        assert np.all(np.isfinite(bend))
    # beyond the section x = S eta >= 0, where other order must come in, there are states still
    inside = np.array([0.5, *[0.12] * 6])
    assert (np.linalg.pinv(ZIGZAG) @ inside * 32).min() < -0.2
    x = fractions(ZIGZAG, inside)
    np.testing.assert_allclose(ZIGZAG @ x / 32, inside, atol=1e-14)
    assert np.asarray(x).min() > 0.01


def test_bad_patterns():
    for patterns, message in ((np.ones(3), "patterns of shape"), (np.ones((2, 3)), "not linearly independent")):
        with pytest.raises(ValueError, match=message):
            checked(patterns)
