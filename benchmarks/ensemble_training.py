"""Ten networks trained in one call, in ten calls, and in Keras; and what is learned from the published windows.

    python benchmarks/ensemble_training.py [--peer-python /path/to/python/with/keras] [--members 10] [--epochs 40]
    python benchmarks/ensemble_training.py --accuracy

The first: 1000 points of an analytic free energy in LixCoO2's seven order parameters, 3 x 100 tanh, one perceptron,
batches of 50, float32, the same data and numbers of epochs for all; the compilation apart. The second needs
lco_mc_300K_sample.txt: five-fold cross-validation on its 160 rows.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("JAX_ENABLE_X64", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent))

import jax
import jax.numpy as jnp
import numpy as np
from common import DATA, row

from haljax.free_energy.data import Labels, labels
from haljax.free_energy.network import Network, features, idnn
from haljax.free_energy.training import TrainingSettings, train
from haljax.lattice.crystal import lattice
from haljax.lattice.order import zigzag
from haljax.lattice.symmetry import invariants

A, C = 2.83, 4.68  # Å, of LixCoO2's lattice of Li
CELL = [[A, 0, 0], [A / 2, A * 0.75**0.5, 0], [A / 2, A / 12**0.5, C]]


def points(n: int, net: Network) -> Labels:
    """mu of a polynomial of the invariants, beyond the ideal term, at n random points."""
    rng = np.random.default_rng(0)
    patterns = np.array(net.patterns)
    eta = np.concatenate([rng.uniform(0.2, 0.8, (n, 1)), rng.normal(size=(n, 6)) * rng.uniform(0, 0.2, (n, 1))], axis=1)
    reach = np.abs(eta @ patterns - eta[:, :1]).max(1) / 0.18  # no sublattice empty or full
    eta[:, 1:] /= np.maximum(1, reach)[:, None]
    c = jnp.asarray(rng.normal(size=net.n_features))
    mu = jax.vmap(jax.grad(lambda e: jnp.tanh(net.invariants(e)) @ c))(jnp.asarray(eta))
    return labels(eta, 300.0, np.asarray(mu))


def speed(peer: str | None, members: int, epochs: int) -> None:
    op = zigzag(lattice(CELL, [[0, 0, 0]], [("Li", "Va")]))
    inv = invariants(op.group, 6)
    data = points(1000, Network(inv, op.patterns))
    net = idnn(inv, 7, (100, 100, 100), "tanh")
    settings = TrainingSettings("adam", 1e-3, batch=50, epochs=epochs, patience=epochs, plateau_patience=epochs)
    n = len(data)

    def seconds(numbers, learning_rate):
        start = time.perf_counter()
        surface, _ = train(
            jax.random.key(0), net, data, members=numbers, settings=replace(settings, learning_rate=learning_rate)
        )
        jax.block_until_ready(surface)
        return time.perf_counter() - start, surface

    first, _ = seconds(members, 9e-4)
    together = min(seconds(members, 1e-3)[0] for _ in range(3))
    single_first, surface = seconds([0], 9e-4)
    one_by_one = min(sum(seconds([k], 1e-3)[0] for k in range(members)) for _ in range(2))
    about = dict(points=n, widths=net.widths, batch=50, epochs=epochs, members=members)
    row("ensemble_training", way="one call", epoch_s=together / epochs, compile_s=first - together, **about)
    row(
        "ensemble_training", way="a call for each", epoch_s=one_by_one / epochs,
        compile_s=single_first - one_by_one / members, one_call_is_faster_by=one_by_one / together, **about,
    )  # fmt: skip
    if peer is None:
        return
    scaling = jax.tree.map(lambda a: a[0], surface.params.scaling)
    of = lambda eta: features(net, scaling, eta)
    with tempfile.TemporaryDirectory() as folder:
        target = data.mu / data.mu.std(0)
        jacobian = np.asarray(jax.vmap(jax.jacfwd(of))(data.eta)) / data.mu.std(0)[None, None, :]
        np.savez(f"{folder}/data.npz", features=of(data.eta), jacobian=jacobian, target=target)
        command = [peer, str(Path(__file__).parent / "peers" / "_keras_idnn.py"), f"{folder}/data.npz"]
        done = subprocess.run([*command, str(epochs), "50", "100", "3"], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"Keras failed:\n{done.stderr[-2000:]}")
    keras = json.loads(done.stdout.strip().splitlines()[-1])
    row(
        "ensemble_training", way="Keras, one after another", epoch_s=members * keras["epoch_s"],
        compile_s=keras["first_epoch_s"] - keras["epoch_s"], peer=f"keras {keras['keras']} on jax {keras['jax']}",
        one_call_is_faster_by=members * keras["epoch_s"] * epochs / together, **about,
    )  # fmt: skip


def accuracy(members: int) -> None:
    op = zigzag(lattice(CELL, [[0, 0, 0]], [("Li", "Va")]))
    table = np.loadtxt(DATA / "lco_mc_300K_sample.txt")
    eta, mu = table[:, 7:14], table[:, 22:29]
    everything = labels(eta, 300.0, mu)
    ours = Network(invariants(op.group, 6), op.patterns)
    for name, net in {
        "default": ours,
        "without the ideal term": replace(ours, patterns=None),
        "one perceptron for all": replace(ours, separate=False),
        "tanh": replace(ours, activation="tanh"),
        "order parameters instead of invariants": replace(ours, invariants=jnp.asarray),
        "plain IDNN": idnn(ours.invariants, 7, (100, 100, 100)),
    }.items():
        misfit = []
        order = np.random.default_rng(0).permutation(len(eta))
        start = time.perf_counter()
        for k in range(5):
            test = order[k::5]
            rest = everything.select(np.setdiff1d(order, test))
            surface, _ = train(jax.random.key(k), net, rest, members=members)
            misfit.append(np.asarray(surface.chemical_potential(eta[test], 300.0)) - mu[test])
        error = np.concatenate(misfit)
        row(
            "published_windows", network=name, members=members, rows=128,
            rmse_mu0_eV=float(np.sqrt((error[:, 0] ** 2).mean())),
            rmse_mui_eV=float(np.sqrt((error[:, 1:] ** 2).mean())),
            median_abs_mu0_eV=float(np.median(np.abs(error[:, 0]))),
            median_abs_mui_eV=float(np.median(np.abs(error[:, 1:]))),
            seconds=time.perf_counter() - start,
        )  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", help="an interpreter that has keras")
    parser.add_argument("--members", type=int)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--accuracy", action="store_true")
    given = parser.parse_args()
    if given.accuracy:
        accuracy(given.members or 5)
    else:
        speed(given.peer_python, given.members or 10, given.epochs)
