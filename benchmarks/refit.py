"""A rank-k update with one new structure beside the refit on all data: the same posterior, and how much faster.

    python benchmarks/refit.py

2060 rows of 759 functions: Al-Cu, order 3, degree 9, twenty 32-atom cells.
The refit is `fit` at the same radii, E0 prior and hyperparameters: rows, QR and solve, everything compiled beforehand.
Beside it the whole of `fit`: radii, hyperparameters and leave-one-out errors too.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

os.environ.setdefault("JAX_ENABLE_X64", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent))

import jax
import numpy as np
from ase.build import bulk
from ase.calculators.emt import EMT
from common import row

import haljax as hx
from haljax.bayes import one_blas_thread
from haljax.fitting import joined, joint_posterior, statistics
from haljax.one_body import E0_KNOWN
from haljax.rows import Table, Weights, blocks_of
from haljax.structures import with_labels

STRUCTURES = 20  # of 32 atoms: 1 + 96 + 6 rows each


def labelled(n: int, seed: int) -> list:
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(n):
        atoms = bulk("Al", "fcc", a=3.9, cubic=True) * 2
        atoms.symbols[rng.permutation(32)[:16]] = "Cu"
        atoms.positions += 0.15 * rng.standard_normal(atoms.positions.shape)
        atoms.calc = EMT()
        made.append(with_labels(atoms, atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()))
    return made


def timed(*calls, repeats: int = 9) -> list[tuple]:
    """(result, median and spread of the wall time in s) of each call, all compiled beforehand, taking turns."""
    results = [jax.block_until_ready(call()) for call in calls]
    times = np.empty((len(calls), repeats))
    for k in range(repeats):
        for call, row_ in zip(calls, times, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(call())
            row_[k] = time.perf_counter() - start
    return [(result, float(np.median(t)), float(np.ptp(t))) for result, t in zip(results, times, strict=True)]


def main() -> None:
    basis = hx.ace_basis(("Al", "Cu"), 5.0, 3, 9)
    train, new = labelled(STRUCTURES, 0), labelled(1, 1)
    e0 = {"Al": 0.0, "Cu": 0.0}
    model = hx.fit(basis, train, e0=e0)
    M, z, weights = len(basis), basis.n_species, Weights(*model.settings.weights)
    alpha, precision = model.posterior.noise_precision, model.posterior.prior_precision[:M]

    def refit():
        table = Table(blocks_of(basis, model.radii, model.density, weights, train + new))
        with one_blas_thread():
            joint = joined(*statistics(table, np.zeros(z), M), M + z)
            return jax.block_until_ready(joint_posterior(joint, alpha, precision, E0_KNOWN * np.eye(z), model.active))

    (updated, update_s, update_spread), (again, refit_s, refit_spread), (_, fit_s, _) = timed(
        lambda: hx.update(model, new).posterior, refit, lambda: hx.fit(basis, train + new, e0=e0).posterior
    )
    scale = float(np.abs(again.mean).max())
    covariance, reference = (np.asarray(p.factor @ p.factor.T) for p in (updated, again))
    row(
        "refit",
        functions=len(basis),
        rows=sum(len(block.targets) for block in model.table),
        update_s=update_s,
        update_spread_s=update_spread,
        refit_s=refit_s,
        refit_spread_s=refit_spread,
        fit_with_evidence_s=fit_s,
        ratio=refit_s / update_s,
        ratio_with_evidence=fit_s / update_s,
        mean_difference=float(np.abs(updated.mean - again.mean).max()) / scale,
        covariance_difference=float(np.abs(covariance - reference).max() / np.abs(reference).max()),
    )


if __name__ == "__main__":
    main()
