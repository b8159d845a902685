"""A basis that the data choose."""

from __future__ import annotations

import logging
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule

import haljax as hx
from haljax import growth
from haljax.ace import GrowingBasis
from haljax.growth import LEAST_GAIN, cost, error
from haljax.potentials import Parameters, total_energy
from haljax.rows import examples
from haljax.structures import with_labels

ALCU = ("Al", "Cu")


# ------------------------------------------------------------------------------------------------ what may be chosen


def test_auto_leaves_a_size_to_the_data():
    assert hx.ace_basis(ALCU, max_degree="auto") == GrowingBasis(ALCU, 5.0, 3, None)
    assert hx.ace_basis(ALCU, "auto", "auto", "auto", budget=8) == GrowingBasis(ALCU, None, None, None, 8)
    assert isinstance(hx.ace_basis(ALCU), hx.ACEBasis)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_degree": "automatic"}, "max_degree must be a number or 'auto', not 'automatic'"),
        ({"budget": 5.0}, "a budget chooses among bases"),
        ({"max_degree": "auto", "budget": 0}, "budget must be a positive time in µs per atom, not 0"),
        ({"max_degree": "auto", "cutoff": -1}, "cutoff must be a positive distance"),
        ({"max_degree": "auto", "order": 0}, "order and max_degree must be at least 1"),
    ],
)
def test_what_cannot_be_chosen_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        hx.ace_basis(ALCU, **arguments)


def test_only_what_is_auto_changes():
    basis = hx.ace_basis(ALCU, 4.0, 2, 6)

    def steps(**auto):
        values = {"cutoff": 4.0, "order": 2, "max_degree": 6} | auto
        return [(b.cutoff, b.order, b.max_degree) for b in hx.ace_basis(ALCU, **values).neighbours(basis)]

    assert steps(max_degree="auto") == [(4.0, 2, 8), (4.0, 2, 7)]
    assert steps(cutoff="auto") == [(4.6, 2, 6), (3.48, 2, 6)]
    assert steps(order="auto") == [(4.0, 3, 6)]
    # A higher order begins at a degree with about as many functions.
    ((_, order, degree),) = set(steps(order="auto", max_degree="auto")) - {(4.0, 2, 8), (4.0, 2, 7)}
    size, above = (len(hx.ace_basis(ALCU, 4.0, 3, d)) for d in (degree, degree + 1))
    assert order == 3 and size <= 1.5 * len(basis) < above


# ------------------------------------------------------------------------------------------------ the search


@pytest.fixture(scope="module")
def reference():
    """A potential of order 2 and degree 7, in which high functions matter as much as low ones."""
    basis = hx.ace_basis(("Cu",), 4.0, 2, 7)
    rng = np.random.default_rng(0)
    cells = []
    for _ in range(16):
        atoms = bulk("Cu", cubic=True)
        atoms.positions += 0.15 * rng.standard_normal((4, 3))
        cells.append(with_labels(atoms, 0.0, np.zeros((4, 3)), np.zeros(6)))
    model = hx.fit(basis, cells, e0={"Cu": 0.0}, solver="brr")
    std = 1 / np.sqrt(basis.smoothness(1.0))
    mean = jnp.asarray(np.append(std * rng.standard_normal(len(basis)), 0.0))
    truth = replace(model, posterior=model.posterior._replace(mean=mean))
    labelled = []
    for atoms in cells:
        copy = Atoms(atoms.symbols, atoms.positions, cell=atoms.cell, pbc=True)
        copy.calc = hx.Calculator(truth)
        forces = copy.get_forces() + 3e-3 * rng.standard_normal((4, 3))  # a floor that no basis goes below
        labelled.append(with_labels(copy, copy.get_potential_energy(), forces, copy.get_stress()))
    return truth, labelled


@pytest.fixture(scope="module")
def chosen(reference):
    return hx.fit(hx.ace_basis(("Cu",), 4.0, 2, "auto"), reference[1])


