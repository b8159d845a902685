from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.io import read, write
from click.testing import CliRunner, Result

import haljax as hx
from haljax import cli
from haljax.campaign import JournalError
from haljax.cli import check, potential
from haljax.evaluation import left_out_words
from haljax.md import Status

EXAMPLES = Path(__file__).parents[2] / "examples"
CONFIG = """
directory = "run"
[reference]
calculator = "ase.calculators.emt.EMT"
[start]
structures = "train.xyz"
[basis]
elements = ["Al", "Cu"]
[dynamics]
temperature_K = 600
[stop]
max_labels = 100
"""


def haljax(*arguments: object) -> Result:
    return CliRunner().invoke(cli.main, [str(a) for a in arguments])


def succeeds(*arguments: object) -> str:
    result = haljax(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def fails(*arguments: object) -> str:
    """The message of a command that must fail as expected: on stderr, exit code 1, no traceback."""
    result = haljax(*arguments)
    assert result.exit_code == 1, result.output
    assert result.stderr.startswith("error: ") and "Traceback" not in result.output
    return result.stderr


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the application sets must not leak into other tests."""
    for name in ("JAX_ENABLE_X64", "JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
        monkeypatch.setenv(name, os.environ.get(name, "1"))  # so that it is put back afterwards
    monkeypatch.setenv("JAX_ENABLE_X64", "1")
    monkeypatch.setenv("HALJAX_CACHE_DIR", "off")
    monkeypatch.delenv("FORCE_COLOR", raising=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labelled Al-Cu structures, and a model fitted to them by the command line."""
    folder = tmp_path_factory.mktemp("cli")
    rng = np.random.default_rng(0)
    structures = []
    for seed in range(16):
        atoms = bulk("Al", cubic=True) * (2, 1, 1)
        atoms.symbols[rng.choice(8, 3, replace=False)] = "Cu"
        atoms.rattle(0.1, seed=seed)
        atoms.info["config_type"] = "even" if seed % 2 else "odd"
        atoms.calc = EMT()
        atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()
        structures.append(atoms)
    for name, part in {"train": slice(8), "new": slice(8, 10), "test": slice(10, 16)}.items():
        write(folder / f"{name}.xyz", structures[part], format="extxyz")
    for atoms in structures:
        atoms.calc = None
    write(folder / "pool.xyz", structures[8:], format="extxyz")
    out = succeeds(
        "fit", folder / "train.xyz", "-o", folder / "model.npz", "--order", 2, "--max-degree", 6,
        "--cutoff", 4.5, "--e0", "lsq", "--force-weight", 20, "--smoothness", 1,
        "--test", folder / "test.xyz",
    )  # fmt: skip
    (folder / "fit.txt").write_text(out)
    (folder / "alcu.toml").write_text(CONFIG)
    return folder


# ----------------------------------------------------------------------------------------- without a campaign


def test_fit_is_that_of_the_library(folder):
    model = hx.load(folder / "model.npz")
    assert model.basis == hx.ace_basis(["Al", "Cu"], 4.5, 2, 6)
    assert (model.settings.force_weight, model.settings.smoothness, model.n_structures) == (20, 1, 8)
    out = (folder / "fit.txt").read_text()
    # The errors on the training set with those of structures left out, an estimate of test errors, below.
    assert model.choice in out and model.settings.solver == "auto"
    train = replace(hx.evaluate(model, read(folder / "train.xyz", ":")), note=left_out_words(model))
    assert str(train) in out and out.count("leave-one-out (8 groups") == 2
    assert str(hx.evaluate(model, read(folder / "test.xyz", ":"))) in out


def test_fit_with_a_basis_that_the_data_choose(folder, tmp_path, monkeypatch):
    """Each step of the search is shown while it goes on."""
    monkeypatch.setattr("haljax.ace.growth.LARGEST_SIZE", 100)
    monkeypatch.setattr("haljax.ace.growth.FIRST_DEGREES", (5,))
    result = haljax(
        "fit", folder / "train.xyz", "-o", tmp_path / "m.npz", "--cutoff", 4, "--order", 2, "--max-degree", "auto"
    )  # fmt: skip
    model = hx.load(tmp_path / "m.npz")
    assert model.basis.words() in result.stdout and model.basis.max_degree >= 5
    assert "than order 2, degree 5" in result.stderr


def test_fit_by_default_takes_the_defaults_of_the_library(folder, tmp_path, monkeypatch):
    def fit(basis, train, **settings):
        assert basis == hx.ace_basis(["Al", "Cu"]) and len(train) == 8 and settings == {"keys": {}}
        raise ValueError("seen")

    monkeypatch.setattr("haljax.training.fit", fit)
    assert fails("fit", folder / "train.xyz", "-o", tmp_path / "m.npz") == f"error: {folder / 'train.xyz'}: seen\n"


def test_evaluate(folder):
    arguments = "evaluate", folder / "model.npz", folder / "test.xyz"
    table = hx.evaluate(hx.load(folder / "model.npz"), read(folder / "test.xyz", ":"))
    assert succeeds(*arguments) == f"{table}\n"
    assert json.loads(succeeds(*arguments, "--json")) == table.rows
    assert {"even", "odd", "total"} == set(table.rows)


@pytest.mark.parametrize("command", ["update", "calibrate"])
def test_a_model_is_not_overwritten_unasked(folder, command):
    before = (folder / "model.npz").read_bytes()
    result = haljax(command, folder / "model.npz", folder / "new.xyz")
    assert result.exit_code == 2 and "--output" in result.stderr
    assert (folder / "model.npz").read_bytes() == before


def test_labels_of_other_names(folder, tmp_path):
    """Usual spellings are found; others are read where their names are given, and named where not."""
    structures, tables = read(folder / "test.xyz", ":"), []
    for energy, forces in (("REF_energy", "REF_forces"), ("mace_energy", "mace_forces")):
        renamed = []
        for atoms in structures:
            bare = atoms.copy()
            bare.info[energy], bare.arrays[forces] = atoms.get_potential_energy(), atoms.get_forces()
            renamed.append(bare)
        write(tmp_path / f"{energy}.xyz", renamed, format="extxyz")
        known = [] if energy == "REF_energy" else ["--energy-key", energy, "--forces-key", forces]
        tables.append(succeeds("evaluate", folder / "model.npz", tmp_path / f"{energy}.xyz", *known))
    assert tables[0] == tables[1]
    message = fails("evaluate", folder / "model.npz", tmp_path / "mace_energy.xyz")
    assert "has no energy, forces or stress" in message and "'mace_energy'" in message


def test_json_has_null_where_a_label_is_missing(folder, tmp_path):
    structures = read(folder / "test.xyz", ":")
    for atoms in structures:
        atoms.info["energy"] = atoms.calc.results["energy"]
        atoms.calc = None
    write(tmp_path / "energies.xyz", structures, format="extxyz")
    rows = json.loads(succeeds("evaluate", folder / "model.npz", tmp_path / "energies.xyz", "--json"))
    assert rows["total"]["force_rmse"] is None and rows["total"]["energy_rmse"] > 0


def test_select(folder, tmp_path):
    out = succeeds("select", folder / "model.npz", folder / "pool.xyz", "-n", 3, "-o", tmp_path / "picked.xyz")
    pool = read(folder / "pool.xyz", ":")
    indices = hx.select(hx.load(folder / "model.npz"), pool, 3)
    assert f"picked {', '.join(map(str, indices))} " in out
    picked = read(tmp_path / "picked.xyz", ":")
    for atoms, index in zip(picked, indices, strict=True):
        np.testing.assert_allclose(atoms.positions, pool[index].positions, atol=1e-7)  # extxyz has 8 digits


def test_update_then_calibrate(folder, tmp_path):
    out = succeeds("update", folder / "model.npz", folder / "new.xyz", "-o", tmp_path / "more.npz")
    assert "10 structures" in out
    wanted = hx.update(hx.load(folder / "model.npz"), read(folder / "new.xyz", ":"))
    updated = hx.load(tmp_path / "more.npz")
    # The same computation twice on one machine; the mean is ill-conditioned, so not to the last digit.
    np.testing.assert_allclose(updated.posterior.mean, wanted.posterior.mean, rtol=1e-6, atol=1e-9)

    out = succeeds("calibrate", tmp_path / "more.npz", folder / "test.xyz", "-o", tmp_path / "calibrated.npz")
    assert "nominal coverage" in out
    calibrated = hx.load(tmp_path / "calibrated.npz")
    # Six structures of eight atoms: how many values the factors come from stands beside them.
    assert calibrated.force_calibration != 1
    assert f"forces_std x {calibrated.force_calibration:.3g} (from 144 components)" in out


def no_schema(path: Path, folder: Path) -> Path:
    with np.load(folder / "model.npz") as data:
        arrays = dict(data)
    meta = json.loads(str(arrays["meta"])) | {"schema_version": 99, "haljax": "9.9"}
    np.savez(path, **arrays | {"meta": np.array(json.dumps(meta))})
    return path


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["evaluate", "none.npz", "test.xyz"], r"none.npz: No such file"),
        (["evaluate", "model.npz", "none.xyz"], r"there is no file .*none.xyz"),
        (["evaluate", "test.xyz", "test.xyz"], r"test.xyz is not a haljax model"),
        (["evaluate", "model.npz", "model.npz"], r"model.npz cannot be read as structures"),
        (["evaluate", "model.npz", "pool.xyz"], r"pool.xyz: structure 0 \(\w+\) has no energy, forces"),
        (["evaluate", "future.npz", "test.xyz"], r"schema version 99, written by haljax 9.9; this haljax"),
        (["evaluate", "model.npz", "gold.xyz"], r"gold.xyz: structure 0 \(Au\d*\): Au is not among the"),
        (["evaluate", "model.npz", "empty.xyz"], r"empty.xyz (holds no|cannot be read as) structures"),
        (["fit", "train.xyz", "--elements", "Al"], r"train.xyz: structure 0 .*Cu is not among the basis"),
        (["fit", "train.xyz", "--elements", "Al,Xx1"], r"'Xx1' is not a chemical symbol"),
        (["fit", "train.xyz", "--e0", "Al=-3"], r"e0 lacks Cu"),
        (["fit", "train.xyz", "--e0", "isolated"], r"e0='isolated' needs .* Al, Cu"),
        (["fit", "train.xyz", "-o", "none/model.npz"], r"none/model.npz cannot be written"),
        (["fit", "train.xyz", "--budget", "5"], r"a budget chooses among bases"),
        (["fit", "train.xyz", "--order", "0"], r"order and max_degree must be at least 1"),
        (["select", "model.npz", "pool.xyz", "-n", "99"], r"99"),
        (["update", "model.npz", "pool.xyz", "-o", "m.npz"], r"pool.xyz: structure 0 .* has no energy"),
        (["calibrate", "model.npz", "pool.xyz", "-o", "m.npz"], r"pool.xyz: structure 0 .* has no energy"),
        (["hal", "none.toml"], r"none.toml cannot be read: No such file"),
        (["hal", "bad.toml"], r"bad.toml: 2 keys .*\n  basis.elements: missing.*basis.element: unkn"),
        (["report", "."], r"\. holds no campaign: give the run directory"),
    ],
)  # fmt: skip
def test_bad_input_is_one_clear_message(folder, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    for path in folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    no_schema(tmp_path / "future.npz", folder)
    gold = bulk("Au")
    gold.calc = EMT()
    gold.get_forces()
    write(tmp_path / "gold.xyz", gold, format="extxyz")
    (tmp_path / "empty.xyz").touch()
    (tmp_path / "bad.toml").write_text(CONFIG.replace("elements", "element"))
    assert re.search(said, fails(*arguments), re.DOTALL)


@pytest.mark.parametrize(
    "arguments",
    [
        ["fit"],
        ["fit", "a.xyz", "--solver", "ols"],
        ["select", "m", "p", "-n", "0"],
        ["fit", "a.xyz", "--e0", "ls"],
        ["fit", "a.xyz", "--max-degree", "ten"],
    ],
)
def test_wrong_usage_exits_2(arguments):
    assert haljax(*arguments).exit_code == 2


@pytest.mark.parametrize("arguments", [["--debug", "report", "none"], ["report", "none", "--debug"]])
def test_debug_shows_the_traceback(arguments):
    result = haljax(*arguments)
    assert result.exit_code == 1 and "Traceback" in result.stderr and "error: none holds no campaign" in result.stderr


def test_a_bug_is_not_hidden(monkeypatch):
    monkeypatch.setattr(potential, "_read", lambda path: {}["bug"])
    assert isinstance(haljax("fit", "a.xyz").exception, KeyError)


# ------------------------------------------------------------------------------------ in a process of its own


def test_help_is_light():
    script = (
        "import sys\nfrom haljax.cli import main\nmain(['--help'], standalone_mode=False)\n"
        "print([m for m in ('jax', 'numpy', 'ase', 'pydantic', 'rich', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    for command in ("hal", "free-energy", "fit", "evaluate", "select", "update", "calibrate", "report", "check"):
        assert f"\n  {command} " in done.stdout


def test_x64_switched_off(folder, tmp_path):
    command = [
        sys.executable,
        "-m",
        "haljax.cli",
        "fit",
        str(folder / "train.xyz"),
        "-o",
        str(tmp_path / "m.npz"),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"JAX_ENABLE_X64": "0"}, timeout=120
    )
    assert done.returncode == 1 and "set JAX_ENABLE_X64=1" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "m.npz").exists()


