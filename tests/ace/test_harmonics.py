"""Real spherical harmonics: orthonormality, addition theorem, SciPy's."""

import jax
import numpy as np
import scipy.special

from haljax.ace.harmonics import real_harmonics

L_MAX = 8


def complex_harmonics(degree, m, theta, phi):
    """Y_lm with the Condon-Shortley phase; polar angle theta, azimuth phi. SciPy renamed it in 1.15."""
    if hasattr(scipy.special, "sph_harm_y"):
        return scipy.special.sph_harm_y(degree, m, theta, phi)
    return scipy.special.sph_harm(m, degree, phi, theta)


def unit(rng, n):
    x = rng.normal(size=(n, 3))
    return x / np.linalg.norm(x, axis=1)[:, None]


def test_agree_with_scipy(rng):
    u = unit(rng, 60)
    theta, phi = np.arccos(u[:, 2]), np.arctan2(u[:, 1], u[:, 0])
    for degree, y in enumerate(real_harmonics(u, L_MAX)):
        assert y.shape == (60, 2 * degree + 1)
        for m in range(-degree, degree + 1):
            c = complex_harmonics(degree, abs(m), theta, phi) * (-1) ** m * (np.sqrt(2) if m else 1)
            np.testing.assert_allclose(y[:, m + degree], c.imag if m < 0 else c.real, rtol=0, atol=1e-13)


def test_are_orthonormal_on_the_sphere():
    """Gauss-Legendre in z times the trapezoidal rule in phi: exact to degree 2 L_MAX."""
    z, weight = np.polynomial.legendre.leggauss(L_MAX + 1)
    phi = 2 * np.pi * np.arange(2 * L_MAX + 1) / (2 * L_MAX + 1)
    rho = np.sqrt(1 - z**2)[:, None]
    u = np.stack(np.broadcast_arrays(rho * np.cos(phi), rho * np.sin(phi), z[:, None]), axis=-1)
    y = np.concatenate(real_harmonics(u, L_MAX), axis=-1)
    gram = np.einsum("tpa,tpb,t->ab", y, y, weight) * 2 * np.pi / len(phi)
    np.testing.assert_allclose(gram, np.eye((L_MAX + 1) ** 2), atol=1e-13)


def test_addition_theorem(rng):
    u, v = unit(rng, 30), unit(rng, 30)
    cosine = np.sum(u * v, axis=1)
    for degree, (a, b) in enumerate(zip(real_harmonics(u, L_MAX), real_harmonics(v, L_MAX), strict=True)):
        expected = (2 * degree + 1) / (4 * np.pi) * scipy.special.eval_legendre(degree, cosine)
        np.testing.assert_allclose(np.sum(a * b, axis=1), expected, rtol=0, atol=1e-13)


def test_slopes_are_finite_at_the_poles_and_on_the_axes():
    axes = np.concatenate([np.eye(3), -np.eye(3)])
    slopes = jax.jit(jax.vmap(jax.jacrev(lambda u: real_harmonics(u, 3))))(axes)
    for degree, slope in enumerate(slopes):  # (axis, m, component)
        assert np.all(np.isfinite(slope))
        assert degree == 0 or np.all(np.any(slope != 0, axis=(1, 2)))
