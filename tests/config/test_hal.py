from __future__ import annotations

import copy
import inspect
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from haljax import training
from haljax.ace import ace_basis
from haljax.campaign import Limits, open_campaign
from haljax.config import MAY_CHANGE, Basis, ConfigError, HALConfig, Ramp, per_replica

MINIMAL = """
directory = "run"
[reference]
calculator = "ase.calculators.emt.EMT"
[start]
structures = "start.xyz"
[basis]
elements = ["Al", "Cu"]
[dynamics]
temperature_K = 600
[stop]
max_labels = 100
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "start.xyz").write_text("1\n\nAl 0 0 0\n")
    (tmp_path / "test.xyz").write_text("1\n\nAl 0 0 0\n")
    return tmp_path


@pytest.fixture
def data(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The minimal config as a dict; its paths are relative to the working directory."""
    monkeypatch.chdir(folder)
    return tomllib.loads(MINIMAL)


def put(data: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """The config with one dotted key set, or taken out where the value is None."""
    data = copy.deepcopy(data)
    *tables, last = key.split(".")
    table = data
    for name in tables:
        table = table.setdefault(name, {})
    if value is None:
        del table[last]
    else:
        table[last] = value
    return data


def test_minimal_config_and_the_defaults(folder):
    (folder / "alcu.toml").write_text(MINIMAL)
    config = HALConfig.load(folder / "alcu.toml")
    assert config.directory == folder / "run" and config.start.structures == folder / "start.xyz"
    assert (config.seed, config.test, config.labels.per_iteration, config.labels.test_fraction) == (
        0,
        None,
        4,
        0.0,  # the fit calibrates itself by leaving structures out
    )
    assert config.fit.model_dump() == {
        "e0": "auto",
        "energy_weight": training.ENERGY_WEIGHT,
        "force_weight": training.FORCE_WEIGHT,
        "stress_weight": training.STRESS_WEIGHT,
        "solver": "auto",
        "smoothness": training.SMOOTHNESS,
    }
    dynamics = config.dynamics.model_dump()
    assert dynamics.pop("temperature_K") == 600
    assert dynamics == {
        "replicas": 8, "pressure_GPa": None, "tau_rel": 0.2, "n_steps": 2000, "timestep_fs": 1.0,
        "friction_per_fs": 0.01, "tolerance": None, "epsilon": 0.2, "criterion": "max", "committee": 8,
        "bolder": {"temperature": 1.25, "tau_rel": 1.0, "n_steps": 2.0},
        "tau_history": 100, "tau_delay": None, "check_interval": 10, "cell_interval": 10,
        "cell_fixed_shape": False, "cell_step": 0.01, "swap_interval": 0, "skin": 0.5, "min_distance": 0.6,
        "max_force": 20.0, "max_temperature_K": 5000.0, "max_pressure_GPa": 50.0, "precision": "float64",
        "replicas_per_batch": None, "devices": None, "processes": None,
    }  # fmt: skip
    assert config.reference.max_attempts == 2 and config.reference.timeout_s is None
    assert config.reference.workers >= 1
    assert Limits(**config.stop.model_dump()) == Limits(max_labels=100)


def test_basis_defaults_are_those_of_ace_basis():
    arguments = inspect.signature(ace_basis).parameters
    for name in ("cutoff", "order", "max_degree"):
        assert Basis.model_fields[name].default == arguments[name].default
    assert list(Basis.model_fields) == list(arguments)


def test_the_basis_it_describes(data):
    assert HALConfig.load(put(data, "basis.max_degree", 5)).ace_basis() == ace_basis(["Al", "Cu"], max_degree=5)


def test_a_basis_may_be_left_to_the_labels(data):
    data = put(put(data, "basis.max_degree", "auto"), "basis.budget", 20)
    assert HALConfig.load(data).ace_basis() == ace_basis(["Al", "Cu"], max_degree="auto", budget=20)
    assert HALConfig.load(data).as_json()["basis"]["max_degree"] == "auto"


def test_ramps_and_lists_are_dealt_out_to_the_replicas(data):
    config = HALConfig.load(put(data, "dynamics.temperature_K", [300, {"from": 300, "to": 900}]))
    temperature = config.dynamics.temperature_K
    assert temperature == (300.0, Ramp(300.0, 900.0))
    assert [per_replica(temperature, i) for i in range(3)] == [(300, 300), (300, 900), (300, 300)]
    assert per_replica(config.dynamics.tau_rel, 5) == (0.2, 0.2)
    one_ramp = HALConfig.load(put(data, "dynamics.tau_rel", {"from": 0, "to": 0.5})).dynamics.tau_rel
    assert per_replica(one_ramp, 7) == (0.0, 0.5)


def test_a_start_structure_may_override_the_dynamics(data):
    dynamics = HALConfig.load(data).dynamics
    assert dynamics.overridden({"energy": 1.0}) == dynamics
    assert dynamics.overridden({"hal_tolerance": 0.3}).tolerance == 0.3
    rare = type(dynamics)(temperature_K=300.0, check_interval=50)  # of which the default cell_interval is no multiple
    assert rare.overridden({"hal_tau_rel": 0.3}).check_interval == 50
    info = {
        "hal_temperature_K": np.array([300, 900]),
        "hal_pressure_GPa": np.float64(1.5),
        "hal_n_steps": np.int64(70),
        "hal_cell_fixed_shape": np.True_,
    }
    own = dynamics.overridden(info)
    assert own.temperature_K == Ramp(300.0, 900.0) and own.pressure_GPa == 1.5
    assert own.n_steps == 70 and own.cell_fixed_shape is True and own.tolerance == dynamics.tolerance


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("tolrance", 0.3, "hal_tolrance overrides nothing: give one of hal_temperature_K, hal_pressure_GPa"),
        ("tolerance", -1.0, "hal_tolerance = -1.0: should be greater than 0"),
        ("n_steps", 2.5, "hal_n_steps = 2.5: should be a valid integer"),
        ("temperature_K", np.array([300.0, -1.0]), "hal_temperature_K"),
        ("temperature_K", "hot", 'hal_temperature_K = "hot": should be a number above 0, a ramp'),
    ],
)
def test_an_override_is_checked_as_the_config_is(data, name, value, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        HALConfig.load(data).dynamics.overridden({f"hal_{name}": value})


def test_plain_data_keeps_paths_as_given_and_can_be_loaded_again(data):
    data = put(data, "dynamics.pressure_GPa", [{"from": -1, "to": 2}, 0])
    data = put(data, "fit.e0", {"Al": -3, "Cu": -3.5})
    data = put(data, "test.reference_md.temperature_K", [300, 600])
    config = HALConfig.load(data)
    plain = config.as_json()
    assert plain["directory"] == "run" and plain["start"]["structures"] == "start.xyz"
    assert plain["dynamics"]["pressure_GPa"] == [{"from": -1.0, "to": 2.0}, 0.0]
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert HALConfig.load(plain) == config


def test_a_moved_folder_resumes(folder, tmp_path_factory):
    (folder / "alcu.toml").write_text(MINIMAL)
    config = HALConfig.load(folder / "alcu.toml")
    open_campaign(config.directory, config.as_json()).close()
    moved = folder.rename(tmp_path_factory.mktemp("elsewhere") / "moved")
    config = HALConfig.load(moved / "alcu.toml")
    assert config.directory == moved / "run"
    open_campaign(config.directory, config.as_json(), resume=True, may_change=MAY_CHANGE).close()


def test_what_may_change_exists(data):
    plain = HALConfig.load(data).as_json()
    for key in MAY_CHANGE:
        table, _, name = key.partition(".")
        assert table in plain and (not name or name in plain[table])


def test_a_calculator_object_may_stand_in(data):
    data = put(data, "reference", None)
    assert HALConfig.load(data, calculator_given=True).reference.calculator is None
    with pytest.raises(ConfigError, match=r"reference.calculator: missing; give the dotted path"):
        HALConfig.load(data)


BAD = [
    # key, value (None: taken out), and what the message must say
    ("directory", None, ["directory: missing; give the run directory"]),
    ("directory", "start.xyz", ["directory", "start.xyz is a file"]),
    ("directory", 3, ["directory = 3: should be a path"]),
    ("seed", -1, ["seed = -1", "greater than or equal to 0"]),
    ("sed", 1, ["sed: unknown key; did you mean seed?"]),
    ("cutoff", 5.0, ["cutoff: unknown key; it belongs in [basis]"]),
    ("dynamic.n_steps", 5, ["dynamic: unknown key; did you mean dynamics?"]),
    ("start", None, ["start: missing; give a table [start] with the key structures"]),
    ("start", 2, ["start = 2: should be a table"]),
    ("start.structures", "none.xyz", ["start.structures", "there is no file", "none.xyz"]),
    ("reference.calculator", "EMT", ['reference.calculator = "EMT"', "'ase.calculators.emt.EMT'"]),
    ("reference.arguments", {"f": len}, ["reference.arguments", "f should be plain data"]),
    ("reference.arguments", {"x": float("nan")}, ["reference.arguments", "x should be plain data"]),
    ("reference.workers", 0, ["reference.workers = 0", "greater than or equal to 1"]),
    ("reference.timeout_s", 0, ["reference.timeout_s = 0", "greater than 0"]),
    ("basis", None, ["basis: missing; give a table [basis]"]),
    ("basis.elements", ["al"], ["basis.elements", "'al' is not a chemical symbol; did you mean 'Al'?"]),
    ("basis.elements", ["Al", "Al"], ["basis.elements", "Al stands in it more than once"]),
    ("basis.elements", [], ["basis.elements = []", "at least 1 item"]),
    ("basis.elements", "Al", ['basis.elements = "Al"', "list of the chemical symbols"]),
    ("basis.elements", ["Al", 29], ["basis.elements[1] = 29", "string"]),
    ("basis.cutoff", -5.0, ["basis.cutoff = -5.0: should be greater than 0 (radius of an environment, Å, or "]),
    ("basis.cutoff", float("inf"), ["basis.cutoff", "finite"]),
    ("basis.order", "3", ['basis.order = "3": should be a valid integer']),
    ("basis.max_degree", 2.5, ["basis.max_degree = 2.5", "integer"]),
    ("basis.order", "automatic", ["basis.order = \"automatic\"", "integer", "'auto'"]),
    ("basis.budget", 5.0, ["budget chooses among bases: set max_degree = 'auto'"]),
    ("fit.e0", "lstsq", ['fit.e0 = "lstsq": should be \'auto\', \'lsq\', \'isolated\' or a table of energies']),
    ("fit.e0", {"Al": -3.1}, ["fit: e0 lacks Cu"]),
    ("fit.e0", {"Al": -3.1, "Cu": -3.5, "Zn": -1}, ["fit: e0 names Zn", "(Al, Cu)"]),
    ("fit.e0", {"Al": "x", "Cu": 1}, ["fit.e0", 'Al = "x" should be an energy in eV']),
    ("fit.solver", "ridge", ["fit.solver = \"ridge\": should be 'auto', 'brr' or 'ard'"]),
    ("fit.energy_weight", 0, ["fit.energy_weight = 0: should be greater than 0"]),
    ("dynamics", None, ["dynamics: missing; give a table [dynamics]"]),
    ("dynamics.temperature_K", None, ["dynamics.temperature_K: missing; give K: a number above 0, a ramp"]),
    ("dynamics.temperature_K", 0, ["dynamics.temperature_K = 0: should be a number above 0, a ramp"]),
    ("dynamics.temperature_K", {"from": 3}, ['temperature_K = {"from": 3}: should be a number above 0']),
    ("dynamics.temperature_K", [300, {"from": 3, "to": -1}], ["temperature_K", "should be a number above 0"]),
    ("dynamics.temperature_K", [], ["dynamics.temperature_K = []: should be a number above 0"]),
    ("dynamics.temperature_K", True, ["dynamics.temperature_K = true: should be a number above 0"]),
    ("dynamics.temperature", 300, ["dynamics.temperature: unknown key; did you mean temperature_K?"]),
    ("dynamics.tau_rel", -0.1, ["dynamics.tau_rel = -0.1: should be a number of at least 0"]),
    ("dynamics.pressure_GPa", float("nan"), ["dynamics.pressure_GPa = NaN: should be a number, a ramp"]),
    ("dynamics.criterion", "mean", ["dynamics.criterion = \"mean\": should be 'max' or 'softmax'"]),
    ("dynamics.committee", 1, ["dynamics.committee = 1", "greater than or equal to 2"]),
    ("dynamics.cell_interval", 15, ["cell_interval = 15: should be a multiple of check_interval = 10"]),
    ("dynamics.swap_interval", 15, ["swap_interval = 15: should be a multiple of check_interval = 10"]),
    ("dynamics.tolerance", 0, ["dynamics.tolerance = 0: should be greater than 0"]),
    ("dynamics.criterion", "softmax", ["criterion = 'softmax' has no default tolerance", "set tolerance"]),
    ("dynamics.bolder", 2, ["dynamics.bolder = 2: should be a table"]),
    ("dynamics.bolder", {"tau_rel": 0.5}, ["dynamics.bolder.tau_rel = 0.5", "greater than or equal to 1"]),
    ("dynamics.bolder", {"temperature_K": 2}, ["bolder.temperature_K: unknown key; did you mean temperature?"]),
    ("dynamics.xyzzy", 1, ["dynamics.xyzzy: unknown key; allowed here: replicas, temperature_K"]),
    ("labels.test_fraction", 1.0, ["labels.test_fraction = 1.0: should be less than 1"]),
    ("labels.within_tolerance", 1, ["labels.within_tolerance = 1: should be a valid boolean"]),
    ("stop.patience", 0, ["stop.patience = 0", "greater than or equal to 1"]),
    ("test", {}, ["test: give structures, or a table [test.reference_md]"]),
    ("test.structures", "none.xyz", ["test.structures", "there is no file"]),
    ("test.reference_md", {}, ["test.reference_md.temperature_K: missing; give list of temperatures in K"]),
    ("test.reference_md.temperature_K", [300, -1], ["reference_md.temperature_K[1] = -1", "greater than 0"]),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value", "said"), BAD, ids=[f"{key}-{value}"[:40] for key, value, _ in BAD])
def test_bad_key(data, key, value, said):
    with pytest.raises(ConfigError) as caught:
        HALConfig.load(put(data, key, value))
    for words in ["the config: 1 key needs correction\n", *said]:
        assert words in str(caught.value)


def test_a_campaign_that_ends_by_itself_needs_no_limit(data):
    for limits in (put(data, "stop.max_labels", None), put(data, "stop", None)):
        stop = HALConfig.load(limits).stop
        assert not stop.limited and Limits(**stop.model_dump()) == Limits()
        with pytest.raises(ConfigError, match="stop: .*never ends by itself; give at least one of max_labels, max_it"):
            HALConfig.load(put(limits, "labels.within_tolerance", True))
    assert HALConfig.load(put(data, "labels.within_tolerance", True)).stop.limited


def test_a_run_directory_of_an_older_version_resumes(data):
    """Without the keys that have come since."""
    config = HALConfig.load(data)
    old = config.as_json()
    del old["dynamics"]["bolder"], old["labels"]["within_tolerance"]
    old["dynamics"]["tolerance"] = 0.2
    open_campaign(config.directory, old).close()
    open_campaign(config.directory, config.as_json(), resume=True, may_change=MAY_CHANGE).close()


def test_all_wrong_keys_are_told_at_once_with_the_file(folder):
    path = folder / "alcu.toml"
    path.write_text(MINIMAL.replace("temperature_K", "temperature").replace("max_labels = 100", "max_labels = 0"))
    with pytest.raises(ConfigError) as caught:
        HALConfig.load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: 3 keys need correction\n") and len(message.splitlines()) == 4
    assert "stop.max_labels = 0" in message


def test_default_interval_that_does_not_fit_matters_only_with_a_pressure(data):
    data = put(data, "dynamics.check_interval", 20)
    HALConfig.load(data)
    with pytest.raises(ConfigError, match="cell_interval = 10 .the default. should be a multiple"):
        HALConfig.load(put(data, "dynamics.pressure_GPa", 0))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"seed = \n", "is not valid TOML: Invalid value (at line 1, column 8)"),
        (b"seed = 1\nseed = 2\n", "is not valid TOML: Cannot overwrite a value"),
        (
            b'directory = "C:\\Users\\me\\run"\n',
            "is not valid TOML: Invalid hex value (at line 1, column 18); write a path with backslashes in",
        ),
        (b"a = " + 3000 * b"[" + 3000 * b"]", "is not a config: its tables are nested too deeply"),
        (b"name = '\xff'\n", "is not a TOML file: it is not text in UTF-8"),
        (None, "cannot be read: No such file or directory; give the path of a TOML file"),
    ],
)
def test_file_that_is_not_a_config(folder, content, said):
    path = folder / "alcu.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        HALConfig.load(path)
    assert f"{path} {said}" in str(caught.value)


