from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms
from ase.units import GPa

import haljax as hx
from haljax.evaluation import LEVELS, Calibration, ErrorTable, error_table, force_stds, predict
from haljax.structures import with_labels
from haljax.training import descriptors, design_rows, examples


def off_by(model, atoms, energy=None, forces=None, stress=None):
    """Labels that the model misses by this much: eV per atom, eV/Å, GPa; None leaves a label out."""
    atoms = atoms.copy()
    atoms.calc = hx.Calculator(model)
    return with_labels(
        atoms,
        None if energy is None else atoms.get_potential_energy() - energy * len(atoms),
        None if forces is None else atoms.get_forces() - forces,
        None if stress is None else atoms.get_stress() - np.asarray(stress) * GPa,
    )


@pytest.fixture(scope="module")
def missed(tiny_model, alloy):
    """Three structures with errors known by hand, the first of twice the size."""
    one = np.zeros((8, 3))
    one[0, 0], one[7, 2] = 0.6, -0.3
    cells = [
        off_by(tiny_model, alloy(100, (2, 1, 1)), 0.003, one, [0.5, 0, 0, 0, 0, 0]),
        off_by(tiny_model, alloy(101, (1, 1, 1)), -0.004, np.full((4, 3), 0.1), [0, 0, 0, 0.1, 0.1, 0.1]),
        off_by(tiny_model, Atoms("AlCuAl", [[0, 0, 0], [2.5, 0.1, 0], [0.3, 2.4, 0.2]]), 0.012),
    ]
    cells[0].info["config_type"] = cells[1].info["config_type"] = "fcc"
    cells[2].info["config_type"] = "a rather long name"
    return cells


def test_errors_by_hand(tiny_model, missed):
    table = hx.evaluate(tiny_model, missed)
    assert list(table.rows) == ["a rather long name", "fcc", "total"]
    fcc, total, molecule = table["fcc"], table["total"], table["a rather long name"]
    expected = {
        "structures": 2,
        "energy_rmse": np.sqrt((3**2 + 4**2) / 2),
        "energy_mae": 3.5,
        "force_rmse": np.sqrt((0.6**2 + 0.3**2 + 12 * 0.1**2) / 36),
        "force_mae": (0.6 + 0.3 + 1.2) / 36,
        "stress_rmse": np.sqrt((0.5**2 + 3 * 0.1**2) / 12),
        "stress_mae": 0.8 / 12,
    }
    assert fcc == pytest.approx(expected, rel=1e-8)
    assert total["structures"] == 3
    assert total["energy_rmse"] == pytest.approx(np.sqrt((3**2 + 4**2 + 12**2) / 3), rel=1e-8)
    assert total["energy_mae"] == pytest.approx(19 / 3, rel=1e-8)
    assert {k: total[k] for k in total if k[0] in "fs" and k != "structures"} == pytest.approx(
        {k: fcc[k] for k in fcc if k[0] in "fs" and k != "structures"}
    )
    assert molecule["energy_rmse"] == pytest.approx(12) and molecule["structures"] == 1
    assert all(np.isnan(molecule[f"{what}_{kind}"]) for what in ("force", "stress") for kind in ("rmse", "mae"))


def test_the_table_is_aligned(tiny_model, missed):
    lines = str(hx.evaluate(tiny_model, missed)).splitlines()
    assert len({len(line) for line in lines}) == 1 and len(lines) == 5
    assert "nan" not in "".join(lines).lower()
    assert lines[0].split() == "n E RMSE E MAE F RMSE F MAE S RMSE S MAE".split()
    assert lines[1].split() == ["meV/atom", "meV/atom", "eV/Å", "eV/Å", "GPa", "GPa"]
    assert lines[2].startswith("a rather long name") and lines[2].split()[4:] == ["1", "12", "12", "-", "-", "-", "-"]
    assert lines[3].split() == ["fcc", "2", "3.536", "3.5", "0.1258", "0.05833", "0.1528", "0.06667"]
    # Numbers of any size stay apart.
    row = {"structures": 123456} | {
        f"{w}_{k}": 1.2345678e-10 for w in ("energy", "force", "stress") for k in ("rmse", "mae")
    }
    assert len(str(ErrorTable({"total": row})).splitlines()[2].split()) == 8


