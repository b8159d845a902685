from __future__ import annotations

import json
import pickle
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.emt import EMT

import haljax as hx
from haljax.bayes import absorb, brr, empty, posterior
from haljax.campaign import JournalError
from haljax.rows import Weights, blocks_of, design_rows, examples
from haljax.structures import labels, with_labels
from haljax.training import descriptors


@pytest.fixture
def saved(tiny_model, tmp_path):
    path = tmp_path / "model.npz"
    tiny_model.save(path)
    return path


def with_meta(path, **changes):
    """Rewrite the file with other metadata."""
    with np.load(path) as data:
        arrays = dict(data)
    arrays["meta"] = np.array(json.dumps(json.loads(str(arrays["meta"])) | changes))
    np.savez(path, **arrays)


def test_round_trip_is_exact(tiny_model, tmp_path, tiny_data):
    active = np.ones(len(tiny_model.basis), bool)
    active[3] = False
    model = replace(
        tiny_model,
        active=active,
        energy_calibration=1.1,
        force_calibration=np.float64(0.3),
        stress_calibration=0.7,
        ignored={2: "an isolated atom", 5: "Al-Cu at 0.80 Å"},
        doubted={3: 0.25},
    )
    model.save(tmp_path / "model.npz")
    back = hx.load(tmp_path / "model.npz")
    assert back.basis == model.basis and back.settings == model.settings and back.n_structures == 8
    assert (back.energy_calibration, back.force_calibration, back.stress_calibration) == (1.1, 0.3, 0.7)
    assert (
        back.ignored == model.ignored
        and back.doubted == model.doubted
        and back.loo == model.loo
        and back.loo.groups == 8
    )
    assert back.choice == model.choice
    assert isinstance(back.posterior.mean, jax.Array)
    arrays = ("active", "radii", "density", "hyperparameters", "coefficients", "e0")
    for was, now in (
        (model.posterior, back.posterior),
        (model.spread, back.spread),
        *(([getattr(model, name)], [getattr(back, name)]) for name in arrays),
    ):
        for a, b in zip(was, now, strict=True):
            assert np.asarray(a).dtype == np.asarray(b).dtype
            np.testing.assert_array_equal(a, b)
    # What was read can be used as what was written.
    assert str(hx.evaluate(back, tiny_data)) == str(hx.evaluate(model, tiny_data))


@pytest.fixture(scope="module")
def odd_ones(tiny_data, labelled):
    """A molecule in no cell, a slab, atoms outside their cell, weights, names, and labels that are missing."""
    structures = [atoms.copy() for atoms in tiny_data[:5]]
    for atoms, source in zip(structures, tiny_data[:5], strict=True):
        atoms.calc = source.calc
    structures[0].info |= {"group": "trajectory 1", "config_type": "fcc", "energy_weight": 0.5}
    structures[1].info |= {"group": "trajectory 1", "stress_weight": 0.0}
    structures[2].arrays["force_weight"] = np.arange(12.0).reshape(4, 3)
    structures[3] = with_labels(structures[3], forces=structures[3].get_forces())
    molecule = Atoms("AlCuAl", [[0, 0, 0], [2.5, 0.1, 0], [0.3, 2.4, 0.2]])
    slab = labelled(50)
    slab = Atoms(
        slab.symbols, slab.positions + [0, 0, 30.0], cell=[slab.cell[0], slab.cell[1], [0, 0, 0]], pbc=(1, 1, 0)
    )
    slab.calc = EMT()
    slab = with_labels(slab, slab.get_potential_energy(), slab.get_forces())
    box = Atoms("Cu", [[3.0, 0, 0]], cell=[12, 13, 14], pbc=True)
    return [*structures, with_labels(molecule, 2.0, np.zeros((3, 3))), slab, with_labels(box, 0.1)]


