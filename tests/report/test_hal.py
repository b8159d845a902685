import json
import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT

import haljax as hx
from haljax.campaign import Journal
from haljax.hal.reference import encode
from haljax.hal.trajectory import Observation
from haljax.report import write_report
from haljax.report.hal import dimers, trajectory_picture

ERROR = "SCF <not converged> & gave up after 100 cycles"


def _labelled(n, seed, periodic=True):
    rng = np.random.default_rng(seed)
    found = []
    for k in range(n):
        atoms = bulk("Al", "fcc", a=3.95, cubic=True).repeat((2, 1, 1))
        atoms.symbols[rng.choice(8, 3, replace=False)] = "Cu"
        atoms.rattle(0.12, rng=rng)
        atoms.info["config_type"] = ("alloy $x_1$", "hot")[k % 2]
        if not periodic:
            atoms.pbc, atoms.cell = False, np.zeros((3, 3))
        atoms.calc = EMT()
        atoms.get_forces()
        found.append(atoms)
    return found


def _label(atoms, name, role):
    record = {
        "type": "label", "id": name, "role": role, "iteration": -1, "origin": {"source": "start"},
        "structure": encode(atoms), "energy": atoms.get_potential_energy(), "forces": atoms.get_forces(),
        "attempts": 1, "seconds": 0.1,
    }  # fmt: skip
    return record | ({"stress": atoms.get_stress()} if atoms.pbc.all() else {})


