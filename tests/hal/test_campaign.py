"""The campaign as a whole: what it writes, that it resumes to the same result, and what bad references get."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.io import read, write
from rich.console import Console

import haljax as hx
from haljax.campaign import CampaignExists, CampaignMismatch, JournalError, read_journal
from haljax.cli.hal import _iteration_line, _Screen
from haljax.config import ConfigError, HALConfig
from haljax.hal.acquisition import TOLERANCE_LIMITS, explore
from haljax.hal.reference import decode
from haljax.structures import with_labels
from haljax.training import select


def cells(n=4, seed=0):
    rng = np.random.default_rng(seed)
    made = []
    for i in range(n):
        atoms = bulk("Al", "fcc", a=3.9, cubic=True) * (2, 1, 1)
        atoms.symbols[rng.permutation(8)[: 2 * i + 1]] = "Cu"
        atoms.positions += 0.1 * rng.standard_normal(atoms.positions.shape)
        made.append(atoms)
    return made


def config(folder, calculator="ase.calculators.emt.EMT", starts=None, **tables):
    """A small campaign: two rounds, two labels each, whatever they find."""
    write(folder / "start.xyz", cells() if starts is None else starts, format="extxyz")
    base = {
        "directory": str(folder / "run"),
        "seed": 3,
        "reference": {"calculator": calculator, "workers": 2},
        "start": {"structures": str(folder / "start.xyz")},
        "basis": {"elements": ["Al", "Cu"], "cutoff": 4.0, "order": 2, "max_degree": 4},
        "dynamics": {
            "replicas": 3,
            "temperature_K": [300, 600],
            "pressure_GPa": 0.0,
            "n_steps": 40,
            "timestep_fs": 2.0,
            "tolerance": 0.3,
            "tau_history": 10,
            "swap_interval": 20,
            "cell_interval": 20,
            "replicas_per_batch": 2,
        },
        "labels": {"per_iteration": 2, "test_fraction": 0.3, "within_tolerance": True},
        "stop": {"max_iterations": 2},
    }
    for table, values in tables.items():
        base[table] = {**base.get(table, {}), **values} if isinstance(values, dict) else values
    return base


def sigma(model, atoms):
    """Posterior standard deviation of the energy, eV."""
    p, species = hx.potential(model), np.array([model.basis.elements.index(s) for s in atoms.symbols])
    box = atoms.cell.array.T
    return float(p.sigma(atoms.positions, box, species, neighbor=p.neighbours(atoms.positions, box, species)))


def records(folder, kind):
    return [r for r in read_journal(folder / "run" / "journal.jsonl") if r["type"] == kind]


def comparable(folder):
    """What must be the same however a campaign was interrupted."""
    keep = ("id", "role", "structure", "energy", "forces", "stress")
    labels = {r["id"]: {k: r[k] for k in keep} for r in records(folder, "label")}
    rounds = {r["iteration"]: (r["labels"], r["score"], r["hyperparameters"]) for r in records(folder, "iteration")}
    return labels, rounds


@pytest.fixture
def no_pictures(monkeypatch):
    """Spares campaigns whose pictures and report nobody looks at the drawing of them."""
    monkeypatch.setattr("haljax.report.hal.trajectory_picture", lambda *arguments: None)
    monkeypatch.setattr("haljax.report.write_report", lambda directory: None)


@pytest.fixture(scope="module")
def events():
    """What `whole` tells while it runs."""
    return []


@pytest.fixture(scope="module")
def whole(tmp_path_factory, events):
    """One undisturbed campaign, with everything that it draws."""
    folder = tmp_path_factory.mktemp("whole")
    test = {"reference_md": {"temperature_K": [300], "frames": 4, "interval": 5, "burn_in": 5}}
    result = hx.HAL(config(folder, test=test), progress=events.append).run()
    return folder, result


def test_a_campaign_leaves_what_the_user_takes_home(whole):
    folder, result = whole
    run = folder / "run"
    assert "2 iterations done" in result.reason
    assert [r["iteration"] for r in records(folder, "iteration")] == [0, 1, 2]
    assert {r["origin"]["source"] for r in records(folder, "label") if r["iteration"] == -1} == {
        "start",
        "reference_md",
    }
    assert len([r for r in records(folder, "label") if r["role"] == "test"]) == 4
    assert len(read(run / "structures.xyz", ":")) == len(records(folder, "label"))
    assert (run / "report.html").stat().st_size > 1000
    for iteration in (1, 2):
        with np.load(run / "iterations" / f"{iteration:04d}" / "trajectory.npz") as data:
            assert data["criterion"].shape[1] == 3
    saved = hx.load(run / "model.npz")
    np.testing.assert_array_equal(saved.posterior.mean, result.model.posterior.mean)
    (stop,) = records(folder, "stop")
    # Held-out and test labels judge the error bars; the fit has calibrated them by itself.
    assert stop["calibration"]["force_factor"] != 1.0 == saved.force_calibration
    assert stop["calibration"]["force_values"] > 0 and saved.loo.groups > 2
    table = hx.evaluate(saved, [a for a in read(run / "structures.xyz", ":") if a.info["role"] == "test"])
    # Extended XYZ keeps eight decimals.
    assert table["total"]["force_rmse"] == pytest.approx(result.errors["total"]["force_rmse"], rel=1e-6)


def check_learned_all_in_one(folder, model):
    """Learning round by round ends where one fit to all training labels does."""
    order = ["start-0", "start-1", "start-2", "start-3"]
    order += [id for r in records(folder, "request") for id in r["jobs"]]
    by_id = {r["id"]: r for r in records(folder, "label") if r["role"] == "train"}
    train = []
    for id in order:
        if id in by_id:
            r = by_id[id]
            s = r["structure"]
            atoms = bulk("Al").__class__(s["numbers"], s["positions"], cell=s["cell"], pbc=s["pbc"])
            train.append(with_labels(atoms, r["energy"], r["forces"], r["stress"]))
    again = hx.fit(model.basis, train)
    np.testing.assert_allclose(again.radii, model.radii, rtol=1e-8)
    # The searches for the hyperparameters begin at different places, and end where the evidence is flat.
    np.testing.assert_allclose(again.posterior.noise_precision, model.posterior.noise_precision, rtol=1e-2)
    table = hx.evaluate(again, train)["total"], hx.evaluate(model, train)["total"]
    assert table[0]["force_rmse"] == pytest.approx(table[1]["force_rmse"], rel=1e-2)


def test_the_final_model_has_learned_every_training_label_in_one(whole):
    folder, result = whole
    check_learned_all_in_one(folder, result.model)


@pytest.fixture
def slow_reference(tmp_path):
    """A campaign whose reference answers nothing of the first round before the second round's dynamics."""
    busy = tmp_path / "busy"
    setup = config(tmp_path, labels={"asynchronous": True, "test_fraction": 0.0})
    setup["reference"] |= {"calculator": "tests.hal.references.Waiting", "arguments": {"unless": str(busy)}}
    rounds = []

    def watch(event):
        if event["stage"] == "dynamics" and event["iteration"] not in rounds:
            rounds.append(event["iteration"])
            if event["iteration"] == 1:
                busy.touch()
            else:
                busy.unlink(missing_ok=True)

    return setup, watch


