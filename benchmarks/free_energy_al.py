"""Points that a free energy needs: each criterion alone, the paper's combination, and haljax's, beside space filling.

    python benchmarks/free_energy_al.py [--seeds 0 1 2 3 4] [--iterations 4] [--points 48] [--only NAME ...]

The truth is a mean field on LixCoO2's seven order parameters with twelve zigzag wells, measured with the noise of
umbrella windows on 6912 cells. All campaigns begin with the same number of space-filling points and may ask for as many
in every iteration. A row a strategy and seed: RMSE of mu over the domain, in the wells, and along the path of lowest
free energy, against the number of points. The last rows say how many points a strategy needs for the last error of
space filling. The variants leave out the ideal term, use Hessian labels or drop the error bars.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_ENABLE_X64", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent))

import jax
import jax.numpy as jnp
import numpy as np
from common import row

import haljax as hx
import haljax.report
from haljax.campaign import read_journal
from haljax.free_energy.campaign import mu_rmse
from haljax.free_energy.criteria import fill
from haljax.free_energy.mean_field import biased_labels, exact_labels, mean_field
from haljax.free_energy.network import load
from haljax.free_energy.phases import relaxed, seeds
from haljax.free_energy.sampling import plain
from haljax.lattice import load_expansion, zigzag
from haljax.lattice.polytope import pull_inside

EXAMPLE = Path(__file__).resolve().parents[1] / "examples"
EXPANSION = EXAMPLE / "lixcoo2_eci.json"
T = 300.0
PHI = [50.0, *[0.3] * 6]  # strong enough for a window anywhere, also where the free energy is not convex
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


def ordering(eta: jax.Array) -> jax.Array:
    """eV: favours one order parameter at a time, at half filling, as zigzag order does; disordered above 580 K."""
    square = eta[1:] ** 2
    return 0.24 * (eta[0] - 0.5) ** 2 - 0.1 * jnp.sum(square) + 0.12 * (jnp.sum(square) ** 2 - jnp.sum(square**2))


ORDER = zigzag(load_expansion(EXPANSION).lattice)
TRUTH = mean_field(ordering, ORDER.patterns)


class Windows:
    """Umbrella windows of the mean field, in place of Monte Carlo."""

    def __init__(self, errors: bool) -> None:
        self.errors = errors

    def __call__(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        found = biased_labels(jax.random.key(payload["seed"]), TRUTH, np.array(payload["kappa"]), np.array(PHI), T)
        if not self.errors:
            found = found.replace(mu_error=np.full(found.mu.shape, np.nan))
        windows = [
            {"label": {name: plain(np.asarray(values)[w]) for name, values in vars(found).items()}, "converged": True}
            for w in range(len(found))
        ]
        return {"windows": windows}


def tests() -> dict[str, Any]:
    """Labels over the domain, in the wells and along the path of lowest free energy; the same for all."""
    key = jax.random.key(12345)
    domain, group = ORDER.polytope, np.asarray(ORDER.group)
    centre = np.asarray(domain.chebyshev_centre()[0])[None, :]
    everywhere = np.asarray(fill(key, domain, 400))
    well = np.array([0.5, 0.46, 0, 0, 0, 0, 0])
    images = np.unique(np.round(group @ well, 9), axis=0)
    noise = 0.03 * np.asarray(jax.random.normal(key, (20, len(images), 7)))
    wells = (images[None] + noise * np.array([0.5, *[1.0] * 6])).reshape(-1, 7)
    path = relaxed(TRUTH, domain, T, np.linspace(0.03, 0.97, 48), seeds(key, domain, group), group=group).eta
    return {
        name: exact_labels(TRUTH, pull_inside(domain, centre, points, margin=0.01), T)
        for name, points in (("domain", everywhere), ("wells", wells), ("path", path))
    }


def campaign(folder: Path, strategy: str, seed: int, iterations: int, points: int, sets: dict[str, Any]) -> list:
    """(points, {region: RMSE of mu_0 and of the others, eV}) after each iteration."""
    criteria, changes = STRATEGIES[strategy]
    share = {name: {"points": points // len(criteria), "from_iteration": 1} for name in criteria}
    start = {"function": "billiard", "points": points, "to_iteration": 0}
    directory = folder / f"{strategy}-{seed}".replace(" ", "-").replace("'", "")
    config = {
        "directory": str(directory),
        "seed": seed,
        "lattice": {
            "expansion": str(EXPANSION),
            "supercell": [[24, 12, 0], [0, 12, 24], [0, -12, 0]],
        },
        "order_parameters": {
            "species": "Va",
            "cell": [[4, 4, 2], [-4, 0, -2], [0, 0, 2]],
            "patterns": np.array(ORDER.patterns, float).tolist(),
            "wells": [[0.5, 0.5, 0, 0, 0, 0, 0]],
        },
        "sampling": {"temperature_K": [T], "phi": PHI, "windows_per_job": 512, "workers": 1},
        "network": {"members": 4} | changes.get("network", {}),
        "training": {"hessian_weight": 0.0} | changes.get("training", {}),
        "criteria": {"start": start, **share},
        "stop": {"max_iterations": iterations},
    }
    with ThreadPoolExecutor(1) as executor:
        try:
            hx.FreeEnergy(config, sampler=Windows(not changes.get("no_errors")), executor=executor).run()
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
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--iterations", type=int, default=4)
    parser.add_argument("--points", type=int, default=48)
    parser.add_argument("--only", nargs="*", choices=STRATEGIES, default=list(STRATEGIES))
    options = parser.parse_args()
    haljax.report.write_report = lambda directory: None  # nobody looks at the pages of these campaigns
    chosen = ["space filling", *(name for name in options.only if name != "space filling")]
    curves: dict[str, dict[int, list]] = {}
    sets = tests()
    with tempfile.TemporaryDirectory() as folder:
        for seed in options.seeds:
            for strategy in chosen:
                curve = campaign(Path(folder), strategy, seed, options.iterations, options.points, sets)
                curves.setdefault(strategy, {})[seed] = curve
                row("free_energy_al", strategy=strategy, seed=seed, curve=curve)
    base = curves["space filling"]
    for strategy in chosen[1:]:
        for region in sets:
            needed = [
                points_to_reach(curves[strategy][seed], region, curve[-1][1][region][1]) for seed, curve in base.items()
            ]
            row(
                "free_energy_al",
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
