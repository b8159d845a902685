"""Rotation invariants: their number, the closed form for two factors, and brute-force averages over SO(3)."""

import math
from itertools import combinations_with_replacement, permutations, product

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from haljax.ace import coupling
from haljax.ace.coupling import invariants
from haljax.ace.harmonics import real_harmonics


def groupings(ls):
    """Ways in which factors of equal degree (neighbours in ``ls``) may be identical, as the basis labels them."""
    cuts = [[False, True] if ls[t] == ls[t - 1] else [False] for t in range(1, len(ls))]
    for same in product(*cuts):
        groups = [0]
        for t, identical in enumerate(same, start=1):
            groups.append(groups[-1] if identical else t)
        yield tuple(groups)


def cases(order, l_max):
    """Degrees and identical factors that a basis may hold, up to a sum of degrees of 8."""
    for ls in combinations_with_replacement(range(l_max + 1), order):
        if sum(ls) % 2 == 0 and sum(ls) <= 8:
            for groups in groupings(ls):
                yield ls, groups


def evaluate(ls, groups, a):
    """Values of all invariants for densities ``a[t]`` (..., 2 l_t + 1) of every factor."""
    return np.stack(
        [
            sum(c * math.prod(a[t][..., m + ls[t]] for t, m in enumerate(ms)) for ms, c in invariant)
            for invariant in invariants(ls, groups)
        ],
        axis=-1,
    )


@pytest.mark.parametrize("degree", range(7))
def test_two_factors_by_the_closed_form(degree, rng):
    a = rng.normal(size=(2, 2 * degree + 1))
    expected = a[0] @ a[1] / np.sqrt(2 * degree + 1)
    (value,) = evaluate((degree, degree), (0, 1), a)
    np.testing.assert_allclose(abs(value), abs(expected), rtol=1e-13)
    (value,) = evaluate((degree, degree), (0, 0), a[[0, 0]])
    np.testing.assert_allclose(abs(value), np.sqrt(2) * a[0] @ a[0] / np.sqrt(2 * degree + 1), rtol=1e-13)


def test_two_factors_of_different_degree_have_none():
    assert invariants((0, 2), (0, 1)) == invariants((1, 3), (0, 1)) == ()


@pytest.mark.parametrize(("order", "l_max"), [(1, 4), (2, 4), (3, 4), (4, 3), (5, 2)])
def test_number_of_invariants_is_that_of_the_trivial_representation(order, l_max):
    """(states of weight 0) - (states of weight 1) of the product, symmetrised over identical factors."""
    for ls, groups in cases(order, l_max):
        states = {0: set(), 1: set()}
        for ms in product(*(range(-degree, degree + 1) for degree in ls)):
            if sum(ms) in states:
                states[sum(ms)].add(tuple(sorted(zip(groups, ms, strict=True))))
        assert len(invariants(ls, groups)) == len(states[0]) - len(states[1]), (ls, groups)


@pytest.mark.parametrize(("order", "l_max"), [(3, 3), (4, 2)])
def test_symmetry_are_unit_vectors_scaled_by_their_permutations(order, l_max):
    """ACE1's normalisation: sqrt(|H|) times orthonormal tensors, H the permutations of identical factors."""
    for ls, groups in cases(order, l_max):
        tensors = []
        for invariant in invariants(ls, groups):
            tensor = np.zeros([2 * degree + 1 for degree in ls])
            for ms, c in invariant:
                orderings = {
                    tuple(x[1] for x in p)
                    for p in permutations(tuple(zip(groups, ms, strict=True)))
                    if tuple(x[0] for x in p) == groups
                }
                for ordering in orderings:  # a monomial's coefficient is shared by its orderings
                    tensor[tuple(m + degree for m, degree in zip(ordering, ls, strict=True))] += c / len(orderings)
            tensors.append(tensor.ravel())
        if tensors:
            identical = math.prod(math.factorial(groups.count(g)) for g in set(groups))
            gram = np.array(tensors) @ np.array(tensors).T
            np.testing.assert_allclose(gram, identical * np.eye(len(tensors)), atol=1e-10)