@pytest.mark.parametrize("patience", [None, 3, 5])
def test_dynamics_go_on_while_labels_are_computed(slow_reference, tmp_path, no_pictures, patience):
    """With a Ctrl-C as one of the labels is written down, or none."""
    setup, watch = slow_reference
    arrived = 0

    def interrupt(event):
        nonlocal arrived
        watch(event)
        arrived += event["stage"] == "label" and event["id"] is not None and not event["id"].startswith("start")
        if arrived + 2 == patience:
            arrived = -100
            raise KeyboardInterrupt

    if patience is None:
        result = hx.HAL(setup, progress=interrupt).run()
    else:
        with pytest.raises(KeyboardInterrupt):
            hx.HAL(setup, progress=interrupt).run()
        before = [r["id"] for r in records(tmp_path, "label")]
        result = hx.HAL(setup, resume=True).run()
        labels = [r["id"] for r in records(tmp_path, "label")]
        assert labels[: len(before)] == before
    assert "2 iterations done" in result.reason
    assert len(records(tmp_path, "request")) == 2  # no dynamics were run again
    labels = [r["id"] for r in records(tmp_path, "label")]
    assert len(labels) == len(set(labels)) == 8
    learned = [r["learned"] for r in records(tmp_path, "iteration")]
    assert sorted(learned[0]) == [f"start-{i}" for i in range(4)] and learned[1] == []
    assert sorted(id for ids in learned for id in ids) == sorted(labels)
    check_learned_all_in_one(tmp_path, result.model)
    again = hx.HAL(setup, resume=True).run(max_iterations=3)  # the model is made anew from the journal
    assert len(records(tmp_path, "request")) == 3
    check_learned_all_in_one(tmp_path, again.model)


def test_dynamics_and_selection_know_the_structures_that_are_on_their_way(
    slow_reference, tmp_path, no_pictures, monkeypatch
):
    setup, watch = slow_reference
    rounds, selected = [], []

    def remember(model, dynamics, *arguments):
        rounds.append(model)
        return explore(model, dynamics, *arguments)

    def remember_selection(model, pool, n):
        selected.append(model)
        return select(model, pool, n)

    monkeypatch.setattr("haljax.hal.campaign.explore", remember)
    monkeypatch.setattr("haljax.hal.campaign.select", remember_selection)
    hx.HAL(setup, progress=watch).run()
    assert [model.n_structures for model in rounds] == [4, 4]  # nothing was learned between the two rounds
    assert all(a is b for a, b in zip(rounds, selected, strict=True))
    np.testing.assert_array_equal(rounds[1].posterior.mean, rounds[0].posterior.mean)
    chosen = [decode(job) for job in records(tmp_path, "request")[0]["jobs"].values()]
    assert len(chosen) == 2
    for atoms in chosen:
        before, after = (sigma(model, atoms) for model in rounds)
        assert after < 0.5 * before


@pytest.mark.parametrize(
    "when",
    ["select", "label", *(pytest.param(stage, marks=pytest.mark.slow) for stage in ("fit", "evaluate", "report"))],
)
def test_interrupted_at_every_stage_and_resumed_it_comes_to_the_same_result(whole, tmp_path, when, no_pictures):
    """Ctrl-C each time a stage is met for the n-th time, over and over, until it is done."""
    reference, _ = whole
    test = {"reference_md": {"temperature_K": [300], "frames": 4, "interval": 5, "burn_in": 5}}
    setup = config(tmp_path, test=test)
    for patience in range(1, 30):
        met = 0

        def interrupt(event, patience=patience):
            nonlocal met
            met += event["stage"] == when
            if met == patience:
                raise KeyboardInterrupt

        try:
            hx.HAL(setup, resume=True, progress=interrupt).run()
            break
        except KeyboardInterrupt:
            continue
    else:
        pytest.fail("it never came to an end")
    assert patience > 1
    assert comparable(tmp_path) == comparable(reference)


