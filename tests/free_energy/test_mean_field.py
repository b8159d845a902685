import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haljax.free_energy import criteria
from haljax.free_energy.mean_field import biased_labels, exact_labels, mean_field, regular_solution
from haljax.free_energy.minimise import distinct, minimise
from haljax.lattice.polytope import half_spaces
from haljax.lattice.units import KB

from .half_cube import DOMAIN, GROUP, IDEAL, PATTERNS, ZIGZAG, ordering

POINTS = criteria.fill(jax.random.key(5), DOMAIN, 16)


def test_derivatives_are_those_of_the_free_energy():
    g = lambda eta: ZIGZAG.free_energy(eta, 300.0)
    np.testing.assert_allclose(ZIGZAG.chemical_potential(POINTS, 300.0), jax.vmap(jax.grad(g))(POINTS), atol=1e-13)
    np.testing.assert_allclose(ZIGZAG.hessian(POINTS, 300.0), jax.vmap(jax.hessian(g))(POINTS), rtol=1e-9, atol=1e-12)


def test_symmetry():
    turn = GROUP[[7, 100, 383]]
    images = jnp.einsum("gij,pj->gpi", turn, POINTS)
    g, mu = ZIGZAG.free_energy(POINTS, 300.0), ZIGZAG.chemical_potential(POINTS, 300.0)
    np.testing.assert_allclose(ZIGZAG.free_energy(images, 300.0), np.broadcast_to(g, (3, 16)), rtol=1e-12)
    turned = np.einsum("gij,pj->gpi", turn, mu)
    np.testing.assert_allclose(ZIGZAG.chemical_potential(images, 300.0), turned, atol=1e-13)


def test_temperatures_broadcast_jit_vmap_and_float32():
    T = jnp.linspace(200, 400, 16)
    g = ZIGZAG.free_energy(POINTS, T)
    np.testing.assert_allclose(g, [ZIGZAG.free_energy(p, t) for p, t in zip(POINTS, T, strict=True)], rtol=1e-13)
    np.testing.assert_allclose(jax.jit(lambda f, e: f.free_energy(e, T))(ZIGZAG, POINTS), g, rtol=1e-13)
    np.testing.assert_allclose(jax.vmap(ZIGZAG.free_energy)(POINTS, T), g, rtol=1e-13)
    with jax.disable_jit():
        np.testing.assert_allclose(ZIGZAG.free_energy(POINTS, T), g, rtol=1e-13)
    half = ZIGZAG.hessian(POINTS.astype(jnp.float32), 300.0)
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, ZIGZAG.hessian(POINTS, 300.0), rtol=1e-3, atol=1e-5)  # 1/(x (1-x)) of x near 0


def test_regular_solution():
    T, field = 700.0, regular_solution(1000.0)
    x = jnp.linspace(0.05, 0.95, 7)[:, None]
    mu = 2 * KB * 1000 * (1 - 2 * x) + KB * T * jnp.log(x / (1 - x))
    np.testing.assert_allclose(field.chemical_potential(x, T), mu, rtol=1e-12, atol=1e-16)


def test_exact_labels():
    found = exact_labels(ZIGZAG, POINTS, 300.0)
    np.testing.assert_array_equal(found.mu, ZIGZAG.chemical_potential(POINTS, 300.0))
    np.testing.assert_array_equal(found.energy, ZIGZAG.energy(POINTS))
    noisy = exact_labels(ZIGZAG, jnp.repeat(POINTS, 200, axis=0), 300.0, key=jax.random.key(0), mu_error=1e-3)
    difference = (noisy.mu - np.repeat(found.mu, 200, axis=0)) / noisy.mu_error
    assert abs(difference.std() - 1) < 0.02  # 22 400 numbers: 0.005 of standard error
    with pytest.raises(ValueError, match="1 points are not inside the domain, first row 0"):
        exact_labels(ZIGZAG, [[0.5, 0.6, 0, 0, 0, 0, 0]], 300.0)


def test_biased_labels_are_those_of_umbrella_windows():
    phi = np.array([50.0] + [1.0] * 6)  # enough to make every window convex
    target = POINTS
    kappa = target + ZIGZAG.chemical_potential(target, 300.0) / (2 * phi[None, :])
    sharp = biased_labels(jax.random.key(1), ZIGZAG, kappa, phi, 300.0, n_cells=10**12)
    np.testing.assert_allclose(sharp.eta, target, atol=1e-6)  # fluctuations of 1e-9 and the minimiser's barrier
    np.testing.assert_allclose(sharp.mu, ZIGZAG.chemical_potential(target, 300.0), atol=1e-5)
    found = biased_labels(jax.random.key(1), ZIGZAG, jnp.repeat(kappa, 40, axis=0), phi, 300.0)
    z = (found.mu - np.asarray(ZIGZAG.chemical_potential(found.eta, 300.0))) / found.mu_error
    assert abs(z.std() - 1) < 0.055 and abs(z.mean()) < 0.075  # five standard errors of 4480 numbers


