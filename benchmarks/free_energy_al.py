"""Points that a free energy needs: each criterion alone, the paper's combination, and haljax's, beside space filling.

    python benchmarks/free_energy_al.py [--truth lixcoo2] [--tests tests.npz] [--only NAME ...]
                                        [--seeds 0 1 2 3 4] [--iterations 4] [--points 48]

The truth is a mean field, or LixCoO2 by Monte Carlo; `--tests` keeps the windows that the latter is judged by for the
next run. See `_truths.py`. All campaigns begin with the same number of space-filling points and may ask for as many
in every iteration. A row a strategy and seed: RMSE of mu over the domain, in the wells, and along the path of lowest
free energy, against the number of points. The last rows say how many points a strategy needs for the last error of
space filling. The variants leave out the ideal term, use Hessian labels or drop the error bars.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_ENABLE_X64", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
from _truths import Sampler, sampler, settings, tests
from common import row

import haljax as hx
import haljax.report
from haljax.campaign import read_journal
from haljax.free_energy.campaign import mu_rmse
from haljax.free_energy.network import load

PAPER = ("billiard", "setting_wells", "setting_vertices", "high_error", "finding_wells", "lowest_path", "sensitivity")
OURS = ("billiard", "committee", "lowest_path", "setting_wells")
STRATEGIES: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "space filling": (("billiard",), {}),
    "committee": (("committee",), {}),
    "high_error": (("high_error",), {}),
    "sensitivity": (("sensitivity",), {}),
    "instabilities": (("instabilities",), {}),
    "finding_wells": (("finding_wells",), {}),
    "lowest_path": (("lowest_path",), {}),
    "setting_wells": (("setting_wells",), {}),
    "setting_vertices": (("setting_vertices",), {}),
    "mixed": (("mixed",), {}),
    "sobol": (("sobol",), {}),
    "the paper's combination": (PAPER, {}),
    "haljax's combination": (OURS, {}),
    "haljax's, no ideal term": (OURS, {"network": {"ideal": False}}),
    "haljax's, Hessians": (OURS, {"training": {"hessian_weight": 0.1}}),
    "haljax's, no error bars": (OURS, {"no_errors": True}),
}


def campaign(folder: Path, strategy: str, seed: int, options: argparse.Namespace, sampler: Sampler, sets: Any) -> list:
    """(points, {region: RMSE of mu_0 and of the others, eV}) after each iteration."""
    criteria, changes = STRATEGIES[strategy]
    share = {name: {"points": options.points // len(criteria), "from_iteration": 1} for name in criteria}
    start = {"function": "billiard", "points": options.points, "to_iteration": 0}
    directory = folder / f"{strategy}-{seed}".replace(" ", "-").replace("'", "")
    config = settings(options.truth) | {
        "directory": str(directory),
        "seed": seed,
        "network": {"members": 4} | changes.get("network", {}),
        "training": {"hessian_weight": 0.0} | changes.get("training", {}),
        "criteria": {"start": start, **share},
        "stop": {"max_iterations": options.iterations},
    }
    with ThreadPoolExecutor(1) as executor:
        try:
            hx.FreeEnergy(config, sampler=sampler, executor=executor).run()
        except RuntimeError as error:
            if "no criterion proposes a point" not in str(error):  # as may be where there is one alone
                raise
    curve = []
    for record in read_journal(directory / "journal.jsonl"):
        if record["type"] == "iteration":
            surface = load(directory / "iterations" / f"{record['iteration']:04d}" / "surface.npz")
            errors = {}
            for region, known in sets.items():
                rmse = mu_rmse(surface, known)
                errors[region] = [float(f"{rmse[0]:.3g}"), float(f"{np.sqrt(np.mean(rmse[1:] ** 2)):.3g}")]
            curve.append((record["labels"], errors))
    return curve


def points_to_reach(curve: list, region: str, target: float) -> float:
    """Points at which the error of the order parameters falls to ``target``, interpolated; NaN where it does not."""
    rows = [(n, errors[region][1]) for n, errors in curve]
    if rows[0][1] <= target:
        return rows[0][0]
    for (n0, e0), (n1, e1) in zip(rows, rows[1:], strict=False):
        if e1 <= target:
            return n0 + (n1 - n0) * (e0 - target) / (e0 - e1)
    return float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--truth", choices=("mean_field", "lixcoo2"), default="mean_field")
    parser.add_argument("--tests", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--iterations", type=int, default=4)
    parser.add_argument("--points", type=int, default=48)
    parser.add_argument("--only", nargs="*", choices=STRATEGIES, default=list(STRATEGIES))
    options = parser.parse_args()
    haljax.report.write_report = lambda directory: None  # nobody looks at the pages of these campaigns
    chosen = ["space filling", *(name for name in options.only if name != "space filling")]
    curves: dict[str, dict[int, list]] = {}
    sets = tests(options.truth, options.tests)
    samplers = {errors: sampler(options.truth, errors) for errors in (True, False)}
    with tempfile.TemporaryDirectory() as folder:
        for seed in options.seeds:
            for strategy in chosen:
                sample = samplers[not STRATEGIES[strategy][1].get("no_errors")]
                curve = campaign(Path(folder), strategy, seed, options, sample, sets)
                curves.setdefault(strategy, {})[seed] = curve
                row("free_energy_al", truth=options.truth, strategy=strategy, seed=seed, curve=curve)
    base = curves["space filling"]
    for strategy in chosen[1:]:
        for region in sets:
            needed = [
                points_to_reach(curves[strategy][seed], region, curve[-1][1][region][1]) for seed, curve in base.items()
            ]
            row(
                "free_energy_al",
                truth=options.truth,
                comparison=f"{strategy} against space filling",
                region=region,
                points_of_space_filling=[curve[-1][0] for curve in base.values()],
                points_needed=[float(f"{n:.3g}") for n in needed],
                final_error_ratio=[
                    float(f"{curves[strategy][s][-1][1][region][1] / c[-1][1][region][1]:.3g}") for s, c in base.items()
                ],
            )


if __name__ == "__main__":
    main()