@pytest.mark.slow
def test_killed_at_random_instants_it_loses_nothing(whole, tmp_path):
    reference, _ = whole
    test = {"reference_md": {"temperature_K": [300], "frames": 4, "interval": 5, "burn_in": 5}}
    (tmp_path / "config.json").write_text(json.dumps(config(tmp_path, test=test)))
    program = (
        "import json, sys, haljax as hx\n"
        "if __name__ == '__main__':\n"
        "    hx.HAL(json.load(open(sys.argv[1])), resume=True).run()\n"
    )
    (tmp_path / "program.py").write_text(program)
    rng = np.random.default_rng(0)
    environment = os.environ | {"JAX_ENABLE_X64": "1", "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache")}
    known = 0
    for _ in range(40):
        process = subprocess.Popen(
            [sys.executable, tmp_path / "program.py", tmp_path / "config.json"],
            env=environment,
            stderr=subprocess.DEVNULL,
        )
        try:
            if process.wait(timeout=rng.uniform(5, 40)) == 0:
                break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            time.sleep(0.5)
        if (tmp_path / "run" / "journal.jsonl").exists():
            labels = len(records(tmp_path, "label"))
            assert labels >= known
            known = labels
    assert comparable(tmp_path) == comparable(reference)


def test_the_screen_shows_what_a_campaign_tells(whole, events):
    folder, _ = whole
    console = Console(file=io.StringIO(), width=120, height=40)
    screen = _Screen(console, HALConfig.load(config(folder)))
    for event in events:
        screen.take(event)
        if event["stage"] == "dynamics":
            assert len(event["step"]) == len(event["temperature_K"]) == len(event["pressure_GPa"]) == 3
            console.print(screen.render())
    shown = re.sub(r"\s+", " ", console.file.getvalue())
    assert re.search(r"\d +(finished|uncertain) +\d+/40 +0\.\d{3} +\d+ +-?\d+\.\d\d", shown), shown
    assert re.search(
        r"iteration 2: \d+ labels, 40 functions; .*f .*test RMSE .*dynamics \d+ \+ select \d+ \+ label", shown
    ), shown


def test_a_finished_run_is_not_overwritten_but_extended(whole, tmp_path, no_pictures):
    folder, _ = whole
    with pytest.raises(CampaignExists, match="--resume"):
        hx.HAL(
            config(folder, test={"reference_md": {"temperature_K": [300], "frames": 4, "interval": 5, "burn_in": 5}})
        ).run()
    with pytest.raises(CampaignMismatch, match="basis.max_degree: was 4, now 5"):
        hx.HAL(config(folder, basis={"max_degree": 5}), resume=True).run()
    import shutil

    shutil.copytree(folder / "run", tmp_path / "run")
    test = {"reference_md": {"temperature_K": [300], "frames": 4, "interval": 5, "burn_in": 5}}
    longer = config(tmp_path, test=test, start={"structures": str(folder / "start.xyz")})
    result = hx.HAL(longer, resume=True).run(max_iterations=3)
    assert [r["iteration"] for r in records(tmp_path, "iteration")] == [0, 1, 2, 3]
    assert "3 iterations done" in result.reason


@pytest.mark.parametrize(
    ("calculator", "error", "options"),
    [
        ("Raising", "SCF not converged", {}),
        ("NotANumber", "NaN", {}),
        ("Hanging", "no label within 1 s", {"timeout_s": 1.0, "max_attempts": 1}),
        ("Dying", "exit code 3", {}),
        ("Shapeless", "forces of shape", {}),
    ],
)
def test_labels_that_fail_are_recorded_and_the_campaign_goes_on(tmp_path, calculator, error, options, no_pictures):
    setup = config(tmp_path, f"tests.hal.references.{calculator}", reference=options, stop={"max_iterations": 1})
    setup["reference"]["calculator"] = f"tests.hal.references.{calculator}"
    if calculator == "Shapeless":
        with pytest.raises(RuntimeError, match="no start structure could be labelled.*forces of shape"):
            hx.HAL(setup).run()
        return
    hx.HAL(setup).run()
    failures = records(tmp_path, "failed")
    assert failures and all(error in r["error"] for r in failures)
    assert {r["id"] for r in failures} >= {"start-2", "start-3"}  # the copper-rich ones
    assert [r["iteration"] for r in records(tmp_path, "iteration")] == [0, 1]


def test_a_reference_that_always_fails_ends_the_run_with_its_message_and_can_be_mended(tmp_path, no_pictures):
    """By the config too, until it has made a label."""
    setup = config(tmp_path, stop={"max_iterations": 1})
    setup["reference"] |= {"calculator": "tests.hal.references.Broken", "max_attempts": 1}
    with pytest.raises(RuntimeError, match="licence expired.*Fix the reference calculator, then rerun with --resume"):
        hx.HAL(setup).run()
    mended = config(tmp_path, stop={"max_iterations": 1})
    hx.HAL(mended, resume=True).run()
    assert len(records(tmp_path, "failed")) == 4 and len(records(tmp_path, "label")) == 6
    with pytest.raises(CampaignMismatch, match="reference.calculator(.|\\n)*labels of the former reference"):
        hx.HAL(setup, resume=True).run()


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_reference_that_fails_on_the_way_ends_the_run_which_resumes_when_it_is_mended(
    tmp_path, no_pictures, asynchronous
):
    down = tmp_path / "down"
    setup = config(tmp_path, labels={"asynchronous": asynchronous}, stop={"max_iterations": 1})
    setup["reference"] |= {
        "calculator": "tests.hal.references.Moody", "arguments": {"unless": str(down)}, "max_attempts": 1,
    }  # fmt: skip

    def fail_from_the_dynamics_on(event):
        if event["stage"] == "dynamics":
            down.touch()

    with pytest.raises(
        RuntimeError, match="no structure of iteration 1 could be labelled.*the cluster is down.*resume"
    ):
        hx.HAL(setup, progress=fail_from_the_dynamics_on).run()
    assert len(records(tmp_path, "label")) == 4
    down.unlink()
    result = hx.HAL(setup, resume=True).run()
    assert "1 iterations done" in result.reason and len(records(tmp_path, "label")) == 6
    assert len(records(tmp_path, "request")) == 1  # the dynamics were not run again