def test_a_file_has_its_structures(odd_ones, tiny_model, tmp_path):
    """Labels, weights and names, so that a refit after load is the refit before."""
    basis = tiny_model.basis
    model = hx.fit(basis, odd_ones)
    model.save(tmp_path / "model.npz")
    back = hx.load(tmp_path / "model.npz")
    assert len(back.structures) == len(odd_ones)
    for was, now in zip(odd_ones, back.structures, strict=True):
        assert list(was.symbols) == list(now.symbols) and list(was.pbc) == list(now.pbc)
        np.testing.assert_array_equal(was.positions, now.positions)
        np.testing.assert_array_equal(was.cell.array, now.cell.array)
        for a, b in zip(labels(was), labels(now), strict=True):
            np.testing.assert_array_equal(a, b)
        for name in ("group", "config_type"):
            assert was.info.get(name) == now.info.get(name)
    assert back.ignored == model.ignored == {7: "an isolated atom"}
    more = [atoms.copy() for atoms in odd_ones[:1]]
    more[0].rattle(0.05, seed=4)
    more[0].calc = EMT()
    more = [with_labels(more[0], more[0].get_potential_energy(), more[0].get_forces())]
    for learn in (hx.refit, hx.update):
        a, b = learn(model, more), learn(back, more)
        # The same rows, computed again.
        np.testing.assert_allclose(a.posterior.mean, b.posterior.mean, atol=1e-9 * np.abs(a.coefficients).max())
        np.testing.assert_allclose(a.spread.factor, b.spread.factor, atol=1e-9)
        assert a.loo == pytest.approx(b.loo, rel=1e-6, nan_ok=True)
    assert hx.refit(back, []).loo.groups == model.loo.groups == 6  # 7 structures, two of one trajectory


def test_pickled_models_predict_the_same(tiny_model, tiny_data):
    """As processes and executors send them."""
    back = pickle.loads(pickle.dumps(tiny_model))
    assert hx.evaluate(back, tiny_data).rows == hx.evaluate(tiny_model, tiny_data).rows


# Schema 1


@pytest.fixture
def old(tiny_model, tiny_data, tmp_path):
    """A model of schema 1, as its `Model.save` wrote: its path, its arrays, and the rows and targets of its fit."""
    basis, M = tiny_model.basis, len(tiny_model.basis)
    e0, radii = np.array([-0.2, 0.4]), np.stack(basis.core_radii)
    density = np.zeros_like(tiny_model.density)
    blocks = list(blocks_of(basis, radii, density, Weights(300.0, 10.0, 30.0), tiny_data))
    rows = np.concatenate([b.rows[:, :M] for b in blocks])
    targets = np.concatenate([b.targets - b.rows[:, M : M + 2] @ e0 for b in blocks])
    alpha, prior = 0.8, 1e-2 * basis.smoothness(2.0) ** 2
    statistics = absorb(empty(M), jnp.asarray(rows), jnp.asarray(targets))
    fitted = {k: np.asarray(v) for k, v in posterior(statistics, alpha, jnp.asarray(prior))._asdict().items()}
    meta = {
        "schema_version": 1,
        "haljax": "0.0.1",
        "basis": {k: getattr(basis, k) for k in ("elements", "cutoff", "order", "max_degree")},
        "settings": {
            "energy_weight": 300.0, "force_weight": 10.0, "stress_weight": 30.0, "solver": "brr", "smoothness": 2.0,
        },
        "n_structures": 8,
        "energy_calibration": 1.5,
        "force_calibration": 0.5,
    }  # fmt: skip
    arrays = {"meta": np.array(json.dumps(meta)), "e0": e0, "active": np.ones(M, bool)}
    arrays |= {f"posterior_{k}": v for k, v in fitted.items()}
    arrays |= {f"statistics_{k}": np.asarray(v) for k, v in statistics._asdict().items()}
    np.savez(tmp_path / "old.npz", **arrays)
    return tmp_path / "old.npz", arrays, (rows, targets)


def test_a_model_of_schema_1_predicts_as_it_did(old, tiny_data):
    """E0, core of the basis and c . D; its std with the noise, times the factor that was fitted to both together."""
    path, arrays, _ = old
    model = hx.load(path)
    basis, structures = model.basis, tiny_data[:3]
    D = descriptors(basis, structures)
    for atoms, d, example in zip(structures, D, examples(basis, structures), strict=True):
        core = float(design_rows(basis, *example).core_energy)
        one_body = sum(arrays["e0"][basis.elements.index(s)] for s in atoms.symbols)
        copy = atoms.copy()
        copy.calc = hx.Calculator(model)
        assert copy.get_potential_energy() == pytest.approx(d @ arrays["posterior_mean"] + core + one_body, rel=1e-10)
        sigma = np.linalg.norm(arrays["posterior_factor"].T @ d)
        std = 1.5 * np.sqrt(sigma**2 + core**2 + 0.8**-1 * (len(atoms) / 300) ** 2)
        assert copy.calc.get_property("energy_std", copy) == pytest.approx(std, rel=1e-8)
        assert copy.calc.get_property("forces_std", copy).shape == (4, 3)
    assert model.n_structures == 8 and not model.structures and model.loo.groups == 0
    assert hx.evaluate(model, tiny_data)["total"]["force_rmse"] < 0.2
    assert hx.select(model, tiny_data, 2) and float(hx.potential(model).parameters.factor.sum()) != 0