def rotations(l_total):
    """A quadrature of SO(3), exact for Wigner functions up to ``l_total``: rotations and weights that sum to one."""
    cosine, weight = np.polynomial.legendre.leggauss(l_total // 2 + 1)
    turns = 2 * np.pi * np.arange(l_total + 1) / (l_total + 1)
    alpha, beta, gamma = np.meshgrid(turns, np.arccos(cosine), turns, indexing="ij")
    w = np.broadcast_to(weight[None, :, None] / 2 / len(turns) ** 2, alpha.shape)
    angles = np.stack([alpha, beta, gamma], axis=-1).reshape(-1, 3)
    return Rotation.from_euler("ZYZ", angles).as_matrix(), w.ravel()


@pytest.mark.parametrize(
    ("ls", "groups"),
    [
        ((1, 1, 2), (0, 1, 2)),
        ((1, 1, 2), (0, 0, 2)),
        ((2, 2, 2), (0, 0, 0)),
        ((1, 2, 3), (0, 1, 2)),
        ((1, 1, 1, 1), (0, 1, 2, 3)),
        ((1, 1, 1, 1), (0, 0, 2, 2)),
        ((1, 1, 2, 2), (0, 0, 2, 3)),
        ((2, 2, 2, 2), (0, 0, 0, 0)),
        ((2, 2, 2, 2), (0, 0, 2, 2)),
        ((1, 1, 1, 1, 2), (0, 0, 0, 3, 4)),
    ],
)
def test_span_equals_that_of_group_averages(ls, groups, rng):
    """Averaging any product of densities over all rotations gives an invariant: those and ours span each other.

    The densities are those of random points, one set of weights a group of identical factors.
    """
    n_environments, n_points = 60, 6
    matrices, weights = rotations(sum(ls))
    points = rng.normal(size=(n_environments, n_points, 3))
    points /= np.linalg.norm(points, axis=-1, keepdims=True)
    charges = {g: rng.normal(size=(n_environments, n_points)) for g in groups}

    def densities(points):
        y = real_harmonics(points, max(ls))
        return [np.einsum("ep,...epm->...em", charges[g], y[degree]) for g, degree in zip(groups, ls, strict=True)]

    ours = evaluate(ls, groups, densities(points))  # (environments, invariants)
    turned = densities(np.einsum("rab,epb->repa", matrices, points))
    np.testing.assert_allclose(evaluate(ls, groups, [a[7] for a in turned]), ours, atol=1e-10)

    averages = []
    every = list(product(*(range(-degree, degree + 1) for degree in ls)))
    for i in rng.permutation(len(every))[:120]:
        products = math.prod(turned[t][..., m + ls[t]] for t, m in enumerate(every[i]))
        averages.append(weights @ products)
    averages = np.array(averages).T
    scale = np.max(np.abs(averages))
    inside, *_ = np.linalg.lstsq(ours, averages, rcond=None)
    np.testing.assert_allclose(ours @ inside, averages, rtol=0, atol=1e-11 * scale)  # all averages in our span
    s = np.linalg.svd(averages, compute_uv=False)
    assert np.sum(s > 1e-9 * s[0]) == ours.shape[1]  # and they fill it
    s = np.linalg.svd(ours / np.linalg.norm(ours, axis=0), compute_uv=False)
    assert s[-1] > 1e-3 * s[0]  # ours are independent


def test_null_space_does_not_depend_on_lapack(monkeypatch, rng):
    """Another matrix with the same null space sends the SVD elsewhere in it, but gives the same functions."""
    original = coupling._null_space
    many = [
        ((1, 1, 1, 1), (0, 1, 2, 3)),
        ((2, 2, 2, 2), (0, 1, 2, 3)),
        ((1, 2, 2, 3), (0, 1, 1, 3)),
        ((2,) * 5, (0,) * 5),
    ]
    expected = [invariants(*case) for case in many]

    def mixed(matrix):
        q, _ = np.linalg.qr(rng.normal(size=(len(matrix),) * 2))
        return original(q @ np.diag(rng.uniform(0.5, 2, len(matrix))) @ matrix)

    monkeypatch.setattr(coupling, "_null_space", mixed)
    for case, before in zip(many, expected, strict=True):
        after = invariants.__wrapped__(*case)
        assert [[ms for ms, _ in f] for f in after] == [[ms for ms, _ in f] for f in before]
        for f, g in zip(after, before, strict=True):
            np.testing.assert_allclose([c for _, c in f], [c for _, c in g], rtol=0, atol=1e-11)


def test_null_space_of_an_empty_matrix_is_everything():
    np.testing.assert_array_equal(coupling._null_space(np.zeros((0, 3))), np.eye(3))