def test_dynamics_that_never_stay_safe_end_the_run_until_they_are_changed(tmp_path, no_pictures):
    setup = config(tmp_path, dynamics={"timestep_fs": 400.0}, stop={"max_iterations": 1})
    with pytest.raises(
        RuntimeError, match="iteration 1: no replica stayed safe.*lower the temperature.*rerun with --resume"
    ):
        hx.HAL(setup).run()
    # Structures at which a guard struck are labelled, once: then the guard itself is to blame.
    with pytest.raises(RuntimeError, match="iteration 2: no replica stayed safe.*too_close.*widen the guards"):
        hx.HAL(config(tmp_path, dynamics={"min_distance": 3.0}), resume=True).run()
    (request,) = records(tmp_path, "request")
    assert [(job["origin"]["status"], job["origin"]["frame"]) for job in request["jobs"].values()] == [
        ("too_close", "stopped")
    ] * 2
    result = hx.HAL(config(tmp_path), resume=True).run()
    assert "2 iterations done" in result.reason


def test_structures_at_which_a_guard_struck_may_all_fail(tmp_path, no_pictures):
    """Many reference calculators do not converge for them. That the reference works is known from the starts."""
    down = tmp_path / "down"
    setup = config(tmp_path, dynamics={"max_force": 1e-3}, stop={"max_iterations": 1})
    setup["reference"] |= {
        "calculator": "tests.hal.references.Moody", "arguments": {"unless": str(down)}, "max_attempts": 1,
    }  # fmt: skip

    def fail_from_the_dynamics_on(event):
        if event["stage"] == "dynamics":
            down.touch()

    result = hx.HAL(setup, progress=fail_from_the_dynamics_on).run()
    assert "1 iterations done" in result.reason
    assert sorted(r["id"] for r in records(tmp_path, "failed")) == ["1-0", "1-1"]
    assert records(tmp_path, "iteration")[1]["learned"] == []


def test_a_structure_that_fails_alone_is_left_out_when_it_fails_again(tmp_path, no_pictures):
    """One label an iteration: it ends the run, which may be the reference's fault, but not the next as well."""
    down = tmp_path / "down"
    setup = config(tmp_path, labels={"per_iteration": 1, "test_fraction": 0.0}, stop={"max_iterations": 2})
    setup["reference"] |= {
        "calculator": "tests.hal.references.Moody", "arguments": {"unless": str(down)}, "max_attempts": 1,
    }  # fmt: skip

    def fail_in_the_first_iteration(event):
        if event["stage"] == "dynamics":
            down.touch() if event["iteration"] == 1 else down.unlink(missing_ok=True)

    with pytest.raises(RuntimeError, match="no structure of iteration 1 could be labelled.*once more are left out"):
        hx.HAL(setup, progress=fail_in_the_first_iteration).run()
    hx.HAL(setup, resume=True, progress=fail_in_the_first_iteration).run()
    assert [r["id"] for r in records(tmp_path, "failed")] == ["1-0"] * 2
    assert [r["learned"] for r in records(tmp_path, "iteration")][1:] == [[], ["2-0"]]
    hx.HAL(setup, resume=True).run(max_iterations=3)
    assert [r["learned"] for r in records(tmp_path, "iteration")][3:] == [["3-0"]]
    assert len(records(tmp_path, "failed")) == 2


def test_starts_that_failed_are_not_tried_at_every_resumption(tmp_path, no_pictures):
    setup = config(tmp_path, "tests.hal.references.Raising", stop={"max_iterations": 1})
    hx.HAL(setup).run()
    failed = len(records(tmp_path, "failed"))
    hx.HAL(setup, resume=True).run()
    assert failed >= 2 and len(records(tmp_path, "failed")) == failed


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_label_that_failed_where_others_did_not_is_tried_once(tmp_path, no_pictures, asynchronous):
    """However often the iteration that asked for it is interrupted and resumed."""
    labels = {"asynchronous": asynchronous, "per_iteration": 3, "test_fraction": 0.0}
    setup = config(tmp_path, labels=labels, stop={"max_iterations": 1})
    setup["reference"] |= {
        "calculator": "tests.hal.references.Choosy", "max_attempts": 1, "workers": 1,
        "arguments": {"unless": str(tmp_path / "choosy")},
    }  # fmt: skip

    def choosy_from_the_dynamics_on(event):
        if event["stage"] == "dynamics":
            (tmp_path / "choosy").touch()

    def interrupt(event):
        if event["stage"] == "label" and event.get("failed") and event["done"]:
            raise KeyboardInterrupt

    for progress in (lambda e: (choosy_from_the_dynamics_on(e), interrupt(e)), None):
        try:
            hx.HAL(setup, resume=True, progress=progress).run()
        except KeyboardInterrupt:
            assert progress is not None
    failed = [record["id"] for record in records(tmp_path, "failed")]
    assert failed and len(failed) == len(set(failed))
    assert records(tmp_path, "iteration")[-1]["learned"] == ["1-0"]


