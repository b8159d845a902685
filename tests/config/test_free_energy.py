from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from haljax.config import ConfigError, FreeEnergyConfig

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def data(tmp_path) -> dict[str, Any]:
    (tmp_path / "eci.json").write_text("{}")
    return {
        "directory": "run",
        "lattice": {"expansion": str(tmp_path / "eci.json"), "supercell": [[4, 0, 0], [0, 4, 0], [0, 0, 4]]},
        "order_parameters": {
            "species": "Va",
            "cell": [[2, 0, 0], [0, 1, 0], [0, 0, 1]],
            "waves": [{"q": [0, 0, 0]}, {"q": [2, 0, 0], "offset": 1}],
        },
        "sampling": {"temperature_K": [300, 400], "phi": [10, 0.1]},
        "criteria": {"billiard": {"points": 20}, "committee": {"points": 5, "from_iteration": 1}},
        "stop": {"max_iterations": 2},
    }


def put(data: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(data)
    *tables, last = key.split(".")
    table = changed
    for name in tables:
        table = table.setdefault(name, {})
    if value is None:
        del table[last]
    else:
        table[last] = value
    return changed


def test_defaults_and_round_trip(data):
    config = FreeEnergyConfig.load(data)
    assert config.network.ideal and config.choice.novelty and config.training.search_trials == 0
    assert config.order_parameters.waves[0].values == (1, 1, -1, -1)
    assert FreeEnergyConfig.load(config.as_json()) == config


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("lattice.expansion", "nowhere.json", "lattice.expansion = .*: there is no file"),
        ("lattice.supercell", [[1, 0], [0, 1]], "lattice.supercell"),
        ("sampling.temperature_K", [0], r"sampling.temperature_K\[0\] = 0: should be greater than 0"),
        ("sampling.temperature_K", None, "sampling.temperature_K: missing; give list of temperatures"),
        ("sampling.phi", [10], "phi has 1 numbers for 2 order parameters; give one for each"),
        ("sampling.precision", [1e-3, 1e-3, 1e-3], "precision has 3 numbers; give 2, or one for all"),
        ("sampling.windows", 3, "sampling.windows: unknown key"),
        ("order_parameters.waves", None, "give either waves or patterns"),
        ("order_parameters.patterns", [[1, 1], [1, -1]], "give either waves or patterns"),
        ("order_parameters.wells", [[0.5]], "each of the wells should have 2 numbers"),
        ("network.activation", "relu", "should be 'tanh' or 'softplus'"),
        ("network.members", 1, "greater than or equal to 2"),
        ("criteria", {}, "criteria"),
        ("criteria.billiard", {}, "criteria.billiard.points: missing; give points of an iteration"),
        ("criteria.billiard", {"points": 3, "option": {}}, "unknown key; did you mean options"),
        ("order_parameters.waves", [{"offset": 1}], r"order_parameters.waves\[0\].q: missing; give three integers"),
        ("criteria.biliard", {"points": 3}, "there is no criterion 'biliard'; did you mean 'billiard'?"),
        ("criteria.mine", {"points": 3, "function": "nowhere:mine"}, "give 'module:function' of an importable one"),
        ("criteria.billiard.options", {"share": 1}, "billiard has no option 'share': it has boundary"),
        ("criteria.pool", {"points": 3}, "the criterion pool has no pool; give a file of points as choice.pool"),
        ("criteria.billiard.from_iteration", 1, "none of them chooses points in iteration 0"),
        ("stop.max_iterations", None, "it would never stop; give at least one of"),
        ("test", {}, "give points or file, or leave the table out"),
        ("seed", -1, "seed = -1"),
    ],
)
def test_wrong_keys(data, key, value, message):
    with pytest.raises(ConfigError, match=message):
        FreeEnergyConfig.load(put(data, key, value))


def test_all_wrong_keys_are_named_at_once(data):
    wrong = put(put(data, "network.members", 1), "seed", -1)
    with pytest.raises(ConfigError, match=r"2 keys need correction(?s:.*)seed(?s:.*)network.members"):
        FreeEnergyConfig.load(wrong)


def test_a_wrong_item_is_one_error(data):
    with pytest.raises(ConfigError, match=r"1 key needs correction\n  sampling.temperature_K\[0\] = 0: should"):
        FreeEnergyConfig.load(put(data, "sampling.temperature_K", [0]))


def test_the_example_loads():
    config = FreeEnergyConfig.load(EXAMPLES / "lixcoo2.toml")
    assert len(config.sampling.phi) == 7 and config.lattice.expansion.is_file()
