"""Sizes of the bases, their labels, and what makes them static arguments."""

import dataclasses
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haljax.ace import ace_basis, descriptor

from .environments import BASES, sizes

# Functions of ACE1x's default bases, pair terms included: (elements, order) -> {degree: size}.
ACE1X = {
    ("Si", 2): {8: 31, 10: 51, 12: 79, 14: 116, 16: 163, 20: 294},
    ("Si", 3): {4: 10, 8: 54, 10: 110, 12: 211, 14: 383, 16: 668, 20: 1809},
    ("Si", 4): {8: 69, 10: 156, 12: 338, 14: 710},
    ("AlCu", 2): {8: 194, 9: 259, 10: 338, 12: 544, 13: 671, 14: 820, 16: 1176},
    ("AlCu", 3): {6: 190, 8: 490, 10: 1138, 12: 2396},
    ("AlCu", 4): {5: 135},
    ("AlCu", 5): {5: 147},
    ("CHO", 2): {8: 606, 10: 1077, 12: 1755, 13: 2175, 16: 3849},
    ("CHO", 3): {6: 708, 8: 1989, 9: 3177, 10: 4893},
}
ELEMENTS = {"Si": ("Si",), "AlCu": ("Al", "Cu"), "CHO": ("C", "H", "O")}
SIZES = [(ELEMENTS[e], order, degree, n) for (e, order), row in ACE1X.items() for degree, n in row.items()]


@pytest.mark.parametrize(("elements", "order", "degree", "size"), SIZES)
def test_size_is_that_of_ace1x(elements, order, degree, size):
    basis = ace_basis(elements, 5.0, order, degree)
    assert len(basis) == len(basis.labels) == size
    assert basis.n_pair == degree * len(elements) * (len(elements) + 1) // 2


@pytest.mark.parametrize(("elements", "order", "degree", "size"), [s for s in SIZES if s[3] < 400])
def test_descriptor_has_that_length(elements, order, degree, size):
    basis = ace_basis(elements, 5.0, order, degree)
    shapes = jax.ShapeDtypeStruct((3, 4, 3), float), jnp.zeros(3, int), jnp.zeros((3, 4), int)
    assert jax.eval_shape(lambda *x: descriptor(basis, *x), *shapes).shape == (size,)


@pytest.mark.parametrize("basis", BASES.values(), ids=BASES)
def test_labels_name_functions_within_the_degree(basis):
    assert [label.centre is None for label in basis.labels] == [i < basis.n_pair for i in range(len(basis))]
    for label in basis.labels:
        if label.centre is None:
            (a, n, _), (b, m, _) = label.factors
            assert label.order == 1 and n == m <= basis.max_degree
            assert basis.elements.index(a) <= basis.elements.index(b)
        else:
            assert 2 <= label.order == len(label.factors) <= basis.order
            assert sum(n + 1.5 * degree for _, n, degree in label.factors) <= basis.max_degree
            assert sum(degree for _, _, degree in label.factors) % 2 == 0
            assert label.centre in basis.elements and {e for e, _, _ in label.factors} <= set(basis.elements)
    orders = {label.order for label in basis.labels}
    assert orders == set(range(1, basis.order + 1))


@pytest.mark.parametrize("name", ["AlCu-o3-d6", "CHO-o2-d6"])
def test_no_function_is_empty(name):
    assert np.all(sizes(BASES[name]) > 1e-3)


def test_is_hashable_and_equal_by_value():
    basis, same = ace_basis(["Al", "Cu"], 5, 3, 6), ace_basis(("Al", "Cu"), 5.0, 3, 6)
    assert basis == same and hash(basis) == hash(same) and len({basis, same}) == 1
    different = [
        ace_basis(("Cu", "Al"), 5, 3, 6),
        ace_basis(("Al", "Cu"), 5.5, 3, 6),
        ace_basis(("Al", "Cu"), 5, 2, 6),
    ]
    assert len({basis, *different}) == 4
    len(basis), basis.tables, basis.labels
    assert basis == same and hash(basis) == hash(same)  # what is cached does not enter
    assert pickle.loads(pickle.dumps(basis)) == basis
    with pytest.raises(dataclasses.FrozenInstanceError):
        basis.cutoff = 4.0


def test_is_a_static_argument_compiled_once():
    traced = []

    def f(basis, d, z_i, z_j):
        traced.append(basis)
        return descriptor(basis, d, z_i, z_j)

    f = jax.jit(f, static_argnums=0)
    arguments = jnp.ones((1, 1, 3)), jnp.zeros(1, int), jnp.zeros((1, 1), int)
    assert len(f(ace_basis(("Si",), 5, 1, 3), *arguments)) == 3
    f(ace_basis(("Si",), 5.0, 1, 3), *arguments)
    assert len(traced) == 1
    assert len(f(ace_basis(("Si",), 5, 1, 4), *arguments)) == 4
    assert len(traced) == 2


def test_smoothness_prior():
    basis = BASES["AlCu-o3-d6"]
    for p in (2, 3):
        prior = basis.smoothness(p)
        for label, value in zip(basis.labels, prior, strict=True):
            n = label.factors[0][1]
            rough = n**p if label.centre is None else sum(n**p + degree**p for _, n, degree in label.factors)
            assert value == 1 + rough


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((("Xx",),), "'Xx' is not a chemical symbol"),
        ((("Al", "Al"),), "distinct"),
        (((),), "distinct and at least one"),
        ((("Al",), -1.0), "cutoff must be a positive"),
        ((("Al",), float("nan")), "cutoff must be a positive"),
        ((("Al",), 1.5), "inside the repulsive core"),
        ((("Al",), 5.0, 0), "order and max_degree"),
        ((("Al",), 5.0, 2, 0), "order and max_degree"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ace_basis(*arguments)