def test_a_model_of_schema_1_is_updated_and_refitted(old, labelled, tmp_path):
    """An update is conditioning on the rows, a refit has the rows of both at the E0 and the radii that it had."""
    path, arrays, (rows, targets) = old
    model, new, M = hx.load(path), [labelled(40), labelled(41)], len(arrays["active"])
    (fresh, y, *_) = (
        np.concatenate(part)
        for part in zip(
            *blocks_of(model.basis, model.radii, model.density, Weights(300.0, 10.0, 30.0), new), strict=True
        )
    )
    y, fresh = y - fresh[:, M : M + 2] @ arrays["e0"], fresh[:, :M]
    rows, targets = np.concatenate([rows, fresh]), np.concatenate([targets, y])
    together = absorb(empty(M), jnp.asarray(rows), jnp.asarray(targets))
    expected = posterior(together, 0.8, jnp.asarray(arrays["posterior_prior_precision"]))
    covariance = np.asarray(expected.factor @ expected.factor.T)
    updated = hx.update(model, new)
    # By two routes, of a condition number of some 1e5.
    np.testing.assert_allclose(updated.coefficients, expected.mean, atol=1e-8 * np.abs(expected.mean).max())
    np.testing.assert_array_equal(updated.e0, arrays["e0"])
    factor = np.asarray(updated.spread.factor)[:M]
    np.testing.assert_allclose(factor @ factor.T, covariance, atol=1e-8 * covariance.max())
    whole, _ = brr(together, jnp.asarray(model.basis.smoothness(2.0)))
    for refitted in (hx.refit(model, new), hx.refit(updated, [])):
        assert refitted.n_structures == 10
        np.testing.assert_allclose(refitted.posterior.noise_precision, whole.noise_precision, rtol=1e-6)
        np.testing.assert_allclose(refitted.coefficients, whole.mean, atol=1e-6 * np.abs(whole.mean).max())
    # It is written as any other, and can be read and refitted again.
    updated.save(tmp_path / "now.npz")
    back = hx.load(tmp_path / "now.npz")
    np.testing.assert_array_equal(back.posterior.factor, updated.posterior.factor)
    again = hx.refit(back, [])
    np.testing.assert_allclose(again.coefficients, whole.mean, atol=1e-6 * np.abs(whole.mean).max())


def test_path_is_kept_as_given(tiny_model, tmp_path):
    """numpy would append .npz."""
    tiny_model.save(tmp_path / "alcu.model")
    assert [p.name for p in tmp_path.iterdir()] == ["alcu.model"]
    hx.load(str(tmp_path / "alcu.model"))


@pytest.mark.parametrize("version", [3, None, "1"])
def test_unknown_version_is_refused(saved, version):
    with_meta(saved, schema_version=version, haljax="9.9")
    with pytest.raises(
        ValueError, match=r"schema version .*, written by haljax 9.9; this haljax reads versions 1 and 2: "
    ):
        hx.load(saved)


def test_another_basis_is_refused(saved):
    """As when a later haljax counted functions differently."""
    with_meta(saved, basis={"elements": ["Al", "Cu"], "cutoff": 4.5, "order": 2, "max_degree": 6})
    with pytest.raises(ValueError, match="holds 65 coefficients, but its basis has 98 functions"):
        hx.load(saved)