def test_a_label_can_be_dropped(tmp_path, no_pictures):
    """It stays in the journal, is in no fit any more, and is not asked for again."""
    setup = config(tmp_path, labels={"test_fraction": 0.0}, stop={"max_iterations": 1})
    whole = hx.HAL(setup).run()
    with pytest.raises(ValueError, match="there is no label 1-7 to drop; there are 1-"):
        hx.HAL(setup, resume=True, drop=["1-7"]).run()
    with pytest.raises(ValueError, match="pass resume=True"):
        hx.HAL(setup, drop=["1-0"])
    result = hx.HAL(setup, resume=True, drop=["1-0", "start-3"]).run(max_iterations=2)
    assert [record["id"] for record in records(tmp_path, "drop")] == ["1-0", "start-3"]
    known = [atoms.info["label"] for atoms in result.model.structures]
    assert known == ["start-0", "start-1", "start-2", "1-1", "2-0", "2-1"]
    assert len(whole.model.structures) == 6
    again = hx.HAL(setup, resume=True, drop=["1-0"]).run(max_iterations=2)
    assert [atoms.info["label"] for atoms in again.model.structures] == known
    assert len(records(tmp_path, "label")) == 8 and len(records(tmp_path, "drop")) == 2


def test_a_label_that_no_fit_can_take_is_named_with_the_way_out(tmp_path, no_pictures):
    setup = config(tmp_path, stop={"max_iterations": 1})
    hx.HAL(setup).run()
    journal = tmp_path / "run" / "journal.jsonl"
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    bad = next(record for record in lines if record.get("id") == "start-2")
    bad["forces"][1][2] = 1e300  # as an earlier version would have recorded it
    journal.write_text("".join(json.dumps(record) + "\n" for record in lines))
    with pytest.raises(ValueError, match=r"structure 2, label start-2 \(.*\): forces of 1e[+]300 .*--resume --drop ID"):
        hx.HAL(setup, resume=True).run()
    result = hx.HAL(setup, resume=True, drop=["start-2"]).run()
    assert "start-2" not in [atoms.info["label"] for atoms in result.model.structures]


def test_labelled_starts_are_not_labelled_again(tmp_path, no_pictures):
    starts = []
    for atoms in cells():
        atoms.calc = EMT()
        starts.append(with_labels(atoms, atoms.get_potential_energy() + 1.0, atoms.get_forces(), atoms.get_stress()))
    starts[1].info |= {"energy_weight": 0.5, "stress_weight": 0.0}
    starts[2].set_array("force_weight", np.arange(8.0))
    result = hx.HAL(config(tmp_path, starts=starts, stop={"max_iterations": 1})).run()
    known = read(tmp_path / "run" / "structures.xyz", ":")
    train = [atoms for atoms in known if atoms.info["role"] == "train"]
    again = hx.fit(result.model.basis, train)
    # As in `check_learned_all_in_one`; a weight that is lost doubles the noise, or halves it.
    np.testing.assert_allclose(again.posterior.noise_precision, result.model.posterior.noise_precision, rtol=1e-2)
    assert known[1].info["energy_weight"] == 0.5 and known[1].info["stress_weight"] == 0.0
    assert known[2].arrays["force_weight"].tolist() == list(range(8))
    assert not {"energy_weight", "force_weight"} & (set(known[0].info) | set(known[-1].info))
    first = next(r for r in records(tmp_path, "label") if r["id"] == "start-0")
    assert first["attempts"] == 0
    assert first["energy"] == pytest.approx(starts[0].get_potential_energy(), abs=1e-7)  # extxyz keeps 8 decimals


def test_molecules_isolated_atoms_and_threads(tmp_path, no_pictures):
    """Non-periodic, no stress, E0 from isolated atoms, a calculator object and an executor of the user's."""
    rng = np.random.default_rng(0)
    starts = []
    for _ in range(5):
        atoms = molecule("CH3OH")
        atoms.positions += 0.05 * rng.standard_normal(atoms.positions.shape)
        starts.append(atoms)
    setup = config(
        tmp_path,
        starts=starts,
        basis={"elements": ["C", "H", "O"], "max_degree": 3},
        fit={"e0": "isolated"},
        dynamics={"pressure_GPa": None, "swap_interval": 0, "timestep_fs": 0.5, "replicas_per_batch": 3},
        stop={"max_iterations": 1},
    )
    del setup["reference"]["calculator"]
    with ThreadPoolExecutor(1) as pool:
        result = hx.HAL(setup, calculator=EMT(), executor=pool).run()
    isolated = {r["id"]: r["energy"] for r in records(tmp_path, "label") if r["role"] == "isolated"}
    assert len(isolated) == 3
    for name, energy in zip(("isolated-C", "isolated-H", "isolated-O"), result.model.e0, strict=True):
        assert energy == pytest.approx(isolated[name], abs=1e-5)  # known to 1e-6 beforehand


# So weak a bias that no guard strikes; two levels beyond what is given.
SURE = {"tolerance": 100.0, "tau_rel": 0.02, "bolder": {"temperature": 1.0, "tau_rel": 2.0, "n_steps": 2.0}}
SELF_ENDING = {"labels": {"within_tolerance": False}, "stop": {"max_iterations": None, "patience": 2}}


@pytest.fixture(scope="module")
def sure(tmp_path_factory):
    """A campaign that finds nothing from the beginning on."""
    folder = tmp_path_factory.mktemp("sure")
    test = {"reference_md": {"temperature_K": [300], "frames": 4, "interval": 5, "burn_in": 5}}
    return folder, hx.HAL(config(folder, dynamics=SURE, test=test, **SELF_ENDING)).run()


def levels_of(folder):
    return [r["boldness"]["level"] for r in records(folder, "request")]


