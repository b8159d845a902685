from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haljax.lattice import invariants, zigzag

from .crystals import lixcoo2
from .test_order import l12


def published(eta):
    """The features h0 to h11 of Holber & Garikipati (arXiv:2503.07619), written out."""
    x0, x1, x2, x3, x4, x5, x6 = np.moveaxis(eta, -1, 0)
    x = eta[..., 1:]
    pairs = ((x1, x2), (x3, x6), (x4, x5))
    a2, b2, c2 = (p**2 + q**2 for p, q in pairs)
    a4, b4, c4 = (p**4 + q**4 for p, q in pairs)
    a22, b22, c22 = (p**2 * q**2 for p, q in pairs)
    return np.stack(
        [
            x0,
            2 / 3 * np.sum(x**2, axis=-1),
            8 / 3 * np.sum(x**4, axis=-1),
            4 / 3 * (a2 * (b2 + c2) + b2 * c2),
            16 / 3 * (a22 + b22 + c22),
            32 / 3 * np.sum(x**6, axis=-1),
            8 / 3 * (a4 * (b2 + c2) + b4 * c2 + a2 * (b4 + c4) + b2 * c4),
            16 / 3 * (a22 * (b2 + c2) + b22 * (a2 + c2) + c22 * (a2 + b2)),
            32 / 3 * sum(p**4 * q**2 + p**2 * q**4 for p, q in pairs),
            8 * a2 * b2 * c2,
            64 / 5 * ((x1**2 - x2**2) * (x3 * x5 + x4 * x6) * (x3 * x4 - x5 * x6)
                      + x1 * x2 * (x3**2 - x6**2) * (x4**2 - x5**2)),
            64 * np.sqrt(5) * x1 * x2 * x3 * x4 * x5 * x6,
        ],
        axis=-1,
    )  # fmt: skip


def assert_same_span(a, b):
    """Columns of two (n, F) tables span the same space; to rounding."""
    assert np.linalg.matrix_rank(a) == np.linalg.matrix_rank(b) == a.shape[1] == b.shape[1]
    for one, other in ((a, b), (b, a)):
        coefficients = np.linalg.lstsq(one, other, rcond=None)[0]
        np.testing.assert_allclose(one @ coefficients, other, atol=1e-11)


def molien(group, degree):
    """Numbers of invariants of each degree: the mean over the group of 1 / det(1 - t g), expanded in t."""
    total = np.zeros(degree + 1)
    for matrix in group:
        h, power = [1.0], [np.trace(np.linalg.matrix_power(matrix, k)) for k in range(degree + 1)]
        for n in range(1, degree + 1):  # Newton's identities for complete symmetric functions of the eigenvalues
            h.append(sum(power[k] * h[n - k] for k in range(1, n + 1)) / n)
        total += np.real(h)
    return total / len(group)


@pytest.fixture(scope="module")
def group():
    return zigzag(lixcoo2().lattice).group


@pytest.fixture(scope="module")
def points():
    return np.random.default_rng(0).uniform(-0.5, 0.5, (100, 7))


def test_lixcoo2_has_the_published_invariants(group, points):
    found = invariants(group, 6)
    assert found.degrees == (1, 2, 4, 4, 4, 6, 6, 6, 6, 6, 6, 6)
    values = np.asarray(found(points))
    np.testing.assert_array_equal(values[:, 0], points[:, 0])  # the composition is a feature of its own
    assert_same_span(values, published(points))
    images = np.asarray(found(np.einsum("gij,nj->gni", group, points)))
    assert np.abs(images - values[None]).max() < 1e-12
    assert np.all(np.abs(values) <= 1)  # over the box of half width 1/2


def test_molien_counts(group):
    found = invariants(group, 10)
    counts = np.bincount(found.degrees, minlength=11)
    counts[1] -= 1  # the composition
    np.testing.assert_allclose(molien(group[:, 1:, 1:], 10)[1:], counts[1:], atol=1e-9)
    assert [int(counts[k]) for k in (2, 4, 6, 8, 10)] == [1, 3, 7, 14, 26]


def test_l12_has_the_published_invariants(points):
    found = invariants(l12().group, 4)
    assert found.degrees == (1, 2, 3, 4, 4)
    eta = points[:, :4]
    x0, x1, x2, x3 = eta.T
    square = x1**2 + x2**2 + x3**2
    features = np.stack(
        [x0, 4 * square, 16 * x1 * x2 * x3, 64 * (x2**2 * x3**2 + x1**2 * x3**2 + x1**2 * x2**2), square**2], axis=1
    )  # the four of the Ni-Al network and the square of the second
    assert_same_span(np.asarray(found(eta)), features)


