from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms
from ase.units import GPa

import haljax as hx
from haljax.evaluation import LEVELS, Calibration, ErrorTable, error_table, predict
from haljax.rows import all_rows, examples
from haljax.spread import PSEUDO
from haljax.structures import with_labels


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
    table = hx.evaluate(tiny_model, missed)
    *lines, note = str(table).splitlines()
    assert len({len(line) for line in lines}) == 1 and len(lines) == 5
    # Below it what its user would otherwise not know.
    loo = tiny_model.loo
    assert note == table.note and note.startswith("leave-one-out (8 groups of training structures): RMSE ")
    assert f"{1e3 * loo.energy:.3g} meV/atom, {loo.force:.3g} eV/Å" in note
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
    assert str(error_table(predict(tiny_model, missed[:2]))).count("\n") == 2  # no note without a model's
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


def stds_written_down(model, structures):
    """Predictive standard deviations of energies per atom, forces and stresses (GPa), with dense matrices.

    factor^2 times (scale^2 (x Sigma x + core^2) + noise^2), where x are the rows of a label.
    """
    covariance = np.asarray(model.spread.factor @ model.spread.factor.T)
    scale, noise = np.asarray(model.spread.scale), np.asarray(model.spread.noise)
    factors = model.energy_calibration, model.force_calibration, model.stress_calibration
    out = []
    for atoms, example in zip(structures, examples(model.basis, structures), strict=True):
        rows, n = all_rows(model.basis, *example, model.radii, model.density), len(atoms)

        def std(kind, x, core, size):
            variance = np.einsum("...m,mk,...k->...", np.asarray(x), covariance, np.asarray(x))
            return factors[kind] * np.sqrt(scale[kind] ** 2 * (variance + core**2) + (size * noise[kind]) ** 2)

        out.append(
            (
                std(0, rows.energy, np.asarray(rows.core_energy), n) / n,
                std(1, rows.forces, np.asarray(rows.core_forces), 1)[:n],
                std(2, rows.virial, np.asarray(rows.core_virial), n) / atoms.get_volume() / GPa,
            )
        )
    return out


@pytest.fixture(scope="module")
def doctored(tiny_model):
    """With scales, noises and factors that differ and are not 1, so that none can be forgotten or mistaken."""
    spread = tiny_model.spread._replace(scale=np.array([1.3, 0.7, 1.1]), noise=np.array([0.002, 0.05, 0.03]))
    return replace(tiny_model, spread=spread, energy_calibration=1.7, force_calibration=2.1, stress_calibration=0.6)


def test_standard_deviations_are_one_quantity(doctored, tiny_data, alloy):
    """Of the calculator, of predict and so of evaluate, of the model, the core and the noise, by explicit formulas."""
    dense = alloy(3, (1, 1, 1))
    dense.set_cell(0.75 * dense.cell.array, scale_atoms=True)  # the core is felt
    cells = [*tiny_data[:2], off_by(doctored, dense, 0.0, 0.0, np.zeros(6))]
    predictions = predict(doctored, cells)
    for atoms, p, expected in zip(cells, predictions, stds_written_down(doctored, cells), strict=True):
        for found, value in zip((p.energy_std, p.forces_std, p.stress_std), expected, strict=True):
            np.testing.assert_allclose(found, value, rtol=1e-8)
        copy = atoms.copy()
        copy.calc = hx.Calculator(doctored)
        of = {name: copy.calc.get_property(name, copy) for name in ("energy_std", "forces_std", "stress_std")}
        np.testing.assert_allclose(of["energy_std"] / 4, p.energy_std, rtol=1e-10)
        np.testing.assert_allclose(of["forces_std"], p.forces_std, rtol=1e-10)
        np.testing.assert_allclose(of["stress_std"] / GPa, p.stress_std, rtol=1e-10)
    # sigma is the model's part alone: no noise, factor, scale or core.
    p, species = hx.potential(doctored), np.array([doctored.basis.elements.index(s) for s in dense.symbols])
    box = dense.cell.array.T
    sigma = float(p.sigma(dense.positions, box, species, p.neighbours(dense.positions, box, species)))
    (example,) = examples(doctored.basis, [dense])
    x = np.asarray(all_rows(doctored.basis, *example, doctored.radii, doctored.density).energy)
    assert sigma == pytest.approx(np.linalg.norm(x @ np.asarray(doctored.spread.factor)), rel=1e-8)


