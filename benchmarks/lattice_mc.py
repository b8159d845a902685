"""Attempted flips per second on one core, total over windows, beside icet's mchammer and smol; and published data.

    taskset -c 0 python benchmarks/lattice_mc.py [--windows 32 160 512] [--peer-python PATH] [--no-peer]
    python benchmarks/lattice_mc.py --published [--rows 160]

The cluster expansion of LixCoO2 (527 terms a flip) in the 6912-site cell with seven biased order parameters, and an fcc
pair model of 1728 sites with its composition biased. CPU time is counted, which on one thread is the wall time of a
core that is not shared; on a GPU wall time. ``--published`` samples the published rows of ``lco_mc_300K_sample.txt``
(HALJAX_DATA) at their conditions, all at once, and compares.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("JAX_ENABLE_X64", "1")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")
sys.path.insert(0, str(Path(__file__).resolve().parent))

import jax
import numpy as np
from common import DATA, row
from peers import latticemc

from haljax.lattice import monte_carlo as mc
from haljax.lattice.expansion import load_expansion
from haljax.lattice.monte_carlo import Conditions, Counters
from haljax.lattice.order import zigzag
from haljax.lattice.supercell import Supercell
from haljax.lattice.windows import sample_windows

LIXCOO2 = Path(__file__).resolve().parents[1] / "examples" / "lixcoo2_eci.json"
PRODUCTION = Supercell([[24, 12, 0], [0, 12, 24], [0, -12, 0]])
KNOWN = {"CASM 1.x": 1.7e5, "plain C": 3.5e5}  # flips/s a core for LixCoO2 in this cell, reference measurements


def cases() -> dict:
    """name -> (expansion, supercell, order parameters, kappa, phi)"""
    expansion = load_expansion(LIXCOO2)
    neighbours = [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, -1, 0), (1, 0, -1), (0, 1, -1)]
    pairs = tuple((0.03, ((0, 0, 0, 0, 1), (*r, 0, 1))) for r in neighbours)
    cube = Supercell(np.diag([12, 12, 12]).tolist())
    return {
        "LixCoO2": (expansion, PRODUCTION, zigzag(expansion.lattice), [0.5] + [0.0] * 6, [50.0] + [0.05] * 6),
        "fcc": (pairs, cube, Counters(np.ones((1, 1728), int), (1,), 1728), [0.3], [10.0]),
    }


def flips_per_second(
    model: mc.Model, W: int, kappa: list, phi: list, temperature: float = 300.0
) -> tuple[float, float]:
    """Median over five blocks, and their spread."""
    given = Conditions(np.full(W, temperature), np.tile(kappa, (W, 1)), np.tile(phi, (W, 1)))
    occupation = np.random.default_rng(0).integers(0, 2, (W, model.n_sites)).astype(np.int8)
    state = jax.jit(mc.start)(jax.random.key(0), model, occupation)
    n = max(1, int(2e6 / (model.n_tries * W)))
    run = jax.jit(mc.passes, static_argnames="capacity").lower(model, given, state, n, n).compile()
    state = run(model, given, state, n)[0]
    clock = time.process_time if jax.default_backend() == "cpu" else time.perf_counter
    rates = []
    for _ in range(5):
        start = clock()
        state = jax.block_until_ready(run(model, given, state, n)[0])
        rates.append(W * model.n_tries * n / (clock() - start))
    rates.sort()
    return rates[2], rates[-1] - rates[0]


def throughput(options: argparse.Namespace) -> None:
    for name, (expansion, supercell, order, kappa, phi) in cases().items():
        peers = {}
        if not options.no_peer:
            for code, steps in (("mchammer", 5000), ("smol", 5000)):
                found = latticemc.steps_per_second(options.peer_python, code, name, steps)
                row("lattice_mc_peer", case=name, code=code, **found)
                peers[code] = found.get("flips_per_s", 0.0)
        model = mc.model(expansion, supercell, order)
        for W in options.windows:
            rate, spread = flips_per_second(model, W, kappa, phi)
            ratios = {f"ratio_to_{code}": rate / theirs for code, theirs in peers.items() if theirs}
            if name == "LixCoO2":
                ratios |= {f"ratio_to_known_{code}": rate / theirs for code, theirs in KNOWN.items()}
            row("lattice_mc", case=name, sites=supercell.n_sites, windows=W, flips_per_s=rate, spread=spread, **ratios)


def published(options: argparse.Namespace) -> None:
    data = np.loadtxt(DATA / "lco_mc_300K_sample.txt")[: options.rows]
    kappa, eta, phi, temperature, mu = np.split(data, [7, 14, 21, 22], axis=1)
    expansion = load_expansion(LIXCOO2)
    given = Conditions(temperature[:, 0], kappa, phi)
    start, cpu = time.perf_counter(), time.process_time()
    result = sample_windows(
        jax.random.key(2503), expansion, PRODUCTION, zigzag(expansion.lattice), given,
        precision=[3e-4] + [9e-4] * 6, min_passes=1500, max_passes=3000,
    )  # fmt: skip
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    d_mu, d_eta = np.abs(result.mu - mu), result.eta - eta
    within = (d_mu[:, 0] <= 2e-3) & np.all(d_mu[:, 1:] <= 6e-4, axis=1)
    row(
        "lattice_mc_published",
        rows=len(data),
        passes=int(result.n_passes.sum()),
        converged=int(result.converged.sum()),
        seconds=seconds,
        cpu_seconds=cpu,
        rms_d_mu_0=float(np.sqrt(np.mean(d_mu[:, 0] ** 2))),
        rms_d_mu_i=float(np.sqrt(np.mean(d_mu[:, 1:] ** 2))),
        rms_d_eta_0=float(np.sqrt(np.mean(d_eta[:, 0] ** 2))),
        rms_d_eta_i=float(np.sqrt(np.mean(d_eta[:, 1:] ** 2))),
        own_error_of_eta_i=float(np.sqrt(np.mean(result.eta_error[:, 1:] ** 2))),
        share_within_goal=float(within.mean()),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, nargs="+", default=[32, 64, 160, 256, 512, 1024])
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--published", action="store_true")
    parser.add_argument("--rows", type=int, default=160)
    options = parser.parse_args()
    published(options) if options.published else throughput(options)


if __name__ == "__main__":
    main()
