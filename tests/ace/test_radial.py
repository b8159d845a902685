"""Radial polynomials against a QR construction; the functions of r at the cutoff and at the core."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haljax.ace import ace_basis
from haljax.ace.features import pair_functions, radial_functions
from haljax.ace.radial import agnesi, polynomials, product_expansion, smooth_step

from .environments import BASES

GRID = -1 + (2 * np.arange(1000) + 1) / 1000


def by_qr(t: np.ndarray, n_max: int, p: int) -> np.ndarray:
    """Orthonormal functions on the grid from a QR factorisation, continued to any t; positive leading coefficients."""

    def raw(t):
        return np.polynomial.chebyshev.chebvander(t, n_max - 1) * ((t + 1) ** p * (t - 1) ** p)[:, None]

    r = np.linalg.qr(raw(GRID) / np.sqrt(1000), mode="r")
    return raw(t) @ np.linalg.inv(r * np.sign(np.diag(r))[:, None])


@pytest.mark.parametrize("p", [0, 2])
def test_polynomials_are_orthonormal_on_the_midpoints(p):
    values = polynomials(GRID, 24, p, p)
    # The three-term recursion loses orthogonality slowly; 24 functions are more than any basis has.
    np.testing.assert_allclose(values.T @ values / 1000, np.eye(24), atol=1e-10)


@pytest.mark.parametrize("p", [0, 2])
def test_polynomials_equal_a_qr_factorisation(p):
    t = np.linspace(-0.999, 0.999, 41)
    np.testing.assert_allclose(polynomials(t, 16, p, p), by_qr(t, 16, p), rtol=0, atol=1e-10)


def test_polynomials_in_jax_equal_numpy_and_vanish_outside():
    t = np.array([-3.0, -1.0, -0.5, 0.1, 0.9, 1.0, 1.7])
    numpy = polynomials(t, 8, 2, 2)
    np.testing.assert_allclose(polynomials(jnp.asarray(t), 8, 2, 2), numpy, rtol=1e-13)
    assert np.all(numpy[[0, 1, 5, 6]] == 0)
    assert np.all(np.any(numpy[2:5] != 0, axis=0))


@pytest.mark.parametrize(
    ("p", "q", "a"), [(2, 4, 20 / 26), (1, 3, 4 / 14), (1, 4, 6 / 22), (2, 2, 2 / 3)]
)  # hal.md 1.2: ACE1's prefactors
def test_agnesi(p, q, a):
    assert agnesi(0.0, p, q) == agnesi(-2.0, p, q) == 1
    np.testing.assert_allclose(agnesi(1.0, p, q), 1 / (1 + a / 2), rtol=1e-14)
    s = 0.3
    np.testing.assert_allclose(agnesi(s, p, q), 1 / (1 + a * s**q / (1 + s ** (q - p))), rtol=1e-14)
    s = np.linspace(0.01, 3, 300)
    slope = jax.vmap(jax.grad(lambda s: agnesi(s, p, q)))(jnp.asarray(s))
    assert np.all(slope < 0)
    assert abs(s[np.argmin(slope)] - 1) < 0.011  # steepest at s = 1, to the spacing of s


@pytest.mark.parametrize("ns", [(1, 1), (2, 5), (1, 2, 3), (4, 4, 4), (1, 1, 2, 3), (1, 1, 1, 1, 1), (2, 2, 3, 3, 4)])
@pytest.mark.parametrize("p", [2, 0])
def test_product_expansion_reproduces_the_product(ns, p, rng):
    coefficients = product_expansion(ns, p, p)
    assert len(coefficients) == sum(ns) - len(ns) + 1 + 2 * p * (len(ns) - 1)
    t = rng.uniform(-1, 1, 200)
    product = np.prod(polynomials(t, max(ns), p, p)[:, np.array(ns) - 1], axis=1)
    expanded = polynomials(t, len(coefficients), p, p) @ coefficients
    np.testing.assert_allclose(expanded, product, rtol=0, atol=1e-12 * np.max(np.abs(product)))


def test_smooth_step_has_three_continuous_derivatives():
    step = partial(smooth_step, r_in=1.0, r_out=1.5)
    assert step(0.3) == step(1.0) == 0 and step(1.5) == step(9.0) == 1
    np.testing.assert_allclose(step(1.25), 0.5, rtol=1e-14)
    r = np.linspace(1, 1.5, 50)
    assert np.all(np.diff(step(r)) > 0)
    at = np.array([1.0 - 1e-7, 1.0 + 1e-7, 1.5 - 1e-7, 1.5 + 1e-7])
    for _ in range(3):
        step = jax.grad(step)
        assert np.all(np.abs(jax.jit(jax.vmap(step))(at)) < 0.01)  # fourth derivative: 840 / 0.5^4, times 1e-7


def radii(basis, r, z_i=0, z_j=0):
    """Arguments of the functions of r for one centre with neighbours at ``r``."""
    return jnp.asarray(r)[None], jnp.array([z_i]), jnp.full((1, len(r)), z_j)


@pytest.mark.parametrize("z_j", [0, 1])
def test_pair_functions_by_the_formula(z_j):
    """Discrete Legendre in the Agnesi(1, 3) distance times the r^-2 envelope (hal.md 1.4), above the core."""
    basis = ace_basis(("Al", "Cu"), 5.0, 2, 6)
    r0 = [2.9, (2.9 + 2.6) / 2][z_j]
    r = np.linspace(basis.core_radii[1][0, z_j], 4.999, 50)
    s, sc = r / r0, 5.0 / r0

    def x(s):
        return 1 / (1 + 4 / 14 * s**3 / (1 + s**2))

    t = (2 * x(s) - 1 - x(sc)) / (1 - x(sc))
    envelope = s**-2 - sc**-2 + 2 * sc**-3 * (s - sc)
    expected = by_qr(t, 6, 0) * envelope[:, None]
    got = pair_functions(basis, *radii(basis, r, 0, z_j))[0]
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-10 * np.max(np.abs(expected)))


@pytest.mark.parametrize("z_j", [0, 1])
def test_radial_functions_by_the_formula(z_j):
    basis = ace_basis(("Al", "Cu"), 5.0, 2, 6)
    r0, r_in = [2.9, (2.9 + 2.6) / 2][z_j], basis.core_radii[0][0, z_j]
    r = np.linspace(r_in, 5.0, 50)

    def x(r):
        s = (r - r_in) / (r0 - r_in)
        return 1 / (1 + 20 / 26 * s**4 / (1 + s**2))

    t = -1 + 2 * (1 - x(r)) / (1 - x(5.0))  # -1 at the core, +1 at the cutoff, linear in x
    got = radial_functions(basis, *radii(basis, r, 0, z_j))[0]
    np.testing.assert_allclose(got, by_qr(t, got.shape[-1], 2), rtol=0, atol=1e-10 * np.max(np.abs(got)))


@pytest.mark.parametrize("functions", [pair_functions, radial_functions])
@pytest.mark.parametrize("name", ["Si-o3-d8", "CHO-o2-d6"])
def test_functions_of_r_and_slopes_are_continuous(functions, name):
    basis = BASES[name]

    @jax.jit
    def compiled(r, z_i, z_j):
        return jax.jvp(lambda r: functions(basis, r, z_i, z_j), (r,), (jnp.ones_like(r),))

    for a, b in basis.pairs:
        r_in, r_out = (radius[a, b] for radius in basis.core_radii)

        def both(r, a=a, b=b):
            return np.stack([x[0] for x in compiled(*radii(basis, r, a, b))])

        zero = both(np.concatenate([np.linspace(1e-6, r_in, 20), np.linspace(basis.cutoff, 3 * basis.cutoff, 20)]))
        # Exactly zero but for XLA's rearrangement of t = -1 or 1, which enters squared and in the slope once.
        np.testing.assert_allclose(zero, 0, atol=1e-14)
        eps = 1e-7
        edges = np.array([r_in, r_out, basis.cutoff])
        between = np.linspace(r_in, basis.cutoff, 34)
        values = both(np.concatenate([between, edges - eps, edges + eps]))  # (2, 40, functions)
        scale = np.max(np.abs(values), axis=1)
        jump = np.abs(values[:, -3:] - values[:, -6:-3])
        # A jump of the value or slope would be of order scale; the next derivative gives about 10 scale eps.
        assert np.all(jump < 1e-4 * scale[:, None])
