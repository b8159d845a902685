"""Rows of the design matrix, the table that holds them, and core radii from distances in the data."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk

import haljax as hx
from haljax import rows
from haljax.ace import n_density
from haljax.ace.core import switched_zbl
from haljax.potentials import n_features
from haljax.rows import (
    CORE_MARGIN,
    Table,
    Weights,
    all_features,
    all_rows,
    blocks_of,
    design_rows,
    examples,
    radii_from,
    reference_densities,
    shortest_distances,
    too_close,
)
from haljax.structures import with_labels
from haljax.training import descriptors

MOLECULE = Atoms("AlCuAl", [[0, 0, 0], [2.5, 0.1, 0], [0.3, 2.4, 0.2]])


@pytest.fixture(scope="module")
def basis(tiny_model):
    return tiny_model.basis


@pytest.fixture(scope="module")
def dense(alloy):
    """A cell so dense that the core is felt."""
    atoms = alloy(3, (1, 1, 1))
    atoms.set_cell(0.75 * atoms.cell.array, scale_atoms=True)
    return atoms


@pytest.mark.parametrize("compressed", [False, True], ids=["core of the basis", "core of compressed data"])
def test_rows_are_the_features_and_their_derivatives(basis, tiny_model, tiny_data, dense, compressed):
    """Functions of the basis, counts, functions of the density, at other core radii than those of the basis too.

    Central differences with h = 2e-5 Å: the errors, some h^2 times third derivatives, are below 1e-7.
    """
    h, M = 2e-5, len(basis)
    radii = (0.75 if compressed else 1.0) * np.stack(basis.core_radii)
    density = tiny_model.density
    assert np.all(density > 0)

    def featured(structures):
        return [np.asarray(all_features(basis, *e, radii, density)) for e in examples(basis, structures)]

    for atoms, example in zip((dense, MOLECULE), examples(basis, [dense, MOLECULE]), strict=True):
        found = all_rows(basis, *example, radii, density)
        assert found.energy.shape == (n_features(basis),) == (M + 2 + n_density(basis),)

        def slope(change, atoms=atoms):
            pair = [atoms.copy(), atoms.copy()]
            change(pair[0], h)
            change(pair[1], -h)
            plus, minus = featured(pair)
            return (plus - minus) / (2 * h)

        np.testing.assert_allclose(found.energy, featured([atoms])[0], rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(found.energy[:M], descriptors(basis, [atoms], radii)[0], rtol=1e-12, atol=1e-12)
        np.testing.assert_array_equal(found.energy[M : M + 2], [np.sum(atoms.symbols == e) for e in basis.elements])
        assert np.abs(found.energy[M + 2 :]).max() > 1e-3, "the density tells nothing"
        assert not np.any(np.asarray(found.forces)[:, :, M : M + 2]) and not np.any(found.virial[:, M : M + 2])
        scale = np.abs(found.forces).max()
        for i, x in ((0, 0), (1, 1), (2, 2)):

            def move(copy, h, i=i, x=x):
                copy.positions[i, x] += h

            np.testing.assert_allclose(found.forces[i, x], -slope(move), rtol=0, atol=1e-6 * scale)
        assert not np.any(np.asarray(found.forces)[len(atoms) :])  # padded atoms
        if not atoms.pbc.all():
            continue
        for voigt, (a, b) in ((0, (0, 0)), (3, (1, 2)), (4, (0, 2)), (5, (0, 1))):

            def strain(copy, h, a=a, b=b):
                e = np.zeros((3, 3))
                e[a, b] += h / 2
                e[b, a] += h / 2
                copy.set_cell(copy.cell @ (np.eye(3) + e), scale_atoms=True)

            np.testing.assert_allclose(found.virial[voigt], -slope(strain), rtol=0, atol=1e-6 * scale)


def test_functions_of_the_density_vanish_in_the_reference_crystal(basis, tiny_model):
    """They are 0 at the mean density of the data, and matter away from it alone; unknown elements have none."""
    crystal = bulk("Al", cubic=True)
    (example,) = examples(basis, [crystal])
    density = reference_densities(basis, [example])
    M = len(basis) + 2
    np.testing.assert_allclose(all_features(basis, *example, tiny_model.radii, density)[M:], 0, atol=1e-12)
    stretched = crystal.copy()
    stretched.set_cell(1.05 * crystal.cell.array, scale_atoms=True)
    (example,) = examples(basis, [stretched])
    assert np.abs(all_features(basis, *example, tiny_model.radii, density)[M:]).max() > 0.1
    assert not np.any(density[:, 1])
    (example,) = examples(basis, [bulk("Cu")])
    np.testing.assert_array_equal(all_features(basis, *example, tiny_model.radii, density)[M:], 0)


def test_rows_agree_with_the_calculator(tiny_model, basis, dense):
    """Two independent routes, reverse mode and the closed chain rule, to the same linear model."""
    for atoms, example in zip((dense.copy(), MOLECULE.copy()), examples(basis, [dense, MOLECULE]), strict=True):
        found = design_rows(basis, *example, tiny_model.radii)
        n = len(atoms)
        for k in (0, 7, 20, 64):
            unit = tiny_model.posterior._replace(mean=jnp.zeros(len(basis) + 2).at[k].set(1.0))
            atoms.calc = hx.Calculator(replace(tiny_model, posterior=unit))
            energy, forces = atoms.get_potential_energy(), atoms.get_forces()
            np.testing.assert_allclose(found.energy[k] + found.core_energy, energy, rtol=1e-12)
            np.testing.assert_allclose((found.forces[..., k] + found.core_forces)[:n], forces, atol=1e-9)
            if atoms.pbc.all():
                assert abs(found.core_energy) > 0.05
                virial = -atoms.get_stress() * atoms.get_volume()
                np.testing.assert_allclose(found.virial[:, k] + found.core_virial, virial, atol=1e-9)


def test_the_core_is_not_fitted(basis):
    """Labels that the fixed repulsive core explains leave nothing to the coefficients."""
    inner, outer = (radii[0, 1] for radii in basis.core_radii)

    def core(r):
        return switched_zbl(r, 13.0, 29.0, inner, outer)

    dimers = []
    for r in np.linspace(0.8 * inner, 1.1 * outer, 12):
        pull = float(jax.grad(core)(r))
        dimer = Atoms("AlCu", [[0, 0, 0], [0, 0, r]])
        dimers.append(with_labels(dimer, float(core(r)), [[0, 0, pull], [0, 0, -pull]]))
    assert dimers[0].get_potential_energy() > 100
    density = reference_densities(basis, list(examples(basis, dimers)))
    for block in blocks_of(basis, np.stack(basis.core_radii), density, Weights(300.0, 10.0, 30.0), dimers):
        # Weighted targets of some 1e5 cancel to rounding.
        np.testing.assert_allclose(block.targets, 0, atol=1e-8)


# The table


@pytest.fixture(scope="module")
def blocks(basis, tiny_model, tiny_data):
    return list(blocks_of(basis, tiny_model.radii, tiny_model.density, Weights(300.0, 10.0, 30.0), tiny_data))


@pytest.mark.parametrize("kept", [0, 3, 8])
def test_a_table_larger_than_memory_waits_on_disk(blocks, monkeypatch, kept):
    """And gives the same blocks in the same order, as often as asked, two readers at a time too."""
    assert len({block.rows.shape for block in blocks}) == 1
    monkeypatch.setattr(rows, "IN_MEMORY", kept * blocks[0].rows.nbytes)
    table = Table(iter(blocks))
    assert len(table) == 8 and sum(isinstance(b, rows.Block) for b in table._kept) == kept
    for pair in zip(table, table, blocks, strict=True):
        for read in pair[:2]:
            for name in rows.Block._fields:
                np.testing.assert_array_equal(getattr(read, name), getattr(pair[2], name))


def test_a_fit_from_disk_is_that_from_memory(basis, tiny_data, monkeypatch):
    model = hx.fit(basis, tiny_data)
    monkeypatch.setattr(rows, "IN_MEMORY", 0)
    other = hx.fit(basis, tiny_data)
    assert not any(isinstance(b, rows.Block) for b in other.table._kept)
    np.testing.assert_array_equal(other.posterior.mean, model.posterior.mean)
    np.testing.assert_array_equal(other.spread.factor, model.spread.factor)
    assert other.loo == model.loo


# Core radii


def dimers(*distances, symbols="AlCu"):
    return [Atoms(symbols, [[0, 0, 0], [0, 0, r]]) for r in distances]


def distances_of(basis, structures):
    return shortest_distances(basis, list(examples(basis, structures)))


def radii_of(basis, structures):
    return radii_from(basis, distances_of(basis, structures))


def test_shortest_distances_are_those_of_ase(basis, alloy):
    """Also in cells smaller than the cutoff, with several images, and of pairs that are not there."""
    from ase.neighborlist import neighbor_list

    cells = [alloy(1, (1, 1, 1)), bulk("Cu"), MOLECULE, Atoms("Al")]
    found = distances_of(basis, cells)
    for atoms, shortest in zip(cells, found, strict=True):
        i, j, d = neighbor_list("ijd", atoms, basis.cutoff)
        for a, one in enumerate(basis.elements):
            for b, other in enumerate(basis.elements):
                own = d[(atoms.symbols[i] == one) & (atoms.symbols[j] == other)] if len(i) else d
                assert shortest[a, b] == pytest.approx(own.min() if len(own) else np.inf, rel=1e-10)


def test_radii_follow_the_shortest_distances_with_a_margin(basis):
    """Pair by pair, never beyond the radii of the basis, which stay for pairs that no structure has."""
    inner, outer = basis.core_radii
    found = radii_of(basis, dimers(1.9, 1.8, 2.5, 2.2))
    assert found.shape == (2, 2, 2)
    assert found[1, 0, 1] == found[1, 1, 0] == pytest.approx(CORE_MARGIN * 1.9)  # the second shortest
    assert found[0, 0, 1] == pytest.approx(min(inner[0, 1], CORE_MARGIN * 1.9 / 2))
    for a in (0, 1):
        assert found[1, a, a] == outer[a, a] and found[0, a, a] == pytest.approx(min(inner[a, a], outer[a, a] / 2))
    np.testing.assert_array_equal(radii_of(basis, dimers(4.0, 4.1))[1], outer)


def test_one_structure_absurdly_close_does_not_drag_the_core_in_and_two_do(basis):
    usual = list(np.linspace(2.0, 2.6, 12))
    alone = radii_of(basis, dimers(*usual))[1, 0, 1]
    one = radii_of(basis, dimers(0.8, *usual))[1, 0, 1]
    assert one == pytest.approx(CORE_MARGIN * 2.0) and abs(one - alone) < 0.1
    two = radii_of(basis, dimers(0.8, 0.9, *usual))[1, 0, 1]
    assert two == pytest.approx(CORE_MARGIN * 0.9)
    # Of a hundred, one in twenty.
    many = list(np.linspace(2.0, 2.6, 95))
    assert radii_of(basis, dimers(*[0.8] * 5, *many))[1, 0, 1] == pytest.approx(CORE_MARGIN * 2.0)
    assert radii_of(basis, dimers(*[0.8] * 6, *many[:-1]))[1, 0, 1] == pytest.approx(CORE_MARGIN * 0.8)
    # A single structure has nobody to support it: half of the usual core stays.
    assert radii_of(basis, dimers(0.6))[1, 0, 1] == pytest.approx(0.5 * basis.core_radii[1][0, 1])


def test_what_is_too_close_is_named_with_its_pair(basis):
    structures = [*dimers(2.1, 2.2, 2.3), *dimers(0.8), *dimers(2.4, 2.5, symbols="Cu2")]
    shortest = distances_of(basis, structures)
    radii = radii_from(basis, shortest)
    found = too_close(basis, radii, shortest, structures)
    assert list(found) == [3]
    assert found[3] == f"structure 3 (AlCu): Al-Cu at 0.80 Å (core: {CORE_MARGIN * 2.1:.2f} Å)"
    # Of several pairs the one that is furthest inside.
    crowd = Atoms("AlCuCu", [[0, 0, 0], [0, 0, 1.5], [0, 0, 2.5]])
    (why,) = too_close(basis, radii, distances_of(basis, [crowd]), [crowd]).values()
    assert "Cu-Cu at 1.00 Å" in why


def test_a_fit_leaves_out_what_is_closer_than_any_other(basis, tiny_data, caplog):
    """A dimer at 0.8 Å moves nothing: it is named, and the fit is the one without it."""
    dimer = with_labels(dimers(0.8)[0], 80.0, [[0, 0, -300.0], [0, 0, 300.0]])
    model, without = hx.fit(basis, [*tiny_data[:4], dimer, *tiny_data[4:]]), hx.fit(basis, tiny_data)
    assert "structure 4 (AlCu): Al-Cu at 0.80 Å" in caplog.text
    assert list(model.ignored) == [4] and model.n_structures == 8
    # One structure more shifts which distance is supported by a structure at most.
    assert np.all(np.abs(model.radii - without.radii) < 0.15)
    a, b = (hx.evaluate(m, tiny_data)["total"]["force_rmse"] for m in (model, without))
    assert a < 1.3 * b