@pytest.fixture(scope="module")
def crystal_model(labelled):
    """150 functions fitted to 24 four-atom alloys and pure crystals."""
    from ase.build import bulk
    from ase.calculators.emt import EMT

    train = [labelled(i) for i in range(20)]
    for k, element in enumerate(("Al", "Cu", "Al", "Cu")):
        atoms = bulk(element, cubic=True)
        atoms.rattle(0.1, seed=k)
        atoms.calc = EMT()
        train.append(with_labels(atoms, atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()))
    return hx.fit(hx.ace_basis(("Al", "Cu"), cutoff=4.5, order=2, max_degree=6), train)


@pytest.mark.parametrize("kind", ["isolated", "dimer", "expanded", "interstitial"])
def test_what_is_unlike_the_data_has_a_large_standard_deviation(crystal_model, alloy, labelled, kind):
    """At least three times that of structures like the data, per atom: what decides what is labelled next."""

    def stds(structures):
        return [p.energy_std for p in predict(crystal_model, [with_labels(a, 0.0) for a in structures])]

    unlike = {
        "isolated": [Atoms("Al"), Atoms("Cu")],
        "dimer": [Atoms(s, [[0, 0, 0], [0, 0, r]]) for s in ("Al2", "AlCu", "Cu2") for r in (1.2, 2.4, 3.2)],
        "expanded": [],
        "interstitial": [],
    }
    for seed in (91, 92, 93):
        wide = alloy(seed, (1, 1, 1))
        wide.set_cell(1.15 * wide.cell.array, scale_atoms=True)
        unlike["expanded"].append(wide)
        crowded = alloy(seed, (2, 2, 1))
        crowded.append(Atoms("Cu", [crowded.positions[0] + [0, 0, 0.7]])[0])
        unlike["interstitial"].append(crowded)
    assert min(stds(unlike[kind])) > 3 * np.median(stds([alloy(seed, (1, 1, 1)) for seed in range(100, 112)]))


def drawn(model, cells, energy, force, seed=0):
    """Cells with labels whose errors are so many times what the model expects of them."""
    rng = np.random.default_rng(seed)
    return [
        off_by(model, atoms, energy * e * rng.normal(), force * f * rng.normal(size=(4, 3)))
        for atoms, (e, f, _) in zip(cells, stds_written_down(model, cells), strict=True)
    ]


def test_calibration_finds_the_factor(tiny_model, alloy):
    """Labels drawn with errors 3 (energies) and 5 (forces) times what the model expects."""
    model = tiny_model
    cells = [alloy(i, (1, 1, 1)) for i in range(200, 300)]
    held_out = drawn(model, cells, 3, 5)
    # An earlier calibration is replaced, not multiplied.
    calibrated, report = hx.calibrate(replace(model, energy_calibration=7.0, force_calibration=0.1), held_out)
    # A factor from n errors is known to 1/sqrt(2 n), a coverage to sqrt(p (1-p) / n): four times that. Of a hundred
    # structures the prior, four whose errors are as predicted, takes 2 %.
    assert report.energy_factor == pytest.approx(3, rel=4 / np.sqrt(200))
    assert report.force_factor == pytest.approx(5, rel=4 / np.sqrt(2400))
    assert (report.energy_values, report.force_values) == (100, 1200)
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
    assert "(from 100 energies)" in text and "(from 1200 components)" in text