def test_exploration_that_finds_nothing_grows_bolder_and_ends_without_buying_labels(sure):
    folder, result = sure
    assert result.reason == "nothing left to find: the boldest exploration found nothing in the last 2 iterations"
    requests = records(folder, "request")
    assert [r["boldness"] for r in requests] == [
        {"level": 0, "temperature": 1.0, "tau_rel": 1.0, "n_steps": 1.0},
        {"level": 1, "temperature": 1.0, "tau_rel": 2.0, "n_steps": 1.0},
        *[{"level": 2, "temperature": 1.0, "tau_rel": 2.0, "n_steps": 2.0}] * 2,
    ]
    assert all(r["jobs"] == {} and r["found"] == 0 and r["tolerance"] == 100.0 for r in requests)
    assert {replica["status"] for r in requests for replica in r["replicas"]} == {"finished"}
    assert [{replica["step"] for replica in r["replicas"]} for r in requests] == [{40}, {40}, {80}, {80}]
    iterations = records(folder, "iteration")
    assert [r["labels"] for r in iterations] == [4] * 5 and [len(r["learned"]) for r in iterations] == [4, 0, 0, 0, 0]
    assert all(r["errors"] == iterations[0]["errors"] for r in iterations)
    saved = hx.evaluate(hx.load(folder / "run" / "model.npz"), [decode(r) for r in records(folder, "label")][4:])
    assert saved["total"]["force_rmse"] == pytest.approx(iterations[-1]["errors"]["total"]["force_rmse"])


def test_the_report_and_the_lines_show_how_boldly_was_explored(sure):
    folder, _ = sure
    page = re.sub(r"<[^>]*>|\s+", " ", (folder / "run" / "report.html").read_text("utf-8"))
    page = re.sub(r" +", " ", page)
    assert "nothing left to find" in page
    assert page.count("3 finished; nothing found, no labels") == 4
    assert page.count("tau_rel × 2, n_steps × 2") == 2
    shown = [_iteration_line(r) for r in records(folder, "iteration")]
    assert re.search(r"f \S+ / 100; bolder: tau_rel x 2, n_steps x 2; nothing found; ", shown[-1])
    assert "bolder" not in shown[1]


def test_interrupted_between_its_levels_it_explores_the_same(sure, tmp_path, no_pictures):
    reference, _ = sure
    test = {"reference_md": {"temperature_K": [300], "frames": 4, "interval": 5, "burn_in": 5}}
    setup = config(tmp_path, dynamics=SURE, test=test, **SELF_ENDING)
    for stage in ("dynamics", "select", "evaluate", "dynamics", "report"):
        met = []

        def interrupt(event, stage=stage, met=met):
            met.append(event["stage"])
            if met.count(stage) == 2 or stage == "report" == event["stage"]:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            hx.HAL(setup, resume=True, progress=interrupt).run()
    result = hx.HAL(setup, resume=True).run()
    assert result.reason.startswith("nothing left to find")
    keep = ("iteration", "boldness", "found", "score", "replicas", "tolerance")
    ours, theirs = ([{k: r[k] for k in keep} for r in records(f, "request")] for f in (tmp_path, reference))
    assert ours == theirs and comparable(tmp_path) == comparable(reference)


def test_a_campaign_that_has_ended_by_itself_goes_on_with_other_dynamics(sure, tmp_path, no_pictures):
    import shutil

    folder, _ = sure
    shutil.copytree(folder / "run", tmp_path / "run")
    test = {"reference_md": {"temperature_K": [300], "frames": 4, "interval": 5, "burn_in": 5}}
    starts = {"structures": str(folder / "start.xyz")}
    setup = config(tmp_path, dynamics=SURE, test=test, start=starts, **SELF_ENDING)
    again = hx.HAL(setup, resume=True).run()
    assert again.reason.startswith("nothing left to find") and len(records(tmp_path, "request")) == 4
    setup["dynamics"] |= {"tolerance": 1e-6}  # which all meet
    result = hx.HAL(setup, resume=True).run(max_iterations=5)
    assert "5 iterations done" in result.reason
    assert levels_of(tmp_path) == [0, 1, 2, 2, 0]  # bolder than what is given now is not asked for yet
    assert [len(r["jobs"]) for r in records(tmp_path, "request")] == [0, 0, 0, 0, 2]
    assert {job["origin"]["status"] for job in records(tmp_path, "request")[4]["jobs"].values()} == {"uncertain"}


def test_structures_within_the_tolerance_are_not_labelled(tmp_path, no_pictures):
    """One replica of three may be uncertain: it alone is labelled, and the boldness stays."""
    starts = cells(3)
    starts[1].info["hal_tolerance"] = 1e-6
    setup = config(tmp_path, starts=starts, dynamics=SURE, **SELF_ENDING)
    hx.HAL(setup).run(max_iterations=2)
    requests = records(tmp_path, "request")
    assert [r["found"] for r in requests] == [1, 1] and levels_of(tmp_path) == [0, 0]
    assert [[job["origin"]["replica"] for job in r["jobs"].values()] for r in requests] == [[1], [1]]


def test_a_default_tolerance_follows_the_model(tmp_path, no_pictures):
    setup = config(tmp_path, **SELF_ENDING)
    del setup["dynamics"]["tolerance"]
    hx.HAL(setup).run(max_iterations=2)
    requests = records(tmp_path, "request")
    low, high = TOLERANCE_LIMITS
    assert all(low <= r["tolerance"] <= high for r in requests)
    for r in requests:
        with np.load(tmp_path / "run" / "iterations" / f"{r['iteration']:04d}" / "trajectory.npz") as data:
            np.testing.assert_array_equal(data["tolerance"], [r["tolerance"]] * 3)
    assert [r["tolerance"] for r in records(tmp_path, "iteration")[1:]] == [r["tolerance"] for r in requests]