def test_minimise_finds_inner_and_boundary_minima():
    square = half_spaces(np.vstack([np.eye(2), -np.eye(2)]), [1, 1, 1, 1])
    bowl = mean_field(lambda eta: jnp.sum((eta - jnp.array([0.3, 2.0])) ** 2), np.eye(2))

    class Plain:  # without an ideal term
        free_energy = staticmethod(lambda eta, T: bowl.energy(eta))
        chemical_potential = staticmethod(lambda eta, T: 2 * (eta - jnp.array([[0.3, 2.0]])))
        hessian = staticmethod(lambda eta, T: jnp.broadcast_to(2 * jnp.eye(2)[None], (len(eta), 2, 2)))

    jax.tree_util.register_pytree_node(Plain, lambda _: ((), None), lambda *_: Plain())
    found = minimise(Plain(), square, jnp.array([[-0.9, -0.9], [0.0, 0.5]]), 300.0)
    np.testing.assert_allclose(found.eta, [[0.3, 1.0]] * 2, atol=1e-6)
    held = minimise(Plain(), square, jnp.array([[-0.9, -0.9], [0.0, 0.5]]), 300.0, fixed=(0,))
    np.testing.assert_allclose(held.eta, [[-0.9, 1.0], [0.0, 1.0]], atol=1e-6)
    assert np.all(found.converged) and np.all(held.converged)
    lost = minimise(Plain(), square, jnp.array([[jnp.nan, 0.0], [0.1, 0.2]]), 300.0)
    assert lost.converged.tolist() == [False, True]  # and the other start is not harmed


def test_minima_are_stationary():
    start = POINTS * 0.9 + 0.1 * jnp.array([[0.5, 0, 0, 0, 0, 0, 0]])
    found = minimise(ZIGZAG, DOMAIN, start, 700.0, fixed=(0,))
    assert np.all(found.converged) and np.all(found.curvature > 0)
    np.testing.assert_array_equal(found.eta[:, 0], start[:, 0])
    np.testing.assert_allclose(ZIGZAG.chemical_potential(found.eta, 700.0)[:, 1:], 0, atol=1e-7)
    one = [minimise(ZIGZAG, DOMAIN, s[None], 700.0, fixed=(0,)).free_energy[0] for s in start[:3]]
    np.testing.assert_allclose(one, found.free_energy[:3], rtol=1e-10)


def test_distinct_points_under_a_group():
    points = np.concatenate([GROUP[5] @ np.asarray(POINTS[:1]).T, np.asarray(POINTS[:1]).T], axis=1).T
    np.testing.assert_array_equal(distinct(points, GROUP), [0])
    np.testing.assert_array_equal(distinct(points), [0, 1])


def test_bad_fields():
    with pytest.raises(ValueError, match="give a scalar"):
        mean_field(lambda eta: eta, PATTERNS)
    with pytest.raises(ValueError, match="patterns of shape"):
        mean_field(ordering, np.ones(3))


def test_ideal_solution_of_disorder_and_of_the_zigzag():
    """By symmetry half of the sublattices are filled to x + e, the others to x - e."""
    for x, e in ((0.3, 0.0), (0.3, 0.2), (0.5, 0.45), (0.8, 0.1)):
        eta = np.array([x, 0, 0, e, 0, 0, 0])
        g = KB * 300 * np.mean([u * np.log(u) + (1 - u) * np.log(1 - u) for u in (x + e, x - e)])
        mu = KB * 300 / 2 * np.log([(x + e) / (1 - x - e), (x - e) / (1 - x + e)])
        np.testing.assert_allclose(IDEAL.free_energy(eta, 300.0), g, rtol=1e-12)
        np.testing.assert_allclose(
            np.asarray(IDEAL.chemical_potential(eta, 300.0))[[0, 3]], [mu.sum(), mu[0] - mu[1]], atol=1e-13
        )
        bend = KB * 300 / 2 * (1 / (x + e) / (1 - x - e) + 1 / (x - e) / (1 - x + e))
        np.testing.assert_allclose(IDEAL.hessian(eta, 300.0)[0, 0], bend, rtol=1e-10)