def test_one_group_needs_no_row_of_its_own(tiny_model, missed):
    assert list(hx.evaluate(tiny_model, missed[:2]).rows) == ["total"]
    assert hx.evaluate(tiny_model, missed[:2])["total"] == hx.evaluate(tiny_model, missed)["fcc"]


def test_groups_of_structures_without_a_type(tiny_model, missed):
    unnamed = missed[0].copy()
    unnamed.calc = missed[0].calc
    del unnamed.info["config_type"]
    assert list(hx.evaluate(tiny_model, [unnamed, missed[1]]).rows) == ["all", "fcc", "total"]


def test_units_and_signs_are_those_of_ase(tiny_model, tiny_data):
    """Against ASE's own numbers: EMT's from the label, the model's from the calculator."""
    predictions = predict(tiny_model, tiny_data)
    for atoms, p in zip(tiny_data, predictions, strict=True):
        np.testing.assert_allclose(p.stress_label, atoms.get_stress() / GPa, rtol=1e-12)
        np.testing.assert_array_equal(p.forces_label, atoms.get_forces())
        assert p.energy_label == pytest.approx(atoms.get_potential_energy() / 4, rel=1e-12)
        copy = atoms.copy()
        copy.calc = hx.Calculator(tiny_model)
        np.testing.assert_allclose(p.stress, copy.get_stress() / GPa, atol=1e-9)
        np.testing.assert_allclose(p.forces, copy.get_forces(), atol=1e-10)
        assert p.energy == pytest.approx(copy.get_potential_energy() / 4, rel=1e-10)
        assert p.energy_std == pytest.approx(copy.calc.results["energy_std"] / 4, rel=1e-10)
    # The model is good enough to fail here if its sign or a unit were another.
    stress = np.array([[p.stress, p.stress_label] for p in predictions])
    assert np.corrcoef(stress[:, 0].ravel(), stress[:, 1].ravel())[0, 1] > 0.99
    assert 1 < np.abs(stress).max() < 100
    assert error_table(predictions).rows == hx.evaluate(tiny_model, tiny_data).rows


def test_force_stds_are_exact(tiny_model, tiny_data):
    """The root of the diagonal of G Sigma G^T, G the rows of the forces."""
    model = replace(tiny_model, force_calibration=2.0)
    found = force_stds(model, tiny_data[:2])
    factor = np.asarray(model.posterior.factor)
    for std, example in zip(found, examples(model.basis, tiny_data[:2]), strict=True):
        rows = np.asarray(design_rows(model.basis, *example).forces)
        covariance = np.einsum("ixm,mk,nk,ixn->ix", rows, factor, factor, rows)
        np.testing.assert_allclose(std, 2 * np.sqrt(covariance), rtol=1e-9)