META = {
    "cutoff": lambda meta: meta["basis"].pop("cutoff"),
    "a key": lambda meta: meta.pop("loo"),
    "a type": lambda meta: meta["basis"].update(order="2"),
    "degree": lambda meta: meta["basis"].update(max_degree=2.5),
    "element": lambda meta: meta["basis"].update(elements=["Al", "Xx"]),
    "no list": lambda meta: meta["basis"].update(elements="Al"),
    "factor": lambda meta: meta.update(energy_calibration=-1.0),
    "settings": lambda meta: meta["settings"].update(solver="other"),
    "weights": lambda meta: meta["settings"].pop("force_weight"),
    "structures": lambda meta: meta["configurations"].pop(),
}
ARRAYS = {
    "mean missing": lambda a: a.pop("posterior_mean"),
    "near missing": lambda a: a.pop("near"),
    "shape": lambda a: a.update(posterior_mean=a["posterior_mean"][:-1]),
    "factor": lambda a: a.update(spread_factor=a["spread_factor"][:, :-1]),
    "nan": lambda a: a["posterior_mean"].__setitem__(3, np.nan),
    "inf": lambda a: a["radii"].__setitem__((0, 0, 0), np.inf),
    "strings": lambda a: a.update(spread_noise=np.array(["a", "b", "c"])),
    "mask": lambda a: a.update(active=a["active"].astype(float)),
    "species": lambda a: a["data_species"].__setitem__(0, 7),
    "positions": lambda a: a.update(data_positions=a["data_positions"][:5]),
    "negative": lambda a: a["spread_noise"].__setitem__(0, -1.0),
}


@pytest.mark.parametrize("change", [*META, *ARRAYS])
def test_a_damaged_file_is_refused_and_not_guessed_at(saved, change):
    """A missing cutoff once became the default."""
    with np.load(saved) as data:
        arrays = dict(data)
    meta = json.loads(str(arrays.pop("meta")))
    META[change](meta) if change in META else ARRAYS[change](arrays)
    np.savez(saved, meta=np.array(json.dumps(meta)), **arrays)
    with pytest.raises(ValueError, match=r"model\.npz cannot be used: .+\. Take a copy"):
        hx.load(saved)


def test_a_model_is_itself_and_prints_in_a_line(tiny_model):
    other = replace(tiny_model)
    assert tiny_model == tiny_model and tiny_model != other and len({tiny_model, other, tiny_model}) == 2
    assert repr(tiny_model) == f"Model(8 structures; {tiny_model.choice})" and "\n" not in str(tiny_model)


def test_a_folder_that_is_not_there_is_named(tiny_model, tmp_path):
    with pytest.raises(JournalError, match="there is no directory .*absent; make it first"):
        tiny_model.save(tmp_path / "absent" / "model.npz")


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        hx.load(tmp_path / "absent.npz")


def other_npz(path):
    np.savez(path, x=np.zeros(3))


def npy(path):
    with open(path, "wb") as file:
        np.save(file, np.zeros(3))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_text("Lattice=..."),
        lambda path: path.write_bytes(path.read_bytes().replace(path.read_bytes()[9000:9004], b"spoi", 1)),
        other_npz,
        npy,
    ],
    ids=["truncated", "empty", "text", "flipped bits", "another npz", "npy"],
)
def test_not_a_model(saved, spoil):
    spoil(saved)
    with pytest.raises(ValueError, match=r"model\.npz is not a haljax model \(.+\); models are written by Model.save"):
        hx.load(saved)


def test_failed_write_leaves_the_old_model(tiny_model, saved, monkeypatch):
    old = saved.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(JournalError, match="No space left on device"):
        replace(tiny_model, energy_calibration=2.0).save(saved)
    assert saved.read_bytes() == old
    assert [p.name for p in saved.parent.iterdir()] == ["model.npz"]


def test_the_first_files_of_schema_2_open_and_refit(tiny_model, tiny_data, labelled, tmp_path):
    """They have two densities, and no distances below which the bias fades: the mean is the same, the bars finite."""
    tiny_model.save(tmp_path / "new.npz")
    with np.load(tmp_path / "new.npz") as file:
        arrays = dict(file)
    del arrays["near"]
    arrays["density"] = arrays["density"][:2]
    arrays["spread_factor"] = arrays["spread_factor"][: len(tiny_model.basis) + 2 + 32]
    np.savez(tmp_path / "old.npz", **arrays)
    old = hx.load(tmp_path / "old.npz")
    atoms = tiny_data[0].copy()
    atoms.calc = hx.Calculator(old)
    expected = tiny_data[0].copy()
    expected.calc = hx.Calculator(tiny_model)
    assert atoms.get_potential_energy() == pytest.approx(expected.get_potential_energy(), rel=1e-12)
    assert 0 < atoms.calc.results["energy_std"] < 10
    assert hx.update(old, [labelled(50)]).n_structures == 9
    assert len(hx.refit(old, []).spread.factor) == len(tiny_model.spread.factor)
