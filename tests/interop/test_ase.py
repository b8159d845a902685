from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import fcc111
from ase.calculators.calculator import PropertyNotImplementedError
from ase.filters import StrainFilter
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS

import haljax as hx
from haljax.evaluation import _evaluate, _stds
from haljax.rows import all_rows, examples
from haljax.structures import neighbour_list
from haljax.training import features

H = 1e-4  # Å: errors of central differences are then some H^2 and 1e-16 eV / H, both below 1e-7


@pytest.fixture
def atoms(alloy, tiny_model):
    atoms = alloy(100, (1, 1, 1))
    atoms.calc = hx.Calculator(tiny_model)
    return atoms


@pytest.fixture
def molecule(tiny_model):
    atoms = Atoms("AlCuAl", [[0, 0, 0], [2.5, 0.1, 0], [0.3, 2.4, 0.2]])
    atoms.calc = hx.Calculator(tiny_model)
    return atoms


def slope(atoms, change, value=Atoms.get_potential_energy):
    """Central difference of ``value`` under ``change(copy, h)``."""
    found = []
    for h in (H, -H):
        copy = atoms.copy()
        copy.calc = atoms.calc
        change(copy, h)
        found.append(value(copy))
    return (found[0] - found[1]) / (2 * H)


def shifted(model, by):
    """The model with other energies of the isolated elements."""
    mean = model.posterior.mean.at[len(model.basis) :].add(by)
    return replace(model, posterior=model.posterior._replace(mean=mean))


def moved(i, x):
    def change(atoms, h):
        atoms.positions[i, x] += h

    return change


def test_forces_are_the_gradient(atoms, molecule):
    for structure in (atoms, molecule):
        forces = structure.get_forces().copy()
        for i, x in ((0, 0), (1, 1), (2, 2)):
            np.testing.assert_allclose(forces[i, x], -slope(structure, moved(i, x)), atol=1e-6)
        np.testing.assert_allclose(forces.sum(axis=0), 0, atol=1e-12)


def test_another_model_gives_other_results(atoms, tiny_model):
    forces, other = atoms.get_forces(), shifted(tiny_model, 1.0)
    energy = atoms.get_potential_energy()
    atoms.calc.model = other
    assert atoms.get_potential_energy() == pytest.approx(energy + len(atoms), rel=1e-12)
    np.testing.assert_array_equal(atoms.get_forces(), forces)


def test_energies_of_atoms_add_up(atoms, molecule, tiny_model):
    alone = Atoms("Cu")
    alone.calc = atoms.calc
    for structure in (atoms, molecule, alone):
        energies = structure.get_potential_energies()
        assert energies.shape == (len(structure),)
        # Sums of the same numbers in another order.
        assert energies.sum() == pytest.approx(structure.get_potential_energy(), rel=1e-12)
    # What is out of reach of the others has its own energy, and they keep theirs.
    both = atoms.copy() + Atoms("Cu", [[40, 40, 40]])
    both.pbc, both.calc = False, atoms.calc
    assert both.get_potential_energies()[-1] == pytest.approx(alone.get_potential_energy(), rel=1e-12)


def test_stress_is_the_strain_derivative(atoms):
    stress = atoms.get_stress()
    for voigt, (a, b) in enumerate(((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))):

        def strained(copy, h, a=a, b=b):
            strain = np.zeros((3, 3))
            strain[a, b] += h / 2
            strain[b, a] += h / 2
            copy.set_cell(copy.cell @ (np.eye(3) + strain), scale_atoms=True)

        np.testing.assert_allclose(stress[voigt], slope(atoms, strained) / atoms.get_volume(), atol=1e-7)


