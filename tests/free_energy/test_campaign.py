"""The campaign for a free energy, with the exact mean field in place of Monte Carlo where that is enough."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from haljax.campaign import CampaignExists, CampaignMismatch, read_journal
from haljax.config import ConfigError, FreeEnergyConfig
from haljax.config.free_energy import LatticeModel
from haljax.free_energy import campaign, phases, voltage
from haljax.free_energy.campaign import FreeEnergy, _even_share
from haljax.free_energy.data import Labels
from haljax.free_energy.mean_field import biased_labels, mean_field
from haljax.free_energy.network import ideal
from haljax.free_energy.problem import hamiltonian, problem
from haljax.free_energy.sampling import check_windows, label_error, plain, published
from haljax.free_energy.search import SearchResult
from haljax.lattice.clusters import orbits
from haljax.lattice.crystal import lattice
from haljax.lattice.expansion import ClusterExpansion, save_expansion
from haljax.lattice.units import KB
from haljax.report.free_energy import _surface_sections

from ..interop.test_smol import ENTRY

EXAMPLES = Path(__file__).parents[2] / "examples"
SQUARE = lattice(np.diag([1.0, 1.0, 3.0]), [[0, 0, 0]], [["A", "B"]])
W = 0.04  # eV, of the ordering


class Exact:
    """Windows of the two-sublattice mean field Phi = W (eta_0^2 - eta_1^2); fails on request."""

    def __init__(self, fail: str = "") -> None:
        self.fail = fail

    def __call__(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        if self.fail:
            raise RuntimeError(self.fail)
        windows: list[dict[str, Any]] = [{} for _ in payload["temperature"]]
        with jax.enable_x64(True):
            S = np.array([[1.0, 1.0], [1.0, -1.0]])
            for kelvin in sorted(set(payload["temperature"])):
                own = [w for w, T in enumerate(payload["temperature"]) if kelvin == T]
                key, kappa = jax.random.key(payload["seed"] + int(kelvin)), np.array(payload["kappa"])[own]
                field = mean_field(_energy, S)
                found = biased_labels(key, field, kappa, payload["phi"][0], kelvin)
                for k, w in enumerate(own):
                    label = {name: plain(np.asarray(value)[k]) for name, value in vars(found).items()}
                    effort = {"passes": 100, "equilibration": 10, "acceptance": 0.3}
                    windows[w] = {"label": label, "converged": w % 7 != 3, **effort}
        return {"windows": windows}


def _energy(eta: jax.Array) -> jax.Array:
    return W * (eta[0] ** 2 - eta[1] ** 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("square")
    found = orbits(SQUARE, {2: 1.01})
    save_expansion(ClusterExpansion(SQUARE, found, (0.0, 0.0, W)), folder / "square.json")
    return folder


def config(folder: Path, name: str, **changes: Any) -> dict[str, Any]:
    return {
        "directory": str(folder / name),
        "lattice": {"expansion": str(folder / "square.json"), "supercell": [[8, 0, 0], [0, 8, 0], [0, 0, 1]]},
        "order_parameters": {
            "species": "B",
            "cell": [[1, 1, 0], [1, -1, 0], [0, 0, 1]],
            "waves": [{"q": [0, 0, 0], "values": [1]}, {"q": [1, 1, 0], "values": [1, -1]}],
            "wells": [[0.5, 0.5]],
        },
        "sampling": {"temperature_K": [300], "phi": [1.0, 0.5], "workers": 1, "windows_per_job": 8},
        "network": {"degree": 4, "widths": [16], "members": 2},
        "training": {"epochs": 40},
        "criteria": {"billiard": {"points": 10}, "setting_wells": {"points": 4}},
        "test": {"points": 8},
        "stop": {"max_iterations": 1},
    } | changes


@pytest.fixture(scope="module", autouse=True)
def coarse_pictures():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("haljax.report.free_energy.GRID", 17)
        yield


@pytest.fixture
def no_report(monkeypatch):
    monkeypatch.setattr("haljax.report.write_report", lambda directory: None)


@pytest.fixture(scope="module")
def whole(folder, coarse_pictures):
    events: list[dict[str, Any]] = []
    result = FreeEnergy(config(folder, "whole"), sampler=Exact(), progress=events.append).run()
    return folder / "whole", result, events


@pytest.mark.parametrize(
    ("windows", "workers", "share"), [(104, 2, 64), (104, 8, 32), (5, 4, 32), (176, 2, 96), (5000, 2, 512)]
)
def test_windows_are_shared_out_evenly_on_the_workers(windows, workers, share):
    assert _even_share(windows, workers) == share


def records(directory: Path, kind: str) -> list[dict[str, Any]]:
    return [record for record in read_journal(directory / "journal.jsonl") if record["type"] == kind]


def test_a_campaign_learns_and_leaves_what_it_did(whole):
    directory, result, events = whole
    assert "1 iterations done" in result.reason
    iterations = records(directory, "iteration")
    assert [r["iteration"] for r in iterations] == [0, 1]
    assert iterations[1]["labels"] == 28 == sum(w["role"] == "train" for w in records(directory, "label"))
    assert result.errors is not None and result.errors.shape == (2,)
    # the spread of mu over the domain is some 0.05 eV; two dozen windows teach most of it
    assert np.all(result.errors < 0.02)
    assert (directory / "surface.npz").exists()
    page = (directory / "report.html").read_text()
    assert "Free energy" in page and "did not converge" in page and page.count("<img") >= 4
    stages = {event["stage"] for event in events}
    assert stages >= {"choose", "sample", "train", "iteration", "report", "stop"}


@pytest.mark.parametrize(
    ("other", "counted", "title", "sign"),
    [("A", "B", "chemical potential", 1), ("Li", "Va", "voltage", 1), ("Va", "Li", "voltage", -1)],
)
def test_a_voltage_is_drawn_of_what_comes_and_goes(whole, tmp_path, monkeypatch, other, counted, title, sign):
    directory, result, _ = whole
    text = (directory / "expansion.json").read_text()
    (tmp_path / "expansion.json").write_text(text.replace('"A"', f'"{other}"').replace('"B"', f'"{counted}"'))
    given = records(directory, "start")[0]["config"]
    given["order_parameters"] = given["order_parameters"] | {"species": counted}
    drawn = []
    monkeypatch.setattr(phases, "voltage", lambda *a, real=voltage, **k: drawn.append(real(*a, **k)) or drawn[-1])
    sections = _surface_sections(tmp_path, given, directory / "surface.npz", records(directory, "label"))
    assert sections[1].title == f"Free energy and {title} at 300 K"
    # mu_0 falls to minus infinity where the counted species runs out, by the ideal term
    assert np.argmin(sign * drawn[0].voltage) == 0 and np.argmax(sign * drawn[0].voltage) == len(drawn[0].voltage) - 1


@pytest.mark.parametrize(("stage", "iteration"), [("sample", 0), pytest.param("train", 1, marks=pytest.mark.slow)])
def test_an_interrupted_campaign_resumes_to_the_same_result(whole, folder, no_report, stage, iteration):
    directory, _, _ = whole
    name = f"interrupted-{stage}"

    def interrupt(event: dict[str, Any]) -> None:
        if event["stage"] == stage and event.get("iteration") == iteration and event.get("done", 1):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        FreeEnergy(config(folder, name), sampler=Exact(), progress=interrupt).run()
    FreeEnergy(config(folder, name), sampler=Exact(), resume=True).run()
    for kind in ("label", "request"):
        ours, theirs = ({r.get("id", r["iteration"]): r for r in records(d, kind)} for d in (directory, folder / name))
        assert ours == theirs
    first, second = (np.load(d / "surface.npz", allow_pickle=False) for d in (directory, folder / name))
    for leaf in first.files:
        np.testing.assert_array_equal(first[leaf], second[leaf])


def test_a_directory_belongs_to_one_campaign(whole, folder):
    with pytest.raises(CampaignExists, match="pass --resume"):
        FreeEnergy(config(folder, "whole"), sampler=Exact()).run()
    with pytest.raises(CampaignMismatch, match=r"seed: was 0, now 1"):
        FreeEnergy(config(folder, "whole", seed=1), sampler=Exact(), resume=True).run()


def test_another_hamiltonian_under_the_same_name_is_noticed(folder):
    again = config(folder, "swapped", criteria={"billiard": {"points": 2}})
    with pytest.raises(KeyboardInterrupt):
        FreeEnergy(again, sampler=Exact(), progress=_stop_at("sample")).run()
    path = folder / "square.json"
    before = path.read_text()
    try:
        path.write_text(before.replace(f'"eci": {W}', '"eci": 0.05'))
        with pytest.raises(CampaignMismatch, match="hamiltonian: was"):
            FreeEnergy(again, sampler=Exact(), resume=True).run()
    finally:
        path.write_text(before)


def test_a_round_that_does_not_improve_starts_a_search_whose_form_stays(folder, no_report, monkeypatch):
    seen = []

    def found_better(key, network, known, *, trials, settings):
        seen.append((network.widths, settings.learning_rate, len(known), trials))
        better = replace(network, widths=(8,)), replace(settings, learning_rate=0.02)
        return SearchResult(*better, None, improved=len(seen) == 1, trials=())

    monkeypatch.setattr(campaign, "search", found_better)
    monkeypatch.setattr(campaign, "mu_rmse", lambda surface, known: np.array([0.01, 0.02]))  # never better, never worse
    given = config(folder, "searching", training={"epochs": 2, "search_trials": 4, "learning_rate": 0.01}, test=None)
    given["network"] = given["network"] | {"widths": [16]}
    FreeEnergy(given, sampler=Exact()).run(max_iterations=1)
    assert not seen  # the first prediction has nothing to be compared with
    result = FreeEnergy(given, sampler=Exact(), resume=True).run(max_iterations=3)
    assert [(widths, rate, trials) for widths, rate, _, trials in seen] == [((16,), 0.01, 4), ((8,), 0.02, 4)]
    learned = []
    for iteration in records(folder / "searching", "iteration"):
        # What a hardly trained surface aimed so that it ended within one of a sublattice's 32 sites of the boundary.
        own = [w for w in records(folder / "searching", "label") if w["iteration"] == iteration["iteration"]]
        x = np.array([w["label"]["eta"] for w in own]) @ np.array([[1.0, 1.0], [1.0, -1.0]]).T
        near = np.sum((np.minimum(x, 1 - x) < 1 / 32).any(axis=1))
        assert iteration["outside"] == near and sum(iteration["points"].values()) == len(own) - near
        learned.append(len(own) - near)
    assert [n for _, _, n, _ in seen] == [sum(learned[:3]), sum(learned)] and sum(learned) < 56
    assert [r["form"]["searched"] for r in records(folder / "searching", "iteration")] == [False, False, True, False]
    assert result.surface.network.widths == (8,)


def _stop_at(stage: str):
    def progress(event: dict[str, Any]) -> None:
        if event["stage"] == stage:
            raise KeyboardInterrupt

    return progress


def test_windows_that_all_fail_end_it_with_the_reason(folder, no_report):
    broken = config(folder, "broken", test=None)
    with pytest.raises(RuntimeError, match="no window of iteration 0 could be sampled.*the disk of the node"):
        FreeEnergy(broken, sampler=Exact("the disk of the node is full")).run()
    assert all(r["attempts"] == 2 for r in records(folder / "broken", "failed"))
    result = FreeEnergy(broken, sampler=Exact(), resume=True).run(max_labels=10)
    assert "labels done" in result.reason and result.errors is None


class WithoutNumbers(Exact):
    """Windows of which the first so many have no mu."""

    def __init__(self, n: int = 1) -> None:
        super().__init__()
        self.n = n

    def __call__(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        found = super().__call__(payload)
        for window in found["windows"][: self.n]:
            window["label"]["mu"] = [None, 0.0]
        return found


def test_windows_without_numbers_are_failures_alone(folder, no_report):
    given = config(folder, "without-numbers", test=None)
    result = FreeEnergy(given, sampler=WithoutNumbers()).run(max_labels=10)
    assert "labels done" in result.reason
    failed, sampled = records(folder / "without-numbers", "failed"), records(folder / "without-numbers", "label")
    assert failed and all("mu = [None, 0.0]: an order parameter never changed" in r["error"] for r in failed)
    assert not {r["id"] for r in failed} & {r["id"] for r in sampled}
    FreeEnergy(given, sampler=WithoutNumbers(), resume=True).run(max_labels=10)
    assert records(folder / "without-numbers", "failed") == failed  # they would be the same
    assert records(folder / "without-numbers", "label") == sampled


def test_a_sampler_that_brings_no_numbers_at_all_can_be_mended(folder, no_report):
    given = _alone(folder, "no-numbers")
    with pytest.raises(
        RuntimeError, match=r"no window of iteration 0 could be sampled.*mu = \[None, 0.0\].*and resume"
    ):
        FreeEnergy(given, sampler=WithoutNumbers(99)).run()
    result = FreeEnergy(given, sampler=Exact(), resume=True).run(max_labels=10)
    assert "labels done" in result.reason


def test_what_a_window_must_bring():
    payload = {"kappa": [[0.3, 0.1], [0.5, 0.2]], "temperature": [300.0, 300.0]}
    window = {"label": {"eta": [0.3, 0.1], "mu": [0.0, 0.0]}, "converged": True}

    def check(**changes: Any) -> None:
        check_windows(payload, {"windows": [window, window | {"label": window["label"] | changes}]})

    check()
    check(temperature=300.0, mu_error=None, hessian=None, energy=None)
    check(temperature=None)
    check(mu_error=[None, 0.1])
    with pytest.raises(ValueError, match="1 windows came back of 2 that were asked for"):
        check_windows(payload, {"windows": [window]})
    with pytest.raises(ValueError, match=r"window 1 has eta = \[0.3\]: give 2 numbers"):
        check(eta=[0.3])
    with pytest.raises(ValueError, match="window 1: .*could not.*broadcast"):
        check(hessian=[0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match="window 1: mu_error has negative entries"):
        check(mu_error=[-0.1, 0.1])
    with pytest.raises(ValueError, match="window 1 is at 350.0 K, and was asked for at 300.0 K"):
        check(temperature=350.0)
    with pytest.raises(ValueError, match="window 0 does not say whether it has converged"):
        check_windows(payload, {"windows": [{"label": window["label"]}, window]})


class Sparse:
    """A sampler that knows eta and mu alone, each window by its own random stream; near the wall from some call on."""

    def __init__(self, good_calls: int = 1000) -> None:
        self.calls, self.good_calls = 0, good_calls

    def __call__(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        self.calls += 1
        windows = []
        for id, kappa in zip(payload["ids"], payload["kappa"], strict=True):
            eta = np.array(kappa) + 1e-3 * np.random.default_rng([payload["seed"], id]).standard_normal(2)
            eta = eta if self.calls <= self.good_calls else np.array([0.001, 0.0])
            label = {"eta": eta.tolist(), "mu": (W * eta * [2, -2]).tolist(), "mu_error": None}
            windows.append({"label": label, "converged": True})
        return {"windows": windows}


def _alone(folder: Path, name: str, **changes: Any) -> dict[str, Any]:
    return config(folder, name, training={"epochs": 2}, test=None, **changes)


def test_how_windows_are_dealt_to_jobs_and_workers_changes_nothing(folder, no_report):
    found = []
    for name, dealt in (("by-five", {"windows_per_job": 5}), ("by-worker", {"workers": 3})):
        given = _alone(folder, name)
        given["sampling"] = {"temperature_K": [300], "phi": [1.0, 0.5], "workers": 1} | dealt
        FreeEnergy(given, sampler=Sparse()).run(max_labels=14)
        found.append({r["id"]: r["label"] for r in records(folder / name, "label")})
    assert len(found[0]) == 14 and found[0] == found[1]
    given["sampling"]["windows_per_job"] = 7
    FreeEnergy(given, sampler=Sparse(), resume=True).run(max_labels=20)


def test_an_iteration_that_teaches_nothing_is_passed(folder, no_report, caplog):
    with ThreadPoolExecutor(1) as here:
        given = _alone(folder, "at-the-wall")
        given["sampling"] = given["sampling"] | {"windows_per_job": 100}
        result = FreeEnergy(given, sampler=Sparse(good_calls=1), executor=here).run(max_iterations=2)
        assert "2 iterations done" in result.reason and "iteration 1 taught nothing" in caplog.text
        assert [r["outside"] for r in records(folder / "at-the-wall", "iteration")] == [0, 14, 14]
        with pytest.raises(RuntimeError, match="all but 0 ended at the boundary.*start anew with more points"):
            FreeEnergy(_alone(folder, "never-away"), sampler=Sparse(good_calls=0), executor=here).run()


def test_it_ends_where_no_criterion_has_anything_left(folder):
    given = _alone(folder, "nothing-left", criteria={"billiard": {"points": 6, "to_iteration": 0}})
    result = FreeEnergy(given, sampler=Sparse()).run(max_iterations=3)
    assert "no criterion proposes a point in iteration 1" in result.reason
    assert (folder / "nothing-left" / "surface.npz").exists() and (folder / "nothing-left" / "report.html").exists()


@pytest.mark.parametrize("novelty", [False, True])
def test_a_pool_is_used_up_with_its_points_at_the_boundary(folder, no_report, novelty):
    points = [[0.0, 0.0], [0.5, 0.5], [0.3, 0.1], [0.6, 0.2], [0.25, 0.25], [0.5, -0.3]]  # three at the boundary
    np.savetxt(folder / "walls.txt", points)
    given = _alone(folder, f"walls-{novelty}", choice={"pool": str(folder / "walls.txt"), "novelty": novelty})
    given["criteria"] = {"pool": {"points": 2}}
    result = FreeEnergy(given, sampler=Sparse()).run(max_iterations=9)
    assert "no criterion proposes a point" in result.reason
    targets = np.array([r["target"] for r in records(folder / f"walls-{novelty}", "label")])
    assert len(targets) == len(np.unique(targets.round(9), axis=0))
    assert len(targets) == 6 or novelty


def test_test_rows_at_another_temperature_are_refused_before_anything_is_sampled(folder):
    (folder / "warm.txt").write_text("# eta_0 eta_1 T mu_0 mu_1\n0.4 0.1 350 -0.1 0.0\n")
    warm = config(folder, "warm", test={"file": str(folder / "warm.txt")})
    with pytest.raises(ValueError, match="rows at temperatures other than sampling.temperature_K = 300"):
        FreeEnergy(warm, sampler=Exact()).run()
    assert not records(folder / "warm", "request")


def test_a_supercell_that_does_not_fit_is_refused_before_anything_runs(folder):
    wrong = config(folder, "wrong")
    wrong["lattice"] = wrong["lattice"] | {"supercell": [[7, 0, 0], [0, 8, 0], [0, 0, 1]]}
    with pytest.raises(ValueError, match="not commensurate"):
        FreeEnergy(wrong).plan()
    small = tomllib.loads((EXAMPLES / "lixcoo2.toml").read_text()) | {"directory": str(folder / "wrong")}
    small["lattice"] = {"expansion": str(EXAMPLES / "lixcoo2_eci.json"), "supercell": small["order_parameters"]["cell"]}
    with pytest.raises(ValueError, match="outside the supercell's range"):
        FreeEnergy(small).plan()
    assert not (folder / "wrong").exists()


def test_a_well_outside_the_domain_is_refused_before_anything_runs(folder):
    wrong = config(folder, "wrong-well")
    wrong["order_parameters"] = wrong["order_parameters"] | {"wells": [[0.5, 0.75]]}
    message = (
        r"order_parameters.wells: .*\[0.5, 0.75\] .*would hold a fraction 1.25 of.*; give eta between full and empty"
    )
    with pytest.raises(ValueError, match=message):
        FreeEnergy(wrong).plan()


def test_passes_wells_and_the_search_are_checked_before_anything_runs(folder, monkeypatch):
    given = config(folder, "checked")
    with pytest.raises(ConfigError, match="min_passes = 500 is more than max_passes = 300"):
        FreeEnergy(given | {"sampling": given["sampling"] | {"max_passes": 300}})
    with pytest.raises(ConfigError, match="setting_wells needs the known ordered states"):
        FreeEnergy(given | {"order_parameters": given["order_parameters"] | {"wells": []}})
    monkeypatch.setattr("haljax.config.free_energy.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs optuna: pip install '.\[search\]'"):
        FreeEnergy(given | {"training": {"search_trials": 4}})


def test_an_expansion_is_read_by_what_wrote_it(folder):
    cell = [[4, 0, 0], [0, 4, 0], [0, 0, 4]]
    (folder / "smol.mson").write_text(json.dumps({"ClusterExpansion": ENTRY}))
    expansion, _ = hamiltonian(LatticeModel.model_validate({"expansion": folder / "smol.mson", "supercell": cell}))
    assert expansion.lattice.species == (("Li+", "Mn3+", "Va"), ("O2-",))
    (folder / "binary.json").write_bytes(b"\x1f\x8b\x08")
    with pytest.raises(ValueError, match="binary.json is not JSON"):
        hamiltonian(LatticeModel.model_validate({"expansion": folder / "binary.json", "supercell": cell}))


def test_the_composition_comes_first(folder):
    wrong = config(folder, "order-first")
    waves = wrong["order_parameters"]["waves"]
    wrong["order_parameters"] = wrong["order_parameters"] | {"waves": waves[::-1]}
    with pytest.raises(ValueError, match="the first one must be the composition"):
        FreeEnergy(wrong).plan()


def test_an_ideal_term_at_several_temperatures_needs_one_pure_state(folder):
    ternary = lattice(SQUARE.cell, SQUARE.positions, [["A", "B", "C"]])
    save_expansion(ClusterExpansion(ternary, orbits(ternary, {})[:1], (0.0,)), folder / "ternary.json")
    given = config(folder, "ternary")
    given["lattice"] = given["lattice"] | {"expansion": str(folder / "ternary.json")}
    assert FreeEnergy(given).plan()
    given["sampling"] = given["sampling"] | {"temperature_K": [300, 400]}
    with pytest.raises(ValueError, match="eta = 0 for one pure state.*set network.ideal = false"):
        FreeEnergy(given).plan()
    assert FreeEnergy(given | {"network": {"ideal": False}}).plan()


def test_both_sites_of_a_cell_mix(folder):
    """g is per primitive cell: two sites that order parameters count have twice the entropy of one."""
    hexagonal = lattice(
        [[1, 0, 0], [-0.5, 0.75**0.5, 0], [0, 0, 1.6]], [[0, 0, 0], [1 / 3, 2 / 3, 0.5]], [["A", "B"]] * 2
    )
    save_expansion(ClusterExpansion(hexagonal, orbits(hexagonal, {})[:1], (0.0,)), folder / "hcp.json")
    given = config(folder, "hcp") | {
        "lattice": {"expansion": str(folder / "hcp.json"), "supercell": [[4, 0, 0], [0, 4, 0], [0, 0, 4]]},
        "order_parameters": {"species": "B", "cell": np.eye(3, dtype=int).tolist(), "patterns": [[1, 1], [1, -1]]},
        "criteria": {"billiard": {"points": 1}},
    }
    known = problem(FreeEnergyConfig.load(given))
    x = 0.1
    expected = 2 * KB * 300 * (x * np.log(x) + (1 - x) * np.log(1 - x))
    np.testing.assert_allclose(ideal(known.network, np.array([x, 0.0]), 300.0), expected, rtol=1e-13)


def test_the_plan_says_what_would_run(folder):
    plan = FreeEnergy(config(folder, "planned")).plan()
    assert "64 cells" in plan and "billiard 10, setting_wells 4" in plan and "max_iterations = 1" in plan


def test_the_error_of_a_label_is_that_of_mu_at_its_eta():
    """Windows of a quadratic g with known fluctuations: what mu is off from H eta, in units of its error."""
    H, phi, scale = np.array([[0.5, 0.2], [0.2, -0.05]]), np.array([0.1, 0.3]), 1e-6
    A = H + 2 * np.diag(phi)
    rng = np.random.default_rng(0)
    eta = rng.multivariate_normal([0, 0], scale * np.linalg.inv(A), size=4000)  # about kappa = 0
    error = label_error(np.sqrt(scale * np.diagonal(np.linalg.inv(A)))[None], H[None], phi[None])
    z = (-2 * phi * eta - eta @ H) / error
    np.testing.assert_allclose(z.std(axis=0), 1, atol=0.06)  # five standard errors
    unknown = label_error([[1e-3, 2e-3]], np.full((1, 2, 2), np.nan), phi[None])
    np.testing.assert_allclose(unknown, [[2e-4, 1.2e-3]])


def test_published_rows(tmp_path):
    (tmp_path / "rows.txt").write_text("# kappa_0 eta_0 T mu_0\n0.5 0.4 300 -0.1\n0.6 0.5 300 0.2\n")
    found: Labels = published(tmp_path / "rows.txt", 1)
    np.testing.assert_array_equal(found.eta[:, 0], [0.4, 0.5])
    np.testing.assert_array_equal(found.mu[:, 0], [-0.1, 0.2])
    with pytest.raises(ValueError, match="has no column eta_1, mu_1"):
        published(tmp_path / "rows.txt", 2)


@pytest.mark.slow
def test_several_temperatures_and_a_pool(folder):
    np.savetxt(folder / "pool.txt", [[0.3, 0.1], [0.6, 0.2], [0.5, -0.3]])
    several = config(folder, "several", test=None, choice={"pool": str(folder / "pool.txt"), "novelty": False})
    several["sampling"] = several["sampling"] | {"temperature_K": [250, 300, 400]}
    several["criteria"] = {"billiard": {"points": 18}, "pool": {"points": 3, "to_iteration": 0}}
    result = FreeEnergy(several, sampler=Exact()).run()
    windows = records(folder / "several", "label")
    assert {w["label"]["temperature"] for w in windows} == {250.0, 300.0, 400.0}
    assert sorted(w["target"][0] for w in windows if w["criterion"] == "pool") == [0.3, 0.5, 0.6]
    assert result.surface.network.temperature
    energy = result.surface.energy(np.array([[0.5, 0.2]]), 300.0)
    assert abs(float(energy[0]) - W * (0.25 - 0.04)) < 0.01
    assert "Phase diagram" in (folder / "several" / "report.html").read_text()