def test_calibration_finds_the_factor(tiny_model, alloy):
    """Labels drawn with errors 3 (energies) and 5 (forces) times what the model expects."""
    model, rng = tiny_model, np.random.default_rng(0)
    cells = [alloy(i, (1, 1, 1)) for i in range(200, 300)]
    # What the model expects of a label: its own uncertainty and the noise of the fit.
    noise = 1 / np.sqrt(float(model.posterior.noise_precision))
    d = descriptors(model.basis, cells) / 4
    energy_std = np.hypot(np.linalg.norm(d @ np.asarray(model.posterior.factor), axis=1), noise / 300)
    force_std = np.hypot(force_stds(model, cells), noise / 10)
    held_out = [
        off_by(model, atoms, 3 * e * rng.normal(), 5 * f * rng.normal(size=(4, 3)))
        for atoms, e, f in zip(cells, energy_std, force_std, strict=True)
    ]
    # An earlier calibration is replaced, not multiplied.
    calibrated, report = hx.calibrate(replace(model, energy_calibration=7.0, force_calibration=0.1), held_out)
    # A factor from n errors is known to 1/sqrt(2 n), a coverage to sqrt(p (1-p) / n): four times that.
    assert report.energy_factor == pytest.approx(3, rel=4 / np.sqrt(200))
    assert report.force_factor == pytest.approx(5, rel=4 / np.sqrt(2400))
    assert report.levels == LEVELS == (0.5, 0.68, 0.9, 0.95)
    p = np.array(LEVELS)
    for after, n in ((report.energy_after, 100), (report.force_after, 1200)):
        assert np.all(np.abs(np.array(after) - p) < 4 * np.sqrt(p * (1 - p) / n))
    for before in (report.energy_before, report.force_before):
        assert np.all(np.array(before) < p - 0.2)
    # What is stored is what is used.
    assert (calibrated.energy_calibration, calibrated.force_calibration) == (
        report.energy_factor,
        report.force_factor,
    )
    stds = []
    for m in (model, calibrated):
        atoms = cells[0].copy()
        atoms.calc = hx.Calculator(m)
        stds.append([atoms.calc.get_property(f"{what}_std", atoms) for what in ("energy", "forces")])
    np.testing.assert_allclose(stds[1][0], stds[0][0] * report.energy_factor, rtol=1e-10)
    np.testing.assert_allclose(stds[1][1], stds[0][1] * report.force_factor, rtol=1e-10)
    assert predict(calibrated, held_out[:1])[0].energy_std == pytest.approx(
        predict(model, held_out[:1])[0].energy_std * report.energy_factor
    )
    text = str(report)
    assert "50%" in text and "force after" in text and len({len(line) for line in text.splitlines()[1:]}) == 1


def test_a_true_model_keeps_its_sigma(tiny_model, labelled, tiny_data):
    """An over-cautious model gets a factor below 1: the same errors, ten times the sigma."""
    held_out = [labelled(i) for i in range(30, 36)]
    _, true = hx.calibrate(tiny_model, held_out)
    posterior = tiny_model.posterior
    cautious = replace(
        tiny_model,
        posterior=posterior._replace(factor=10 * posterior.factor, noise_precision=posterior.noise_precision / 100),
    )
    _, report = hx.calibrate(cautious, held_out)
    assert report.energy_factor == pytest.approx(true.energy_factor / 10, rel=1e-4)
    assert report.force_factor == pytest.approx(true.force_factor / 10, rel=1e-9)


def test_calibration_of_what_is_labelled(tiny_model, alloy):
    cells = [alloy(i, (1, 1, 1)) for i in range(3)]
    energies = [off_by(tiny_model, atoms, 0.01) for atoms in cells]
    model, report = hx.calibrate(tiny_model, energies)
    assert report.energy_factor > 0 and model.force_calibration == report.force_factor == 1
    assert "nan" not in str(report) and str(report).splitlines()[4].split() == ["force", "before", "-", "-", "-", "-"]
    # One that was fitted to forces alone says nothing of the noise of energies; its sigma stands alone.
    forces_only = replace(tiny_model, settings=replace(tiny_model.settings, energy_weight=0.0))
    assert hx.calibrate(forces_only, energies)[1].energy_factor > report.energy_factor
    with pytest.raises(ValueError, match="no held-out structure has an energy or forces"):
        hx.calibrate(tiny_model, [off_by(tiny_model, cells[0], stress=np.zeros(6))])


def test_a_report_without_numbers_is_readable():
    nothing = (np.nan,) * 4
    text = str(Calibration(1.0, 1.0, LEVELS, nothing, nothing, nothing, nothing))
    assert "nan" not in text


@pytest.mark.parametrize("judge", [hx.evaluate, hx.calibrate])
def test_bad_structures(tiny_model, tiny_data, judge):
    with pytest.raises(ValueError, match="nothing to evaluate: give at least one labelled structure"):
        judge(tiny_model, [])
    with pytest.raises(ValueError, match="structure 2 .*has no energy, forces or stress"):
        judge(tiny_model, [*tiny_data[:2], tiny_data[2].copy()])
    with pytest.raises(ValueError, match=r"structure 1 \(Ge\): Ge is not among the basis' elements"):
        judge(tiny_model, [tiny_data[0], with_labels(Atoms("Ge"), 0.0)])
    broken = replace(tiny_model, e0=np.array([np.nan, 0.0]))
    with pytest.raises(ValueError, match="structure 0 .*the model's energy or forces are not finite"):
        judge(broken, tiny_data)