def test_a_run_directory_of_an_older_version_goes_on(whole, tmp_path, no_pictures):
    """Its requests know neither boldness nor tolerance, its config neither `bolder` nor a budget."""
    folder, _ = whole
    (tmp_path / "run").mkdir()
    new = ("found", "tolerance", "boldness", "basis")
    with open(tmp_path / "run" / "journal.jsonl", "w") as file:
        for record in read_journal(folder / "run" / "journal.jsonl"):
            if record["type"] in ("start", "resume"):
                del record["config"]["dynamics"]["bolder"], record["config"]["labels"]["within_tolerance"]
                del record["config"]["basis"]["budget"]
            kept = {k: v for k, v in record.items() if record["type"] == "label" or k not in new}
            file.write(json.dumps(kept) + "\n")
    test = {"reference_md": {"temperature_K": [300], "frames": 4, "interval": 5, "burn_in": 5}}
    setup = config(tmp_path, test=test, start={"structures": str(folder / "start.xyz")})
    result = hx.HAL(setup, resume=True).run(max_iterations=3)
    assert "3 iterations done" in result.reason and [len(r["jobs"]) for r in records(tmp_path, "request")] == [2, 2, 2]


def test_a_basis_grows_with_the_labels_and_a_resumed_campaign_has_the_same(tmp_path, no_pictures, monkeypatch):
    """What was chosen stands in the journal: it is not chosen anew on resumption, when times may be others."""
    monkeypatch.setattr("haljax.hal.campaign.GROWTH", 1.0)  # a search at each iteration
    monkeypatch.setattr("haljax.ace.growth.FIRST_DEGREES", (3,))
    monkeypatch.setattr("haljax.ace.growth.LARGEST_SIZE", 40)
    auto = {"max_degree": "auto"}
    folders = tmp_path / "whole", tmp_path / "parts"
    for folder in folders:
        folder.mkdir()
    whole = hx.HAL(config(folders[0], basis=auto)).run()
    chosen = [r["basis"] for r in records(folders[0], "iteration")]
    degrees = [b["max_degree"] for b in chosen]  # from 3 to 4, the largest with at most 40 functions
    assert degrees[0] <= degrees[1] <= degrees[2] == 4 and chosen[-1]["functions"] == len(whole.model.basis) == 40
    assert [b["searched"] for b in chosen] == [4, *(len(whole.model.structures) - k for k in (1, 0))]

    def interrupt(event):
        if event["stage"] == "dynamics" and event["iteration"] == 2:
            raise KeyboardInterrupt

    setup = config(folders[1], basis=auto)
    with pytest.raises(KeyboardInterrupt):
        hx.HAL(setup, progress=interrupt).run()
    parts = hx.HAL(setup, resume=True).run()
    assert comparable(folders[1]) == comparable(folders[0])
    assert [r["basis"] for r in records(folders[1], "iteration")] == chosen
    np.testing.assert_array_equal(parts.model.posterior.mean, whole.model.posterior.mean)


def test_a_run_directory_goes_on_with_the_defaults_it_was_begun_with(whole, tmp_path, no_pictures, caplog):
    """Those of an earlier version, where the config does not set the key; what it sets must agree."""
    folder, _ = whole
    (tmp_path / "run").mkdir()
    with open(tmp_path / "run" / "journal.jsonl", "w") as file:
        for record in read_journal(folder / "run" / "journal.jsonl"):
            if record["type"] == "start":
                record["config"]["fit"] |= {"solver": "brr", "energy_weight": 300.0, "e0": "lsq"}
                record["config"]["dynamics"]["epsilon"] = 0.1
            file.write(json.dumps(record) + "\n")
            if record["type"] == "iteration":
                break
    test = {"reference_md": {"temperature_K": [300], "frames": 4, "interval": 5, "burn_in": 5}}
    setup = config(tmp_path, test=test, start={"structures": str(folder / "start.xyz")})
    run = hx.HAL(setup, resume=True)
    result = run.run()
    assert result.model.settings.solver == "brr" and result.model.settings.energy_weight == 300
    assert run.config.dynamics.epsilon == 0.2  # [dynamics] may change
    assert 'fit.e0 = "lsq"' in caplog.text and 'fit.solver = "brr"' in caplog.text and "epsilon" not in caplog.text
    with pytest.raises(CampaignMismatch, match='fit.solver: was "brr", now "ard"'):
        hx.HAL(setup | {"fit": {"solver": "ard"}}, resume=True).run()


def test_overrides_of_one_structure(tmp_path, no_pictures):
    """The second replica is shorter, and moves its cell, which the config does not ask for."""
    starts = cells(1) * 2
    starts[1] = starts[1].copy()
    starts[1].info |= {"hal_n_steps": 20, "hal_tolerance": 50.0, "hal_timestep_fs": 0.5, "hal_pressure_GPa": 0.0}
    dynamics = {"replicas": 2, "tolerance": 100.0, "pressure_GPa": None}
    hx.HAL(config(tmp_path, starts=starts, dynamics=dynamics, stop={"max_iterations": 1})).run()
    (request,) = records(tmp_path, "request")
    assert [replica["step"] for replica in request["replicas"]] == [40, 20]
    with np.load(tmp_path / "run" / "iterations" / "0001" / "trajectory.npz") as data:
        np.testing.assert_array_equal(data["tolerance"], [100.0, 50.0])
        np.testing.assert_allclose(data["timestep_fs"], [2.0, 0.5], rtol=1e-14)
        tried = np.any(data["cell_moves"] >= 0, axis=0)
        np.testing.assert_array_equal(tried, [False, True])