def test_a_folder_is_not_a_config(folder):
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        HALConfig.load(folder)


def test_examples_load():
    examples = Path(__file__).parents[2] / "examples"
    for name in ("alcu_emt.toml", "peg_xtb.toml"):
        assert HALConfig.load(examples / name).ace_basis()


def test_import_is_light():
    script = "import sys, haljax.config; sys.exit(any(m in sys.modules for m in ('jax', 'ase', 'numpy')))"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


def test_a_byte_order_mark_is_no_key(folder, data):
    """As editors on Windows write it."""
    path = folder / "marked.toml"
    path.write_bytes(b"\xef\xbb\xbfdirectory = 'run'\n")
    with pytest.raises(ConfigError) as error:
        HALConfig.load(path)
    assert "directory" not in str(error.value) and "start: missing" in str(error.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", 2**63), ("dynamics.n_steps", 10**20), ("reference.timeout_s", 1e10), ("basis.max_degree", 10**20),
        ("basis.order", 30), ("basis.cutoff", 1e3), ("dynamics.replicas", 10**12), ("dynamics.skin", 1000.0),
        ("labels.per_iteration", 10**15),
    ],
)  # fmt: skip
def test_numbers_that_no_run_could_serve_are_refused(data, key, value):
    with pytest.raises(ConfigError, match=f"{re.escape(key)} = .*less than or equal to"):
        HALConfig.load(put(data, key, value))