def test_the_application_switches_x64_on(folder, tmp_path):
    command = [
        sys.executable,
        "-m",
        "haljax.cli",
        "evaluate",
        str(folder / "model.npz"),
        str(folder / "test.xyz"),
    ]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0 and "total" in done.stdout, done.stderr


def test_a_criterion_of_the_users_own_as_the_examples_show_it(tmp_path):
    """It lies in the working directory, which the installed command does not have on its path by itself (-P)."""
    page = (EXAMPLES / "README.md").read_text().split("## A criterion of your own")[1]
    (code,), (table,) = (re.findall(rf"```{kind}\n(.*?)```", page, re.DOTALL) for kind in ("python", "toml"))
    (tmp_path / "my_criteria.py").write_text(code)
    example = (EXAMPLES / "lixcoo2.toml").read_text().replace('"lixcoo2_eci', f'"{EXAMPLES}/lixcoo2_eci')
    (tmp_path / "my.toml").write_text(example + table)
    script = "from haljax.cli import main; main(['free-energy', 'my.toml', '--dry-run'])"
    environment = os.environ | {"PYTHONPATH": str(EXAMPLES.parent)}
    command = [sys.executable, "-P", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0 and "steepest 16" in done.stdout, done.stderr


def test_cache_directory(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.metadata, "version", lambda package: "0.12.0.1")
    assert cli._cache_directory() is None  # "off"
    monkeypatch.setenv("HALJAX_CACHE_DIR", str(tmp_path))
    assert cli._cache_directory().parent == tmp_path
    monkeypatch.delenv("HALJAX_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cli._cache_directory().parent == tmp_path / "haljax"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cli._cache_directory().parent == Path.home() / ".cache" / "haljax"
    monkeypatch.setattr(importlib.metadata, "version", lambda package: "0.10.1")
    assert cli._cache_directory() is None


# -------------------------------------------------------------------------------------------------------- hal


ITERATION = {
    "type": "iteration", "stage": "iteration", "iteration": 1, "labels": 14, "score": 0.317,
    "replicas": [{"status": "uncertain"}, {"status": "too_close"}, {"status": "uncertain"}],
    "errors": {
        "300 K": {"energy_rmse": 9.0, "force_rmse": 0.9}, "total": {"energy_rmse": 5.25, "force_rmse": None},
    },
    "seconds": {"dynamics": 3.0, "label": 1.5},
}  # fmt: skip
EVENTS: list[dict[str, Any]] = [
    {"stage": "label", "done": 0, "total": 2, "failed": 0, "error": None, "id": None},
    {"stage": "label", "done": 1, "total": 2, "failed": 0, "error": None, "id": "1-0"},
    {"stage": "label", "done": 1, "total": 2, "failed": 1, "error": "TimeoutError: [no] label", "id": "1-1"},
    {"stage": "fit"},
    ITERATION | {"iteration": 0, "score": None, "replicas": [], "errors": {}},
    {
        "stage": "dynamics", "iteration": 1, "labels": 12, "step": [500, None, 70],
        "criterion": [0.05, None, 0.31], "temperature_K": [612.4, None, 700.0],
        "status": [int(Status.RUNNING), None, int(Status.TOO_CLOSE)],
        "pressure_GPa": [float("nan"), None, 1.25], "tolerance": 0.123,
        "boldness": {"level": 3, "tau_rel": 4.0, "temperature": 1.0, "n_steps": 2.0},
    },
    ITERATION,
    ITERATION | {
        "iteration": 2, "found": 0, "tolerance": 0.4, "replicas": [{"status": "finished"}], "errors": {},
        "boldness": {"level": 3, "tau_rel": 4.0, "temperature": 2**0.5, "n_steps": 1.0},
    },
    {"stage": "report"},
    {"stage": "stop", "reason": "14 labels done"},
]  # fmt: skip


class FakeHAL:
    """Plays the events, looking at the screen after each."""

    seen: dict[str, Any]
    ends_with: BaseException | None = None
    screens: list[str]

    def __init__(self, config, resume=False, progress=None, drop=()):
        FakeHAL.seen = {"config": config, "resume": resume, "drop": drop}
        self.progress = progress

    def plan(self):
        return "run directory x"

    def run(self, max_labels=None, max_iterations=None):
        FakeHAL.seen |= {"max_labels": max_labels, "max_iterations": max_iterations}
        FakeHAL.screens = []
        for event in EVENTS:
            self.progress(event)
            if screen := getattr(self.progress, "__self__", None):
                with screen.console.capture() as capture:
                    screen.console.print(screen.render())
                FakeHAL.screens.append(re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capture.get()))
        if self.ends_with is not None:
            raise self.ends_with
        return SimpleNamespace(reason="14 labels done", model=None, errors="TABLE", calibration="COVERAGE")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeHAL]:
    monkeypatch.setattr("haljax.hal.campaign.HAL", FakeHAL)
    monkeypatch.setattr(FakeHAL, "ends_with", None)
    return FakeHAL


