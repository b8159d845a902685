from __future__ import annotations

import io

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.io import read, write

from haljax.structures import labels, with_labels

FORCES = np.arange(12.0).reshape(4, 3)
STRESS = np.array([1.0, 2.0, 3.0, 0.1, 0.2, 0.3])
FULL = np.array([[1.0, 0.3, 0.2], [0.3, 2.0, 0.1], [0.2, 0.1, 3.0]])


def cubic():
    return bulk("Al", cubic=True)


def test_single_point_calculator():
    out = labels(with_labels(cubic(), -3.5, FORCES, STRESS))
    assert out.energy == -3.5
    np.testing.assert_array_equal(out.forces, FORCES)
    np.testing.assert_array_equal(out.stress, STRESS)
    assert out.energy_weight == out.stress_weight == 1 and np.all(out.force_weight == np.ones((4, 3)))


def test_the_energy_that_forces_are_the_derivative_of():
    """Of smeared electrons it is the free energy; extended XYZ keeps both."""
    atoms = with_labels(cubic(), -3.5, FORCES)
    atoms.calc.results["free_energy"] = -3.25
    assert labels(atoms).energy == -3.25
    file = io.StringIO()
    write(file, atoms, format="extxyz")
    file.seek(0)
    assert labels(read(file, format="extxyz")).energy == -3.25


def test_live_calculator_and_stale_results():
    atoms = cubic()
    atoms.rattle(0.1, seed=0)
    atoms.calc = EMT()
    energy, stress = atoms.get_potential_energy(), atoms.get_stress()
    assert labels(atoms).energy == energy
    np.testing.assert_array_equal(labels(atoms).stress, stress)
    atoms.positions[0, 0] += 0.1
    with pytest.raises(ValueError, match="results belong to other positions"):
        labels(atoms)
    assert atoms.calc.results["energy"] == energy  # reading disturbs nothing


def test_info_and_arrays():
    atoms = cubic()
    atoms.info.update(energy=-1.0, stress=FULL)
    atoms.arrays["forces"] = FORCES
    out = labels(atoms)
    assert out.energy == -1.0
    np.testing.assert_array_equal(out.forces, FORCES)
    np.testing.assert_allclose(out.stress, STRESS, rtol=1e-15)


@pytest.mark.parametrize("stress", [STRESS, FULL])
def test_virial_is_minus_volume_times_stress(stress):
    atoms = cubic()
    atoms.info["virial"] = -atoms.get_volume() * stress
    out = labels(atoms)
    np.testing.assert_allclose(out.stress, STRESS, rtol=1e-14)
    assert np.isnan(out.energy) and np.isnan(out.forces).all() and out.forces.shape == (4, 3)


def test_stress_needs_a_volume():
    """Of a slab in its cell it is a label; where there is no volume, or no axis is periodic, it means nothing."""
    atoms = cubic()
    atoms.pbc = (True, True, False)
    np.testing.assert_array_equal(labels(with_labels(atoms, -1.0, stress=STRESS)).stress, STRESS)
    for change in ({"pbc": False}, {"cell": [*atoms.cell[:2], [0, 0, 0]]}):
        other = atoms.copy()
        for name, value in change.items():
            getattr(other, f"set_{name}")(value)
        assert np.isnan(labels(with_labels(other, -1.0, stress=STRESS)).stress).all()
        with pytest.raises(ValueError, match="no energy, forces or stress"):
            labels(with_labels(other, stress=STRESS))


def test_weights():
    atoms = with_labels(cubic(), -1.0, FORCES)
    atoms.info.update(energy_weight=2, force_weight=3.0, stress_weight=0)
    atoms.arrays["force_weight"] = np.array([1.0, 0.0, 2.0, 1.0])
    out = labels(atoms)
    assert (out.energy_weight, out.stress_weight) == (2.0, 0.0)
    np.testing.assert_array_equal(out.force_weight, np.outer([3.0, 0, 6, 3], np.ones(3)))
    atoms.arrays["force_weight"] = FORCES
    np.testing.assert_array_equal(labels(atoms).force_weight, 3 * FORCES)


def test_extended_xyz_round_trip():
    buffer = io.StringIO()
    write(buffer, with_labels(cubic(), -3.5, FORCES, STRESS), format="extxyz")
    buffer.seek(0)
    out = labels(read(buffer, format="extxyz"))
    assert out.energy == -3.5
    np.testing.assert_allclose(out.forces, FORCES, atol=1e-8)  # eight decimals in the file
    np.testing.assert_allclose(out.stress, STRESS, atol=1e-8)


def test_with_labels_replaces_older_ones():
    atoms = cubic()
    atoms.info.update(energy=7.0, note="kept")
    atoms.arrays["forces"] = FORCES
    new = with_labels(atoms, energy=-1.0)
    assert labels(new).energy == -1.0 and np.isnan(labels(new).forces).all()
    assert new.info == {"note": "kept"} and atoms.info["energy"] == 7.0 and atoms.calc is None


def nan_forces():
    forces = FORCES.copy()
    forces[1, 1] = np.nan
    return forces


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(), r"structure 3 \(Al4\) has no energy, forces or stress; attach them"),
        (dict(energy=np.nan), "energy is NaN or infinite"),
        (dict(forces=nan_forces()), "forces is NaN or infinite"),
        (dict(forces=FORCES[:, :2]), r"forces has shape \(4, 2\), not \(4, 3\)"),
        (dict(stress=STRESS[:5]), r"stress has shape \(5,\), not \(6,\) or \(3, 3\) or \(9,\)"),
        (dict(energy=[1.0, 2.0]), r"energy has shape \(2,\), not \(\)"),
        (dict(energy=1.0, energy_weight=-1.0), "energy_weight is negative"),
        (dict(energy=1.0, force_weight=np.nan), "force_weight is NaN"),
    ],
)
def test_errors(change, message):
    atoms = cubic()
    for key, value in change.items():
        (atoms.arrays if key == "forces" else atoms.info)[key] = value
    with pytest.raises(ValueError, match=message):
        labels(atoms, index=3)


def test_wrong_shape_in_a_calculator():
    atoms = with_labels(cubic(), -1.0)
    atoms.calc.results["forces"] = FORCES[:3]
    with pytest.raises(ValueError, match=r"structure \(Al4\): forces has shape \(3, 3\), not \(4, 3\)"):
        labels(atoms)