def rotated(group, seed=0):
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=group.shape[1:]))
    return q, q @ group @ q.T


def test_any_orthogonal_group(points):
    # the same group in turned coordinates has the same invariants in turned coordinates
    group = l12().group[:, 1:, 1:]
    q, turned = rotated(group)
    x = points[:, :3]
    assert_same_span(np.asarray(invariants(group, 6)(x)), np.asarray(invariants(turned, 6)(x @ q.T)))
    found = invariants(turned, 6)
    images = np.asarray(found(np.einsum("gij,nj->gni", turned, x)))
    assert np.abs(images - np.asarray(found(x))[None]).max() < 1e-12


def test_a_pentagon():
    angle = 2 * np.pi / 5
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    group = np.array([np.linalg.matrix_power(turn, k) @ m for k in range(5) for m in (np.eye(2), np.diag([1.0, -1]))])
    found = invariants(group, 5)
    assert found.degrees == (2, 4, 5)
    x, y = np.random.default_rng(1).uniform(-0.5, 0.5, (2, 50))
    values = np.asarray(found(np.stack([x, y], axis=1)))
    expected = np.stack([x**2 + y**2, (x**2 + y**2) ** 2, x**5 - 10 * x**3 * y**2 + 5 * x * y**4], axis=1)
    scale = values[0] / expected[0]
    np.testing.assert_allclose(values, expected * scale[None], atol=1e-13)


def test_a_group_that_is_not_orthogonal(points):
    skew = np.array([[1.0, 0.7], [0, 1]])
    group = np.array(
        [skew @ m @ np.linalg.inv(skew) for m in (np.eye(2), -np.eye(2), np.diag([1.0, -1]), -np.diag([1.0, -1]))]
    )
    found = invariants(group, 4)
    assert found.degrees == (2, 2, 4, 4, 4)
    x = points[:, :2]
    images = np.asarray(found(np.einsum("gij,nj->gni", group, x)))
    assert np.abs(images - np.asarray(found(x))[None]).max() < 1e-12


def test_coordinates_left_alone():
    assert invariants(np.eye(1)[None], 6)(jnp.array([0.3])).tolist() == [0.3]
    two = invariants(np.array([np.eye(3), np.diag([1.0, -1, 1])]), 4)
    assert two.degrees == (1, 1, 2, 4)
    np.testing.assert_allclose(two(jnp.array([0.1, 0.5, 0.2])), [0.1, 0.2, 1, 1], rtol=1e-14)


def test_derivatives_jit_vmap_and_single_precision(group, points):
    found = invariants(group, 6)
    eager = found(points)
    np.testing.assert_allclose(jax.jit(found)(points), eager, rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(jax.vmap(found)(points), eager, rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(found(points.astype(np.float32)), eager, atol=1e-6)
    x, step = points[0], 1e-5
    numeric = np.stack([(found(x + step * e) - found(x - step * e)) / (2 * step) for e in np.eye(7)], axis=1)
    np.testing.assert_allclose(jax.jacobian(found)(x), numeric, atol=1e-9)  # step^2 times third derivatives
    origin = jax.hessian(found)(jnp.zeros(7))
    assert np.all(np.isfinite(origin))
    np.testing.assert_allclose(origin[1, 1:, 1:], 4 / 3 * np.eye(6), rtol=1e-13)  # of (2/3) sum x^2
    assert hash(found) == hash(invariants(group, 6))


@pytest.mark.parametrize(
    "matrices, degree, message",
    [
        (np.eye(2), 2, r"\(G, d, d\)"),
        (np.full((1, 2, 2), np.nan), 2, "finite"),
        (np.eye(2)[None], 0, "integer >= 1"),
        (np.array([np.eye(2), [[0.0, -1], [1, 0]]]), 2, "no group"),
        (2 * np.eye(2)[None], 2, "no group"),
        (np.array([np.eye(2), -np.eye(2)]), 1, "no invariant up to degree 1"),
    ],
)
def test_bad_groups(matrices, degree, message):
    with pytest.raises(ValueError, match=message):
        invariants(matrices, degree)


def test_the_wrong_number_of_order_parameters(group):
    with pytest.raises(ValueError, match="invariants are of 7 order parameters"):
        invariants(group, 2)(jnp.zeros(6))