def test_it_grows_as_far_as_the_reference_and_no_further(chosen, reference):
    """At the reference's own degree errors left out fall to the noise of the labels, which no smaller basis reaches."""
    assert chosen.basis.max_degree in (7, 8)
    smaller = hx.fit(hx.ace_basis(("Cu",), 4.0, 2, 6), reference[1])
    assert chosen.loo.force < 0.3 * smaller.loo.force


def test_what_is_chosen_is_the_plain_fit_of_that_basis(chosen, reference):
    plain = hx.fit(chosen.basis, reference[1])
    np.testing.assert_array_equal(chosen.posterior.mean, plain.posterior.mean)
    np.testing.assert_array_equal(chosen.spread.factor, plain.spread.factor)
    assert chosen.choice == plain.choice and chosen.basis.words() in chosen.choice


def test_no_neighbour_of_what_is_chosen_is_better(chosen, reference):
    for basis in hx.ace_basis(("Cu",), 4.0, 2, "auto").neighbours(chosen.basis):
        assert error(hx.fit(basis, reference[1])) >= (1 - LEAST_GAIN) * error(chosen)


def test_a_refit_may_go_on_growing(reference):
    growing = hx.ace_basis(("Cu",), 4.0, 2, "auto")
    small = hx.fit(hx.ace_basis(("Cu",), 4.0, 2, 5), reference[1][:8])
    assert hx.refit(small, reference[1][8:]).basis == small.basis
    larger = hx.refit(small, reference[1][8:], grow=growing)
    assert larger.basis.max_degree >= 7 and larger.n_structures == 16


def test_fits_that_are_not_chosen_do_not_warn(reference, caplog):
    """Each warning once, that of the fit that is returned."""
    far = reference[1][0].copy()
    far.positions[1] = far.positions[0] + [0.5, 0, 0]
    far = with_labels(far, 100.0, np.zeros((4, 3)))
    hx.fit(hx.ace_basis(("Cu",), 4.0, 2, "auto"), [*reference[1][:6], far])
    assert caplog.text.count("atoms as close as in no other structure") == 1


def test_without_errors_left_out_the_smallest_stays(reference, caplog):
    model = hx.fit(hx.ace_basis(("Cu",), 4.0, 2, "auto"), reference[1][:2])
    assert model.basis.max_degree == 6
    assert "there are no leave-one-out errors to choose a basis by, so it stays the smallest, order 2" in caplog.text


# ------------------------------------------------------------------------------------------------ the budget


def test_a_budget_bounds_the_basis(reference, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "haljax.growth")
    monkeypatch.setattr(growth, "cost", lambda basis, atoms: float(len(basis)))  # a machine of 1 µs per function
    most = len(hx.ace_basis(("Cu",), 4.0, 2, 5))
    model = hx.fit(hx.ace_basis(("Cu",), 4.0, 2, "auto", budget=most), reference[1])
    assert model.basis.max_degree == 5  # from 4, the first degree within it
    assert "order 2, degree 6" in caplog.text and "over the budget" in caplog.text


def test_a_budget_that_no_basis_meets_is_refused(reference):
    with pytest.raises(ValueError, match=r"no basis meets the budget of 1e-06 µs per atom: the smallest, order 2, deg"):
        hx.fit(hx.ace_basis(("Cu",), 4.0, 2, "auto", budget=1e-6), reference[1])


@pytest.mark.parametrize("atoms", [bulk("Cu", cubic=True), molecule("H2O")], ids=["crystal", "molecule"])
def test_what_is_timed_are_copies_of_the_structure(atoms):
    """A larger cell, or molecules that do not see each other: the energy is so many times its own."""
    basis = hx.ace_basis(sorted(set(atoms.symbols)), 4.0, 2, 4)
    params = Parameters(jnp.zeros(basis.n_species), jnp.ones(len(basis)), jnp.zeros((0, 0)))
    many = growth._repeated(atoms, basis.cutoff)
    assert growth.TIMED_ATOMS <= len(many) < growth.TIMED_ATOMS + len(atoms)
    one, all_ = (total_energy(basis, params, *next(examples(basis, [a]))) for a in (atoms, many))
    np.testing.assert_allclose(all_, one * len(many) / len(atoms), rtol=1e-9)
    assert 0 < cost(basis, atoms) < 1e5