def test_standard_deviations_are_exact(atoms, molecule, tiny_model):
    """sqrt(scale^2 (x Sigma x + core^2) + noise^2) times the calibration factor; x of a force by finite differences."""
    spread = tiny_model.spread._replace(scale=np.array([1.3, 0.7, 1.1]), noise=np.array([0.002, 0.05, 0.03]))
    model = replace(tiny_model, spread=spread, energy_calibration=2.0, force_calibration=3.0, stress_calibration=5.0)
    factor = np.asarray(model.spread.factor)
    for structure in (atoms, molecule):
        structure.calc = hx.Calculator(model)
        rows = all_rows(model.basis, *next(examples(model.basis, [structure])), model.radii, model.density)

        def described(copy):
            return features(model, [copy])[0]

        x, n = described(structure), len(structure)
        energy_std = structure.calc.get_property("energy_std", structure)
        model_part = x @ factor @ factor.T @ x + float(rows.core_energy) ** 2
        np.testing.assert_allclose(energy_std, 2 * np.sqrt(1.3**2 * model_part + (n * 0.002) ** 2), rtol=1e-10)
        forces_std = structure.calc.get_property("forces_std", structure)
        assert forces_std.shape == (n, 3)
        for i, axis in ((0, 0), (1, 1), (2, 2)):
            gradient = slope(structure, moved(i, axis), described)
            model_part = np.sum((factor.T @ gradient) ** 2) + float(rows.core_forces[i, axis]) ** 2
            expected = 3 * np.sqrt(0.7**2 * model_part + 0.05**2)
            np.testing.assert_allclose(forces_std[i, axis], expected, rtol=1e-5)
    structure = atoms
    stress_std = structure.calc.get_property("stress_std", structure)
    for voigt, (a, b) in ((0, (0, 0)), (3, (1, 2))):

        def strained(copy, h, a=a, b=b):
            strain = np.zeros((3, 3))
            strain[a, b] += h / 2
            strain[b, a] += h / 2
            copy.set_cell(copy.cell @ (np.eye(3) + strain), scale_atoms=True)

        gradient = slope(structure, strained, lambda copy: features(model, [copy])[0])
        model_part = np.sum((factor.T @ gradient) ** 2)  # no core in this cell
        expected = 5 * np.sqrt(1.1**2 * model_part + (len(structure) * 0.03) ** 2) / structure.get_volume()
        np.testing.assert_allclose(stress_std[voigt], expected, rtol=1e-5)


def test_results_are_plain_and_complete(atoms):
    atoms.get_potential_energy()
    results = atoms.calc.results
    assert set(results) == {"energy", "free_energy", "forces", "stress", "energy_std"}
    assert all(type(results[key]) is float for key in ("energy", "free_energy", "energy_std"))
    assert results["energy"] == results["free_energy"] == atoms.get_potential_energy(force_consistent=True)
    assert type(results["forces"]) is type(results["stress"]) is np.ndarray
    assert results["forces"].shape == (4, 3) and results["stress"].shape == (6,)
    # Asking for more keeps what was there.
    energy, std = atoms.get_potential_energy(), atoms.calc.get_property("forces_std", atoms)
    assert atoms.get_potential_energy() == energy and std is not None
    atoms.positions[0, 0] += 0.1
    assert atoms.get_potential_energy() != energy
    assert not np.array_equal(atoms.calc.get_property("forces_std", atoms), std)


def test_molecules_have_no_stress(molecule):
    with pytest.raises(PropertyNotImplementedError, match="three independent vectors"):
        molecule.get_stress()
    molecule.get_forces()
    assert "stress" not in molecule.calc.results


def test_a_slab_has_the_stress_of_its_cell(tiny_model):
    """Per volume of the cell, so that a filter relaxes what it is told to; twice the vacuum is half the stress."""
    slab = fcc111("Al", (1, 1, 3), vacuum=6.0)
    slab.calc = hx.Calculator(tiny_model)
    assert slab.pbc.tolist() == [True, True, False]
    stress = slab.get_stress()
    for voigt, (a, b) in ((0, (0, 0)), (1, (1, 1)), (2, (2, 2)), (5, (0, 1))):

        def strained(copy, h, a=a, b=b):
            strain = np.zeros((3, 3))
            strain[a, b] += h / 2
            strain[b, a] += h / 2
            copy.set_cell(copy.cell @ (np.eye(3) + strain), scale_atoms=True)

        np.testing.assert_allclose(stress[voigt], slope(slab, strained) / slab.get_volume(), atol=1e-7)
    assert slab.calc.get_property("stress_std", slab).shape == (6,)
    wide = slab.copy()
    wide.cell[2] *= 2
    wide.calc = slab.calc
    np.testing.assert_allclose(wide.get_stress(), stress / 2, rtol=1e-9, atol=1e-14)
    relaxed = slab.copy()
    relaxed.calc = slab.calc
    BFGS(StrainFilter(relaxed, mask=[1, 1, 0, 0, 0, 1]), logfile=None).run(fmax=1e-4, steps=50)
    assert np.abs(relaxed.get_stress()[[0, 1]]).max() < 0.1 * np.abs(stress[[0, 1]]).max()
    np.testing.assert_array_equal(relaxed.cell[2], slab.cell[2])


