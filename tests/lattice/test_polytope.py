from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haljax.lattice.polytope import extreme, from_sublattices, half_spaces, pull_inside, reach

SIGNS = np.array([s for s in product((1, -1), repeat=6) if np.prod(s) == 1])
HALF_CUBE = from_sublattices(np.column_stack([np.ones(32), SIGNS]))
SIMPLEX = half_spaces(np.vstack([-np.eye(3), np.ones((1, 3))]), [0, 0, 0, 1])


def test_the_even_half_cube():
    assert HALF_CUBE.normals.shape == (64, 7) and HALF_CUBE.dimension == 7
    np.testing.assert_allclose(np.linalg.norm(HALF_CUBE.normals, axis=1), 1, rtol=1e-14)
    lower, upper = HALF_CUBE.bounding_box()
    np.testing.assert_allclose(lower, [0] + [-0.5] * 6, atol=1e-12)
    np.testing.assert_allclose(upper, [1] + [0.5] * 6, atol=1e-12)
    centre, radius = HALF_CUBE.chebyshev_centre()
    np.testing.assert_allclose(centre, [0.5] + [0] * 6, atol=1e-9)
    np.testing.assert_allclose(radius, 0.5 / np.sqrt(7), rtol=1e-9)
    zigzag = np.array([0.5, 0.5, 0, 0, 0, 0, 0])
    assert HALF_CUBE.contains(zigzag, 1e-12) and not HALF_CUBE.contains(1.001 * zigzag, 1e-4)
    assert not HALF_CUBE.contains(np.full(7, np.nan))


def test_slack_is_the_distance_to_the_planes():
    np.testing.assert_allclose(SIMPLEX.slack(jnp.array([0.1, 0.2, 0.3])), [0.1, 0.2, 0.3, 0.4 / np.sqrt(3)], atol=1e-15)
    centre, radius = SIMPLEX.chebyshev_centre()
    np.testing.assert_allclose(centre, 1 / (3 + np.sqrt(3)), rtol=1e-12)  # the insphere of the corner of a cube
    np.testing.assert_allclose(radius, 1 / (3 + np.sqrt(3)), rtol=1e-12)
    np.testing.assert_allclose(extreme(SIMPLEX, [0, 1, 0]), [0, 1, 0], atol=1e-12)


def test_repeated_planes_are_one():
    interval = from_sublattices(np.ones((32, 1)))
    assert interval.normals.shape == (2, 1)


def test_drawn_inside_along_the_straight_line():
    rng = np.random.default_rng(0)
    base = 0.5 * np.array([[0.5, 0.5, 0, 0, 0, 0, 0]]) + 0.5 * np.array([[0.5, 0, 0, 0, 0, 0, 0]])
    x = base + rng.normal(size=(200, 7))
    moved = np.asarray(pull_inside(HALF_CUBE, base, x))
    assert np.all(HALF_CUBE.contains(moved, 1e-12))
    np.testing.assert_allclose(np.min(HALF_CUBE.slack(moved), axis=1), 0, atol=1e-12)  # all were outside
    way = (moved - base) / (x - base)
    np.testing.assert_allclose(way, np.broadcast_to(way[:, :1], way.shape), rtol=1e-9)
    near = base + 1e-3 * (x - base)
    np.testing.assert_allclose(pull_inside(HALF_CUBE, base, near), near, rtol=1e-15)
    short = np.asarray(pull_inside(HALF_CUBE, base, x, margin=0.25))
    np.testing.assert_allclose(short - base, 0.75 * (moved - base), atol=1e-12)


def test_jit_vmap_and_float32():
    rng = np.random.default_rng(1)
    base, x = np.full((20, 3), 0.2), rng.normal(size=(20, 3))
    eager = pull_inside(SIMPLEX, base, x)
    np.testing.assert_allclose(jax.jit(pull_inside)(SIMPLEX, base, x), eager, atol=1e-15)
    loop = [pull_inside(SIMPLEX, jnp.asarray(b), jnp.asarray(y)) for b, y in zip(base, x, strict=True)]
    np.testing.assert_allclose(jax.vmap(pull_inside, (None, 0, 0))(SIMPLEX, base, x), np.stack(loop), atol=1e-15)
    half = pull_inside(SIMPLEX, base.astype(np.float32), x.astype(np.float32))
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, eager, atol=1e-6)  # a few roundings of float32
    np.testing.assert_allclose(reach(SIMPLEX, base, 2 * x), reach(SIMPLEX, base, jnp.asarray(x)) / 2, rtol=1e-12)


@pytest.mark.parametrize(
    "normals, offsets, message",
    [
        ([[1.0], [-1.0]], [0.0, -1.0], "empty|no interior"),
        ([[1.0, 0], [-1, 0], [0, 1], [0, -1]], [0.5, -0.5, 1, 0], "no interior"),
        ([[1.0, 0], [-1, 0], [0, 1]], [1.0, 0, 1], "no bound"),
        ([[0.0, 0], [1, 0]], [1.0, 1], "normal 0 of the polytope is zero"),
        ([[1.0, np.nan]], [1.0], "not finite"),
        ([[1.0, 0]], [1.0, 2], "give"),
    ],
)
def test_domains_that_are_none(normals, offsets, message):
    with pytest.raises(ValueError, match=message):
        half_spaces(normals, offsets)