@pytest.mark.parametrize("n", [1, 4, 16])
def test_few_labels_move_the_factor_little(tiny_model, alloy, n):
    """Towards 1 by `PSEUDO` structures beside them: mean squares add."""
    held_out = drawn(tiny_model, [alloy(i, (1, 1, 1)) for i in range(200, 200 + n)], 3, 5)
    _, report = hx.calibrate(tiny_model, held_out)
    predictions = predict(tiny_model, held_out)
    for what, factor in (("energy", report.energy_factor), ("forces", report.force_factor)):
        z = [(getattr(p, what) - getattr(p, f"{what}_label")) / getattr(p, f"{what}_std") for p in predictions]
        expected = (n * np.mean(np.square(z)) + PSEUDO) / (n + PSEUDO)
        assert factor == pytest.approx(np.sqrt(expected), rel=1e-6)
    assert 1.5 < report.force_factor < 5 and f"(from {n} energies)" in str(report)


def test_an_over_cautious_model_gets_a_factor_below_one(tiny_model, labelled):
    """The same errors, ten times the standard deviation."""
    held_out = [labelled(i) for i in range(30, 36)]
    _, true = hx.calibrate(tiny_model, held_out)
    spread = tiny_model.spread
    cautious = replace(tiny_model, spread=spread._replace(factor=10 * spread.factor, noise=10 * spread.noise))
    _, report = hx.calibrate(cautious, held_out)
    share = PSEUDO / (PSEUDO + 6)
    for found, own in ((report.energy_factor, true.energy_factor), (report.force_factor, true.force_factor)):
        # The part of the errors falls to a hundredth, that of the prior stays.
        assert found**2 - share == pytest.approx((own**2 - share) / 100, rel=1e-6)
        assert found < 1


def test_a_fit_is_calibrated_without_being_asked(tiny_model, labelled):
    """Labels of the same kind: errors on 24 structures, known to some 15 %, change the factors by less than twice."""
    _, report = hx.calibrate(tiny_model, [labelled(i) for i in range(30, 54)])
    assert 0.5 < report.energy_factor < 2 and 0.5 < report.force_factor < 2


def test_test_structures_that_were_trained_on_are_counted(tiny_model, tiny_data, labelled):
    """A test error on them is none; copies from a file, eight digits, are recognised."""
    rounded = tiny_data[0].copy()
    rounded.positions = np.round(rounded.positions, 8)
    rounded = with_labels(rounded, tiny_data[0].get_potential_energy())
    note = hx.evaluate(tiny_model, [labelled(70), rounded, tiny_data[3]]).note
    assert "2 of 3 test structures are in the training set: their errors are not test errors" in note
    assert "8 of 8 test structures" in str(hx.evaluate(tiny_model, tiny_data))
    assert "training set:" not in hx.evaluate(tiny_model, [labelled(70)]).note


def test_calibration_of_what_is_labelled(tiny_model, alloy):
    cells = [alloy(i, (1, 1, 1)) for i in range(3)]
    energies = [off_by(tiny_model, atoms, 0.01) for atoms in cells]
    model, report = hx.calibrate(tiny_model, energies)
    assert report.energy_factor > 0 and model.force_calibration == report.force_factor == 1
    assert "nan" not in str(report) and str(report).splitlines()[4].split() == ["force", "before", "-", "-", "-", "-"]
    assert (report.energy_values, report.force_values) == (3, 0)
    # One that was fitted to forces alone says nothing of the noise of energies; its sigma stands alone.
    forces_only = hx.fit(
        tiny_model.basis,
        [with_labels(atoms, forces=atoms.get_forces()) for atoms in tiny_model.structures],
        e0={"Al": 0.0, "Cu": 0.0},
        energy_weight=0.0,
    )
    assert forces_only.spread.noise[0] == 0 < forces_only.spread.noise[1]
    assert hx.calibrate(forces_only, energies)[1].energy_factor > 0
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
    mean = tiny_model.posterior.mean.at[len(tiny_model.basis)].set(np.nan)
    broken = replace(tiny_model, posterior=tiny_model.posterior._replace(mean=mean))
    with pytest.raises(ValueError, match="structure 0 .*the model's energy or forces are not finite"):
        judge(broken, tiny_data)