def test_a_calculator_from_a_file(tiny_model, atoms, tmp_path):
    tiny_model.save(tmp_path / "model.npz")
    energy = atoms.get_potential_energy()
    atoms.calc = hx.Calculator(str(tmp_path / "model.npz"))
    assert atoms.get_potential_energy() == pytest.approx(energy, rel=1e-14)


def test_neither_order_nor_origin_nor_image_matters(atoms):
    energy, forces, stress = atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()
    order = np.array([2, 0, 3, 1])
    other = atoms[order]
    other.positions += [0.3, -7.1, 11.0]
    other.positions[1] += other.cell[0] - 2 * other.cell[2]
    other.calc = atoms.calc
    np.testing.assert_allclose(other.get_potential_energy(), energy, rtol=1e-12)
    np.testing.assert_allclose(other.get_forces(), forces[order], atol=1e-11)
    np.testing.assert_allclose(other.get_stress(), stress, atol=1e-12)


def test_a_supercell_is_so_many_cells(atoms):
    """Also checks cells that are smaller than the cutoff against those that are not."""
    large = atoms * (2, 1, 3)
    large.calc = atoms.calc
    np.testing.assert_allclose(large.get_potential_energy(), 6 * atoms.get_potential_energy(), rtol=1e-12)
    np.testing.assert_allclose(large.get_stress(), atoms.get_stress(), atol=1e-12)


def test_isolated_atoms_have_their_one_body_energy(tiny_model):
    for element, energy in zip(("Al", "Cu"), tiny_model.e0, strict=True):
        alone = Atoms(element)
        alone.calc = hx.Calculator(tiny_model)
        assert alone.get_potential_energy() == energy
        assert not alone.get_forces().any()
        # No structure says what a single atom has: far more uncertain than a crystal's energy per atom.
        assert alone.calc.results["energy_std"] > 0.3


def test_neighbour_capacity_grows(atoms, tiny_model):
    """A cell compressed on the way needs more slots than it began with; one calculator serves both."""
    atoms.get_potential_energy()
    start = atoms.calc._capacity
    atoms.set_cell(0.8 * atoms.cell.array, scale_atoms=True)
    fresh = atoms.copy()
    fresh.calc = hx.Calculator(tiny_model)
    np.testing.assert_allclose(atoms.get_potential_energy(), fresh.get_potential_energy(), rtol=1e-12)
    np.testing.assert_allclose(atoms.get_forces(), fresh.get_forces(), atol=1e-10)
    grown = atoms.calc._capacity
    assert grown == fresh.calc._capacity > start
    atoms.set_cell(1.4 * atoms.cell.array, scale_atoms=True)
    atoms.get_potential_energy()
    assert atoms.calc._capacity == grown


@pytest.fixture
def lists(monkeypatch):
    """The neighbour lists that calculators make, as they make them."""
    made = []

    def spy(*arguments):
        made.append(neighbour_list(*arguments))
        return made[-1]

    monkeypatch.setattr("haljax.interop.ase.neighbour_list", spy)
    return made


def assert_as_with_a_fresh_list(atoms, model):
    fresh = atoms.copy()
    fresh.calc = hx.Calculator(model)
    np.testing.assert_allclose(atoms.get_potential_energy(), fresh.get_potential_energy(), rtol=1e-12)
    for name in ("forces", "energy_std", *(["stress"] if atoms.pbc.all() else [])):
        ours, theirs = (a.calc.get_property(name, a) for a in (atoms, fresh))
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)