def test_hal_says_one_line_for_an_event_of_interest(folder, fake):
    out = succeeds("hal", folder / "alcu.toml", "--max-labels", 14).splitlines()
    assert out[:6] == [
        "label 1-1 failed: TimeoutError: [no] label",
        "labels: 1 of 2 done, 1 failed",
        "iteration 0: 14 labels; dynamics 3 + label 2 s",
        "iteration 1: 14 labels; replicas 2 uncertain, 1 too close; f 0.317; test RMSE 5.25 meV/atom, - eV/Å; "
        "dynamics 3 + label 2 s",
        "iteration 2: 14 labels; replicas 1 finished; f 0.317 / 0.4; bolder: tau_rel x 4, temperature x 1.41; "
        "nothing found; dynamics 3 + label 2 s",
        "stop: 14 labels done",
    ]
    run = folder / "run"
    ending = f"\nerrors on the test set\nTABLE\n\nCOVERAGE\n\n14 labels done\n{run}/model.npz\n{run}/report.html"
    assert "\n".join(out[6:]) == ending
    assert (fake.seen["max_labels"], fake.seen["max_iterations"], fake.seen["resume"]) == (14, None, False)
    assert fake.seen["config"].directory == folder / "run"


def test_hal_on_a_terminal_shows_the_replicas(folder, fake, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    out = succeeds("hal", folder / "alcu.toml")
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", out)
    assert "iteration 1: 14 labels; replicas 2 uncertain, 1 too close" in plain
    assert "label 1-1 failed: TimeoutError: [no] label" in plain
    assert plain.endswith("report.html\n")
    dynamics = fake.screens[5]
    rows = [line.split() for line in dynamics.splitlines()]
    assert ["replica", "status", "step", "f", "/", "0.123", "T", "/", "K", "P", "/", "GPa"] in rows
    assert ["0", "running", "500/4000", "0.050", "612"] in rows
    assert ["1", "waiting"] in rows
    assert ["2", "too", "close", "70/4000", "0.310", "700", "1.25"] in rows
    assert "iteration 1   12 labels   dynamics 0 s   bolder: tau_rel x 4, n_steps x 2" in dynamics
    assert "labels: 1 of 2 done, 1 failed" in dynamics
    assert "test RMSE 5.25 meV/atom" in fake.screens[6]


def test_many_replicas_fit_on_a_terminal(folder, fake, monkeypatch):
    n = 200
    event = {
        "stage": "dynamics", "iteration": 1, "labels": 12, "step": [0] * n, "criterion": [0.1] * n,
        "status": [0] * (n - 1) + [1], "temperature_K": [300.0] * n, "pressure_GPa": [0.0] * n,
    }  # fmt: skip
    monkeypatch.setattr(sys.modules[__name__], "EVENTS", [event])
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("LINES", "24")
    succeeds("hal", folder / "alcu.toml")
    (screen,) = fake.screens
    assert len(screen.splitlines()) < 24
    assert re.search(r"and \d+ running, 1 uncertain", screen)


def test_hal_resume_and_dry_run(folder, fake):
    succeeds("hal", folder / "alcu.toml", "--resume", "--max-iterations", 2)
    assert fake.seen["resume"] and fake.seen["max_iterations"] == 2
    assert succeeds("hal", folder / "alcu.toml", "--dry-run") == "run directory x\n"
    assert "max_labels" not in fake.seen  # never run


@pytest.mark.parametrize("terminal", [False, True])
def test_interrupted(folder, fake, monkeypatch, terminal):
    monkeypatch.setattr(fake, "ends_with", KeyboardInterrupt())
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
    result = haljax("hal", folder / "alcu.toml")
    assert result.exit_code == 130
    message = f"interrupted; nothing labelled is lost: haljax hal {folder / 'alcu.toml'} --resume continues\n"
    assert result.stderr == message


def test_interrupted_elsewhere(folder, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("haljax.evaluation.evaluate", interrupt)
    result = haljax("evaluate", folder / "model.npz", folder / "test.xyz")
    assert result.exit_code == 130 and result.stderr == "interrupted\n"


def test_a_campaign_that_cannot_go_on(folder, fake, monkeypatch):
    monkeypatch.setattr(fake, "ends_with", JournalError("journal.jsonl cannot be written: No space left on device"))
    assert fails("hal", folder / "alcu.toml") == "error: journal.jsonl cannot be written: No space left on device\n"


def test_report(tmp_path, monkeypatch):
    (tmp_path / "journal.jsonl").touch()
    monkeypatch.setattr("haljax.report.write_report", lambda folder: folder / "report.html")
    assert succeeds("report", tmp_path) == f"{tmp_path / 'report.html'}\n"


# ------------------------------------------------------------------------------------------------------ check


def test_the_parts_of_the_self_check():
    assert f"jax {jax.__version__}" in check._check_versions()
    assert check._check_x64() == "on"
    assert "cpu" in check._check_devices() or "gpu" in check._check_devices()
    assert "are right" in check._check_arithmetic()
    assert "force error" in check._check_fit()


def test_check_tells_what_is_fine_and_what_is_not(monkeypatch):
    def broken() -> str:
        raise RuntimeError("is not")

    monkeypatch.setattr(check, "_CHECKS", [("this", lambda: "is"), ("that", broken)])
    result = haljax("check")
    assert result.exit_code == 1 and result.stdout == "ok      this: is\nFAILED  that: is not\n"
    assert result.stderr == "error: 1 of 2 checks failed\n"
    monkeypatch.setattr(check, "_CHECKS", [("this", lambda: "is")])
    assert succeeds("check") == "ok      this: is\n"


def test_check_refuses_the_jax_that_computes_wrong_numbers(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda package: "0.10.2")
    with pytest.raises(RuntimeError, match="computes wrong numbers"):
        check._check_versions()


def test_check_finds_wrong_arithmetic(monkeypatch):
    # As jax 0.10.2 does: under jit, rows beyond the first block are wrong.
    monkeypatch.setattr(jax, "jit", lambda f: lambda *a: f(*a).at[40_000].add(1e-3))
    with pytest.raises(RuntimeError, match="jit computes 1 of 100000 rows in float64 wrong"):
        check._check_arithmetic()


@pytest.mark.slow
def test_check_runs_a_campaign():
    assert "1 iterations done" in check._check_campaign()


@pytest.mark.parametrize("reader", ["head -1", "cat > /dev/full"], ids=["closed pipe", "full disk"])
def test_progress_that_nobody_reads_ends_nothing(tmp_path, reader):
    code = (
        "from haljax.cli.base import say\n"
        "for i in range(20000): say(f'iteration {i}')\n"
        f"open({str(tmp_path / 'done')!r}, 'w').close()\n"
    )
    into = "> /dev/full" if "full" in reader else f"| {reader}"
    done = subprocess.run(f'"{sys.executable}" -c "$CODE" {into}', shell=True, env=os.environ | {"CODE": code},
                          capture_output=True, text=True)  # fmt: skip
    assert (tmp_path / "done").exists(), done.stderr
    assert "Traceback" not in done.stderr
    assert ("going on without it" in done.stderr) == ("full" in reader)


def test_a_device_that_is_not_there_is_named(folder):
    """JAX itself ends in an assertion without words."""
    command = [sys.executable, "-m", "haljax.cli", "evaluate", str(folder / "model.npz"), str(folder / "test.xyz")]
    environment = os.environ | {"JAX_PLATFORMS": "cuda", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and "JAX_PLATFORMS=cuda asks for" in done.stderr and "Traceback" not in done.stderr