def test_plan_says_what_would_run_and_runs_nothing(tmp_path):
    plan = hx.HAL(config(tmp_path)).plan()
    assert "functions" in plan and "4 structures" in plan and "max_iterations = 2" in plan
    ending = hx.HAL(config(tmp_path, dynamics=SURE, **SELF_ENDING)).plan().splitlines()
    assert "if none found   no labels; up to tau_rel x 2, n_steps x 2" in ending
    assert "stop            nothing found in 2 of the boldest iterations" in ending
    assert "tolerance       100 of the relative force error" in ending
    assert not (tmp_path / "run").exists()


def test_plan_says_what_a_user_may_not_expect(tmp_path):
    starts = cells()
    for i, atoms in enumerate(starts):
        atoms.info["xtb_energy"], atoms.info["mace_energy"] = -1.0, 1e9
        if i < 2:
            atoms.set_array("xtb_forces", np.zeros((len(atoms), 3)))
    starts[3].pbc = False
    setup = config(tmp_path, starts=starts, stop={"max_labels": 4}, dynamics={"pressure_GPa": 0.0})
    notes = [line for line in hx.HAL(setup).plan().splitlines() if line.startswith("note ")]
    assert [words in line for words, line in zip(
        ("2 structures have an energy and no forces", "pressure_GPa does nothing for 1", "max_labels = 4 is no more",
         "'mace_energy'] of 4 structures"), notes, strict=True
    )] == [True] * 4  # fmt: skip
    # By another name the energies are those of 1e9 eV, and no structure has forces.
    start = setup["start"] | {"keys": {"energy": "mace_energy"}}
    plan = hx.HAL(setup | {"start": start}).plan()
    assert "energies should be in eV" in plan and "2 structures have an energy and no forces" in plan
    with pytest.raises(ConfigError, match="start.keys.*force is no label"):
        hx.HAL(setup | {"start": setup["start"] | {"keys": {"force": "f"}}})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.symbols.__setitem__(0, "Ni"), "Ni is not among the basis' elements"),
        (lambda a: a.set_cell(np.zeros((3, 3))), "no volume"),
        (lambda a: a.positions.__setitem__(1, a.positions[0]), "on one place"),
        (lambda a: a.positions.__setitem__((0, 0), np.nan), "not finite"),
    ],
)
def test_bad_start_structures_are_refused_before_anything_is_labelled(tmp_path, change, message):
    starts = cells()
    change(starts[2])
    with pytest.raises(ValueError, match=message):
        hx.HAL(config(tmp_path, starts=starts)).run()
    assert not (tmp_path / "run").exists()


def test_bad_test_structures_and_overrides_are_refused_before_anything_is_labelled(tmp_path):
    strangers = cells(2)
    strangers[1].symbols[0] = "Ni"
    write(tmp_path / "test.xyz", strangers, format="extxyz")
    with pytest.raises(ValueError, match=r"test.xyz: structure 1.*Ni is not among the basis' elements"):
        hx.HAL(config(tmp_path, test={"structures": str(tmp_path / "test.xyz")})).plan()
    starts = cells()
    starts[2].info["hal_tolerance"] = -1.0
    with pytest.raises(ValueError, match=r"start.xyz, structure 2: hal_tolerance = -1.0: should be greater than 0"):
        hx.HAL(config(tmp_path, starts=starts)).run()
    assert not (tmp_path / "run").exists()


def test_another_start_under_the_same_name_is_noticed(tmp_path):
    def stop(event):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hx.HAL(config(tmp_path), progress=stop).run()
    with pytest.raises(CampaignMismatch, match="start and test structures: was"):
        hx.HAL(config(tmp_path, starts=cells(seed=1)), resume=True).run()


def test_unreadable_start_and_calculator(tmp_path):
    setup = config(tmp_path)
    (tmp_path / "start.xyz").write_text("nonsense\n")
    with pytest.raises(ValueError, match="start.xyz cannot be read as structures"):
        hx.HAL(setup).run()
    with pytest.raises(ValueError, match="ase.calculators.emt.MET.*cannot be loaded"):
        hx.HAL(config(tmp_path, reference={"calculator": "ase.calculators.emt.MET"}))
    with pytest.raises(ConfigError, match="reference.calculator"):
        setup = config(tmp_path)
        del setup["reference"]["calculator"]
        hx.HAL(setup)


def test_a_full_disk_says_so_and_loses_nothing(tmp_path, no_pictures):
    """Models cannot be written any more in the second round; the run ends, resumes and completes."""
    import errno

    setup = config(tmp_path)
    save, written = hx.Model.save, []

    def full(self, path):
        written.append(path)
        if len(written) > 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        save(self, path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hx.Model, "save", full)
        with pytest.raises(JournalError, match="No space left on device.*no label is lost"):
            hx.HAL(setup).run()
    labels = {r["id"] for r in records(tmp_path, "label")}
    hx.HAL(setup, resume=True).run()
    assert labels <= {r["id"] for r in records(tmp_path, "label")}
    assert [r["iteration"] for r in records(tmp_path, "iteration")] == [0, 1, 2]


def test_x64_off_is_said_at_once(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config(tmp_path)))
    program = "import json, sys, haljax as hx; hx.HAL(json.load(open(sys.argv[1]))).run()"
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "config.json"],
        env=os.environ | {"JAX_ENABLE_X64": "0"},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "JAX_ENABLE_X64=1" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "run").exists()