def test_a_list_is_reused_with_the_results_of_a_fresh_one(alloy, tiny_model, lists):
    """A walk of 50 steps that takes every atom many times the skin, out of the cell."""
    atoms, rng, made = alloy(100, (1, 1, 1)), np.random.default_rng(1), 0
    atoms.calc, drift = hx.Calculator(tiny_model), np.array([0.05, 0.02, 0])
    for _ in range(50):
        atoms.positions += drift + 0.01 * rng.normal(size=(4, 3))
        atoms.get_potential_energy()
        made += len(lists)
        assert_as_with_a_fresh_list(atoms, tiny_model)
        lists.clear()
    assert 5 < made < 20


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a.positions.__setitem__(0, a.positions[0] + [0, 0.26, 0]),
        lambda a: a.positions.__setitem__(1, a.positions[1] - a.cell[2]),
        lambda a: a.set_cell(a.cell.array * (1 + 1e-9)),
        lambda a: a.symbols.__setitem__(0, "Cu" if a.symbols[0] == "Al" else "Al"),
        lambda a: a.pop(),
        lambda a: a.append("Cu"),
        lambda a: a.set_pbc((True, True, False)),
    ],
    ids=["half the skin", "boundary", "cell", "species", "fewer", "more", "pbc"],
)
def test_what_needs_a_new_list_gets_one(atoms, tiny_model, lists, change):
    atoms.get_potential_energy()
    atoms.positions += 0.1
    atoms.get_forces()
    assert len(lists) == 1
    change(atoms)
    atoms.get_forces()
    assert len(lists) == 2
    assert_as_with_a_fresh_list(atoms, tiny_model)


def test_a_trajectory_compiles_once_and_conserves_energy(atoms):
    atoms.get_potential_energy()
    compiled = _evaluate._cache_size()
    thermal = np.sqrt(300 * units.kB / atoms.get_masses())[:, None]
    atoms.set_velocities(thermal * np.random.default_rng(0).normal(size=(4, 3)))
    start = atoms.get_total_energy()
    VelocityVerlet(atoms, 1.0 * units.fs).run(20)
    assert _evaluate._cache_size() == compiled
    # 300 K of 4 atoms are 0.16 eV; the integrator's own error at 1 fs is some 1e-3 of it.
    assert abs(atoms.get_total_energy() - start) < 1e-3


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a.positions.__setitem__((0, 0), a.positions[0, 0] + 1e-9),
        lambda a: a.symbols.__setitem__(0, "Cu" if a.symbols[0] == "Al" else "Al"),
        lambda a: a.set_cell(a.cell * 1.001),
        lambda a: a.set_pbc((True, True, False)),
        lambda a: a.__delitem__(0),
    ],
)
def test_any_change_calls_for_a_calculation(atoms, change):
    before = atoms.get_potential_energy()
    assert not atoms.calc.check_state(atoms)
    change(atoms)
    assert atoms.calc.check_state(atoms)
    assert atoms.get_potential_energy() != before


def test_charges_do_not_matter(atoms):
    atoms.get_potential_energy()
    atoms.set_initial_charges(np.ones(len(atoms)))
    assert not atoms.calc.calculation_required(atoms, ["energy", "forces"])


def test_other_model_same_shapes_compiles_nothing(atoms, tiny_model):
    """Coefficients are arguments, not constants, of what is compiled."""
    atoms.get_potential_energy()
    atoms.calc.get_property("forces_std", atoms)
    compiled = _evaluate._cache_size(), _stds._cache_size()
    atoms.calc = hx.Calculator(shifted(tiny_model, 1.0))
    energy = atoms.get_potential_energy()
    atoms.calc.get_property("forces_std", atoms)
    assert (_evaluate._cache_size(), _stds._cache_size()) == compiled
    atoms.calc = hx.Calculator(tiny_model)
    np.testing.assert_allclose(energy - atoms.get_potential_energy(), 4, rtol=1e-10)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda a: a.symbols.__setitem__(0, "Ge"), "Ge is not among the basis' elements"),
        (lambda a: a.positions.__setitem__(0, a.positions[1]), "on one place"),
        (lambda a: a.positions.__setitem__((0, 0), np.nan), "positions of atoms .0. are not finite"),
        (lambda a: a.set_cell(np.zeros((3, 3))), "has no volume"),
    ],
)
def test_bad_structures(atoms, spoil, message):
    atoms.get_potential_energy()
    spoil(atoms)
    for _ in range(2):  # nor does a failure leave the results of before behind
        with pytest.raises(ValueError, match=message):
            atoms.get_potential_energy()
