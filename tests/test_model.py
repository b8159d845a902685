from __future__ import annotations

import json
from dataclasses import replace

import jax
import numpy as np
import pytest

import haljax as hx
from haljax.campaign import JournalError


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
        tiny_model, active=active, energy_calibration=1.1, force_calibration=np.float64(0.3), n_structures=8
    )
    model.save(tmp_path / "model.npz")
    back = hx.load(tmp_path / "model.npz")
    assert back.basis == model.basis and back.settings == model.settings and back.n_structures == 8
    assert (back.energy_calibration, back.force_calibration) == (1.1, 0.3)
    assert isinstance(back.posterior.mean, jax.Array)
    for was, now in (
        (model.posterior, back.posterior),
        (model.statistics, back.statistics),
        ((model.e0, model.active), (back.e0, back.active)),
    ):
        for a, b in zip(was, now, strict=True):
            assert np.asarray(a).dtype == np.asarray(b).dtype
            np.testing.assert_array_equal(a, b)
    # What was read can be used as what was written: predictions and a new fit of the hyperparameters.
    assert hx.evaluate(back, tiny_data).rows == hx.evaluate(model, tiny_data).rows
    np.testing.assert_array_equal(
        hx.refit(back, tiny_data[:1]).posterior.mean, hx.refit(model, tiny_data[:1]).posterior.mean
    )


def test_path_is_kept_as_given(tiny_model, tmp_path):
    """numpy would append .npz."""
    tiny_model.save(tmp_path / "alcu.model")
    assert [p.name for p in tmp_path.iterdir()] == ["alcu.model"]
    hx.load(str(tmp_path / "alcu.model"))


@pytest.mark.parametrize("version", [2, None, "1"])
def test_unknown_version_is_refused(saved, version):
    with_meta(saved, schema_version=version, haljax="9.9")
    with pytest.raises(ValueError, match=r"schema version .*, written by haljax 9.9; this haljax reads version 1: "):
        hx.load(saved)


def test_another_basis_is_refused(saved):
    """As when a later haljax counted functions differently."""
    with_meta(saved, basis={"elements": ["Al", "Cu"], "cutoff": 4.5, "order": 2, "max_degree": 6})
    with pytest.raises(ValueError, match="holds 65 coefficients, but its basis has 98 functions"):
        hx.load(saved)


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
