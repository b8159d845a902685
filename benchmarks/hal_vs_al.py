"""Labels that hyperactive learning needs, beside plain active learning and snapshots of molecular dynamics.

    python benchmarks/hal_vs_al.py [--seeds 0 1 2 3 4] [--labels 38] [--explore 300] [--stability 20]

Al-Cu with EMT. All three set out from the same six nearly perfect 32-atom cells and explore at 300 K (or what
``--explore`` says) under the model of the moment, for the same time; all are judged at 900 K, and each label costs
the same. Plain active learning is the campaign with tau = 0: same criterion, same selection. Snapshots are the ends
of unbiased trajectories, labelled without any criterion or selection. A row a method and seed: test force RMSE at
900 K after each iteration, and the fraction of 20 ps runs at 900 K under the final model in which no guard is
violated. The last rows count labels.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_ENABLE_X64", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent))

import jax
import numpy as np
from ase.build import bulk
from ase.io import write
from common import row

import haljax as hx
from haljax.campaign import read_journal
from haljax.config import Dynamics
from haljax.hal.acquisition import explore, room_for

METHODS = {
    "HAL": {"tau_rel": 0.2, "replicas": 8},
    "active learning": {"tau_rel": 0.0, "replicas": 8},
    "MD snapshots": {"tau_rel": 0.0, "tolerance": 1e9, "replicas": 4},
}
TEMPERATURE = 900.0  # K, of the test set and of the runs that are to stay stable


def starts(seed: int) -> list:
    rng = np.random.default_rng(seed)
    made = []
    for copper in (0, 6, 13, 19, 26, 32):
        atoms = bulk("Al", "fcc", a=1.0, cubic=True) * 2
        atoms.set_cell(np.eye(3) * 2 * (4.05 - 0.44 * copper / 32), scale_atoms=True)
        atoms.symbols[rng.permutation(32)[:copper]] = "Cu"
        atoms.positions += 0.02 * rng.standard_normal(atoms.positions.shape)
        made.append(atoms)
    return made


def campaign(folder: Path, method: str, seed: int, labels: int, explore_K: float) -> tuple[list, hx.Model]:
    """Labels and 900 K test force RMSE after each iteration, and the last model."""
    structures = folder / f"start-{seed}.xyz"
    write(structures, starts(seed), format="extxyz")
    directory = folder / f"{method}-{seed}"
    config = {
        "directory": str(directory),
        "seed": seed,
        "reference": {"calculator": "ase.calculators.emt.EMT", "workers": 2},
        "start": {"structures": str(structures)},
        "basis": {"elements": ["Al", "Cu"], "cutoff": 5.0, "order": 3, "max_degree": 6},
        "dynamics": {"temperature_K": explore_K, "n_steps": 1000, "timestep_fs": 2.0, **METHODS[method]},
        "labels": {"per_iteration": 4, "test_fraction": 0.0, "within_tolerance": method == "MD snapshots"},
        "stop": {"max_labels": labels},
        "test": {"reference_md": {"temperature_K": [TEMPERATURE], "frames": 40, "interval": 50, "timestep_fs": 2.0}},
    }
    result = hx.HAL(config).run()
    records = read_journal(directory / "journal.jsonl")
    curve = [(r["labels"], r["errors"]["total"]["force_rmse"]) for r in records if r["type"] == "iteration"]
    return curve, result.model


def stable_fraction(model: hx.Model, seed: int, runs: int) -> float:
    """Of 20 ps runs at 900 K under ``model``, those in which no guard is violated."""
    if not runs:
        return float("nan")
    dynamics = Dynamics(
        temperature_K=TEMPERATURE, tau_rel=0.0, tolerance=1e9, n_steps=10_000, timestep_fs=2.0, replicas=runs,
        check_interval=50, committee=2, replicas_per_batch=min(runs, 10),
    )  # fmt: skip
    begin = starts(seed)
    room = room_for(model.basis, dynamics.skin, begin)
    found = explore(
        model, dynamics, [begin[i % len(begin)] for i in range(runs)], jax.random.key(seed), room, lambda _: None
    )
    return float(np.mean([replica["status"] == "finished" for replica in found.replicas]))


def labels_to_reach(curve: list, target: float) -> float:
    """Labels at which a learning curve first falls to ``target``, interpolated; NaN where it does not."""
    for (n0, e0), (n1, e1) in zip(curve, curve[1:], strict=False):
        if e1 <= target:
            return n0 + (n1 - n0) * (e0 - target) / (e0 - e1) if e0 > target else n0
    return float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--labels", type=int, default=38)
    parser.add_argument("--explore", type=float, default=300.0, help="temperature of the exploration, K")
    parser.add_argument("--stability", type=int, default=20, help="runs of 20 ps a model; 0 for none")
    options = parser.parse_args()
    curves: dict[str, dict[int, list]] = {method: {} for method in METHODS}
    with tempfile.TemporaryDirectory() as folder:
        for seed in options.seeds:
            for method in METHODS:
                curve, model = campaign(Path(folder), method, seed, options.labels, options.explore)
                curves[method][seed] = curve
                row(
                    "hal_vs_al",
                    method=method,
                    seed=seed,
                    explore_K=options.explore,
                    curve=[(n, float(f"{e:.4g}")) for n, e in curve],
                    final_force_rmse=curve[-1][1],
                    stable_fraction=stable_fraction(model, seed, options.stability),
                )
    for method in METHODS:
        if method == "HAL":
            continue
        saved, ratio = [], []
        for seed, curve in curves[method].items():
            needed = labels_to_reach(curves["HAL"][seed], curve[-1][1])
            spent = labels_to_reach(curve, curve[-1][1])
            saved.append(spent - needed)
            ratio.append(curves["HAL"][seed][-1][1] / curve[-1][1])
        row(
            "hal_vs_al",
            comparison=f"HAL against {method}",
            labels_saved_to_reach_its_final_error=[float(f"{s:.3g}") for s in saved],
            median_saved=float(np.nanmedian(saved)),
            final_force_rmse_ratio=[float(f"{r:.3g}") for r in ratio],
        )


if __name__ == "__main__":
    main()