def _observation(checks=60, replicas=4, periodic=True, seed=0):
    """What a round of dynamics leaves: replicas that end at different times for different reasons."""
    rng = np.random.default_rng(seed)
    shape = (checks, replicas)
    step = np.broadcast_to(10 * np.arange(1, checks + 1)[:, None], shape).copy()
    status = np.zeros(shape, int)
    walk = np.cumsum(rng.normal(size=shape), axis=0)
    fields = {
        "criterion": 0.04 * np.exp(0.08 * walk),
        "temperature": 600 + 60 * rng.normal(size=shape),
        "pressure": 2 + 0.5 * rng.normal(size=shape) if periodic else np.full(shape, np.nan),
        "energy": -3.0 - 0.5 * np.arange(replicas)[None, :] + 0.02 * rng.normal(size=shape),
        "sigma": np.full(shape, 0.01),
        "tau": np.ones(shape),
    }
    for i in range(replicas):
        end = checks - 1 if i == 0 else int(rng.integers(checks // 3, checks))
        status[end, i] = 2 if i == 0 else (1, 1, 3, 1)[i % 4]
        if status[end, i] == 1:
            fields["criterion"][end, i] = 0.25
        if status[end, i] == 3:
            fields["temperature"][end, i] = 4000.0
        step[end + 1 :, i] = status[end + 1 :, i] = -1
        for values in fields.values():
            values[end + 1 :, i] = np.nan
    moves = np.full(shape, -1)
    return Observation(step=step, status=status, cell_moves=moves, swap_moves=moves, **fields)


def _save(path, seen, **conditions):
    n = seen.step.shape[1]
    np.savez(path, **{"tolerance": np.full(n, 0.2), "timestep_fs": np.full(n, 2.0)} | conditions, **seen._asdict())


def _iteration(number, labels, tested):
    row = {f"{what}_{kind}": 9.0 / (number + 1) for what in ("energy", "force") for kind in ("rmse", "mae")}
    row |= {"structures": 4, "stress_rmse": None, "stress_mae": None}
    replicas = [
        {"status": s, "step": 400, "start": i, "temperature_K": 600.0, "criterion": 0.2}
        for i, s in enumerate(("uncertain", "uncertain", "too_close", "finished"))
    ]
    return {
        "type": "iteration", "iteration": number, "labels": labels, "score": 0.3 if number else 0.0,
        "replicas": replicas if number else [],
        "errors": {"alloy $x_1$": row, "hot": row | {"force_rmse": 0.9}, "total": row} if tested else {},
        "hyperparameters": {"noise_precision": 1.0, "log_evidence": 123.4, "n_effective": 40.0},
        "seconds": {"dynamics": 3.0, "select": 0.1, "label": 1.0, "fit": 0.5, "evaluate": 0.2},
    }  # fmt: skip


@pytest.fixture(scope="module")
def model():
    return hx.fit(hx.ace_basis(("Al", "Cu"), 5.0, 2, 6), _labelled(6, seed=1))


@pytest.fixture
def campaign(tmp_path, model):
    """Makes a run directory; called with what is in it."""

    def make(iterations=3, tested=True, periodic=True, model=model, ended=True):
        directory = tmp_path / "run"
        directory.mkdir()
        with Journal(directory / "journal.jsonl") as journal:
            config = {"directory": "<run>", "dynamics": {"tolerance": 0.2, "timestep_fs": 2.0}}
            journal.append({"type": "start", "config": config, "versions": {"haljax": "9.9", "jax": "8.8"}})
            for role, n in (("train", 6), ("held_out", 2), ("test", 4 * tested)):
                for k, atoms in enumerate(_labelled(n, seed=len(role), periodic=periodic)):
                    journal.append(_label(atoms, f"{role}-{k}", role))
            journal.append({"type": "failed", "id": "1-3", "error": ERROR, "attempts": 2, "iteration": 1})
            for k in range(iterations):
                journal.append(_iteration(k, 8 + 4 * k, tested))
                if k:
                    inside = directory / "iterations" / f"{k:04d}"
                    inside.mkdir(parents=True)
                    seen = _observation(periodic=periodic, seed=k)
                    _save(inside / "trajectory.npz", seen)
            if ended:
                calibration = {"energy_factor": 1.7, "force_factor": 0.8, "levels": [0.5, 0.68, 0.9, 0.95]}
                for name in ("energy_before", "energy_after", "force_before", "force_after"):
                    calibration[name] = [0.4, 0.6, 0.8, 0.9]
                journal.append(
                    {"type": "stop", "reason": "20 labels done (max_labels = 20)", "calibration": calibration}
                )
        if iterations:
            model.save(directory / "model.npz")
        return directory

    return make


class _References(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        self.found += [value for name, value in attributes if name in ("src", "href", "srcset", "data")]
        assert tag not in ("script", "link", "iframe", "object")


def _text(page):
    return unescape(re.sub(r"<[^>]*>", " ", page))


def test_report_is_one_readable_file(campaign):
    directory = campaign()
    path = write_report(directory)
    assert path == directory / "report.html"
    page = path.read_text("utf-8")
    references = _References()
    references.feed(page)
    # learning, parity, dimers, coefficients, calibration and two rounds of dynamics
    assert len(references.found) == 7
    assert all(source.startswith("data:image/png;base64,") for source in references.found)
    assert "url(" not in page and "@import" not in page
    assert ERROR not in page and "SCF &lt;not converged&gt; &amp; gave up" in page
    text = _text(page)
    for part in ("stopped: 20 labels done", "haljax 9.9, jax 8.8", "1-3, iteration 1, after 2", "1 failed"):
        assert part in text
    rows = re.findall(r"<tr><td>(\d+)<td>(\d+)<td>", page)
    assert rows == [("0", "8"), ("1", "12"), ("2", "16")]
    assert "2 uncertain, 1 too close, 1 finished" in text
    assert json.dumps({"directory": "<run>"})[1:-1] in text
    assert {p.stem for p in (directory / "pictures").iterdir()} == {
        "learning", "parity", "dimers", "coefficients", "calibration", "trajectory_0001", "trajectory_0002",
    }  # fmt: skip


def test_report_of_a_campaign_that_has_just_begun(campaign):
    page = write_report(campaign(iterations=0, tested=False, ended=False)).read_text("utf-8")
    assert "in progress" in page and "<img" not in page


def test_report_after_the_first_fit(campaign):
    page = write_report(campaign(iterations=1, tested=False, ended=False)).read_text("utf-8")
    assert "first fit" in page and "Trajectories" not in page and "no independent test set" in page
    assert page.count("<img") == 3


def test_report_without_cells(campaign):
    page = write_report(campaign(iterations=2, periodic=False)).read_text("utf-8")
    assert page.count("<img") == 6


def test_a_part_that_fails_costs_only_itself(campaign):
    directory = campaign(iterations=1)
    (directory / "model.npz").write_bytes(b"not a model")
    page = write_report(directory).read_text("utf-8")
    assert "is not a haljax model" in page and page.count("<img") == 2


def test_no_campaign(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no campaign"):
        write_report(tmp_path)


def _image(path):
    from matplotlib.image import imread

    return imread(path)


@pytest.mark.parametrize("periodic", [True, False])
def test_trajectory_picture(tmp_path, periodic):
    seen = _observation(periodic=periodic)
    _save(tmp_path / "t.npz", seen)
    trajectory_picture(tmp_path / "t.npz", tmp_path / "new" / "t.png")
    image = _image(tmp_path / "new" / "t.png")
    assert len(np.unique(image.reshape(-1, image.shape[-1]), axis=0)) > 100
    # Without pressures there is one panel less.
    seen = seen._replace(pressure=np.full_like(seen.pressure, np.nan))
    _save(tmp_path / "p.npz", seen)
    trajectory_picture(tmp_path / "p.npz", tmp_path / "p.png")
    assert (image.shape[0] > _image(tmp_path / "p.png").shape[0]) == periodic


def test_trajectory_picture_has_the_tolerance_and_time_step_of_each_replica(tmp_path, monkeypatch):
    figures, seen, timestep = [], _observation(), np.array([1.0, 1.0, 0.5, 2.0])
    monkeypatch.setattr("haljax.report.hal.save", lambda figure, path: figures.append(figure))
    _save(tmp_path / "t.npz", seen, tolerance=np.array([0.2, 0.2, 0.2, 0.4]), timestep_fs=timestep)
    trajectory_picture(tmp_path / "t.npz", tmp_path / "t.png")
    criterion = figures[0].axes[1]
    curves = [line.get_xdata() for line in criterion.lines if len(line.get_xdata()) == len(seen.step)]
    np.testing.assert_array_equal(np.transpose(curves), np.where(seen.step >= 0, seen.step * timestep[None], np.nan))
    assert {"tolerance 0.2", "tolerance 0.4"} == {text.get_text() for text in criterion.texts}


def test_trajectory_picture_of_replicas_that_came_to_nothing(tmp_path):
    seen = _observation(checks=3, replicas=2)
    nothing = Observation(*(np.full_like(values, -1 if values.dtype == int else np.nan) for values in seen))
    nothing.step[0, 0], nothing.status[0, 0] = 10, 6
    _save(tmp_path / "t.npz", nothing)
    trajectory_picture(tmp_path / "t.npz", tmp_path / "t.png")
    assert _image(tmp_path / "t.png").size


def test_pictures_leave_pyplot_alone(tmp_path):
    import matplotlib

    before = dict(matplotlib.rcParams)
    _save(tmp_path / "t.npz", _observation())
    trajectory_picture(tmp_path / "t.npz", tmp_path / "t.png")
    assert dict(matplotlib.rcParams) == before


def test_dimer_curves_are_the_model(model):
    """Against the potential's own energies of two atoms."""
    curve = dimers(model, _labelled(2, seed=1))[1]
    assert curve.name == "Al–Cu" and curve.r[-1] == model.basis.cutoff
    p = hx.potential(model)
    for k in (0, 100, 300):
        R = np.array([[0.0, 0, 0], [0, curve.r[k], 0]])
        energy = float(p.energy(R, species=np.array([1, 0]))) - model.e0.sum()
        # Differences of sums of terms of like size: nothing but rounding.
        assert energy == pytest.approx(curve.total[k], rel=1e-10, abs=1e-10)


def test_shortest_distance_in_the_data(model):
    atoms = Atoms("AlCuCu", [[0, 0, 0], [0, 0, 2.3], [0, 0, 4.4]])
    al_al, al_cu, cu_cu = dimers(model, [atoms])
    assert np.isnan(al_al.seen)
    assert (al_cu.seen, cu_cu.seen) == (pytest.approx(2.3), pytest.approx(2.1))


def _doctored(model, strength):
    """The model with its fitted part replaced by one pair function of Al–Cu."""
    mean = np.zeros(len(model.posterior.mean))  # E0 too
    mean[model.basis.max_degree] = strength
    return replace(model, posterior=model.posterior._replace(mean=mean))


def test_an_attractive_hole_is_warned_of(campaign, model):
    from ase.neighborlist import neighbor_list

    # The first pair function keeps its sign, so that one sign of its coefficient attracts at all distances.
    curve = dimers(_doctored(model, 1.0), [])[1]
    attractive = -5.0 * np.sign(curve.fitted[np.argmax(np.abs(curve.fitted))])
    page = write_report(campaign(1, tested=False, model=_doctored(model, attractive))).read_text("utf-8")
    assert "Attractive hole in Al–Cu" in page
    assert page.count('role="alert"') == 1

    hole = dimers(_doctored(model, attractive), _labelled(6, seed=5))[1]
    depth, rim, bottom = hole.hole()
    assert depth > 0.05 and bottom < rim <= hole.seen
    shortest = min(neighbor_list("d", atoms, {("Al", "Cu"): 5.0}).min() for atoms in _labelled(6, seed=5))
    assert hole.seen == pytest.approx(shortest)
    assert hole.radii == pytest.approx(tuple(model.radii[:, 0, 1])) and hole.radii[1] < hole.seen
    assert hole.covalent == pytest.approx(2.53, rel=0.01)  # Al 1.21 and Cu 1.32 Å
    # The advice is in sums of covalent radii, as dynamics.min_distance is.
    curve = dimers(_doctored(model, attractive), _labelled(6, seed=len("train")))[1]
    assert f"dynamics.min_distance to at least {curve.hole().rim / 2.53:.2f}" in page


def test_a_repulsive_curve_is_not_warned_of(campaign, model):
    page = write_report(campaign(1, tested=False, model=_doctored(model, 0.0))).read_text("utf-8")
    assert "Attractive hole" not in page
