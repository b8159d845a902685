"""Has haljax become slower? Ratios to plain implementations of the same, from one run, against those on record.

    python -m benchmarks.check [--record]

A ratio says how many times longer the plain implementation below takes, the median of pairs made in turn. It fails,
with exit status 1, where one is more than 30 % below that in baseline.json, the least that any machine had when it was
recorded: ``--record`` writes what it measures there where that is less, or where nothing is. Seconds are not compared:
they differ from machine to machine and from hour to hour.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("JAX_ENABLE_X64", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent))

import jax
import jax.numpy as jnp
import numpy as np
from common import paired_seconds, row
from lattice_mc import cases
from refit import labelled

import haljax as hx
from haljax.ace import descriptor
from haljax.ace.features import radial_functions
from haljax.ace.harmonics import real_harmonics
from haljax.bayes import accumulate, brr, empty
from haljax.lattice import monte_carlo as mc
from haljax.lattice.monte_carlo import Conditions
from haljax.potentials import biased_energy, parameters_of, total_energy
from haljax.rows import design_rows
from haljax.structures import from_atoms, neighbour_list, vectors

BASELINE = Path(__file__).with_name("baseline.json")
LOSS = 0.3
Pair = tuple[Callable, Callable]  # haljax's and the plain one


def kernel() -> Pair:
    """Energy and forces of 256 atoms; plain: one expression for each term, and autodiff of the whole."""
    basis, system, found, params = _alloy(3, 8, repeat=2)
    many = len(basis) - len(basis.pairs) * basis.max_degree
    weights = params.mean[-many:].reshape(basis.n_species, -1)

    def written_out(positions):
        d, z_j = vectors(system._replace(positions=positions), found, 2 * basis.cutoff)
        r = jnp.sqrt(jnp.sum(d * d, axis=-1))
        one_hot = (z_j[..., None] == jnp.arange(basis.n_species)[None, None]).astype(d.dtype)
        radial = radial_functions(basis, r, system.species, z_j)
        angular = real_harmonics(d / r[..., None], basis.tables.l_max)
        a = jnp.concatenate(
            [
                jnp.einsum("ikz,ikn,ikm->znmi", one_hot, radial[..., :count], y).reshape(-1, len(r))
                for count, y in zip(basis.tables.n_of_l, angular, strict=True)
            ]
        )
        total = 0.0
        for rows, channels, factors in basis.tables.products:
            values = jnp.prod(a[channels], axis=1)  # (n, N)
            total = total + jnp.sum(weights[system.species][:, rows].T * factors[:, None] * values)
        return total

    def ours(positions):
        return total_energy(basis, params, system._replace(positions=positions), found)

    R = system.positions
    return _called(jax.jit(jax.value_and_grad(ours)), R), _called(jax.jit(jax.value_and_grad(written_out)), R)


def bias() -> Pair:
    """Energy and forces of the biased Hamiltonian; plain: of a committee of eight, one reverse pass a member."""
    basis, system, found, params = _alloy(3, 8)
    M = len(basis)
    draws = (
        params.mean[None] + (jax.random.normal(jax.random.key(0), (8, params.factor.shape[1])) @ params.factor.T)[:, :M]
    )

    def biased(positions):
        return biased_energy(basis, params, system._replace(positions=positions), found, 0.5)

    def member(mean, positions):
        moved = system._replace(positions=positions)
        return total_energy(basis, params._replace(mean=mean), moved, found)

    @jax.jit
    def committee(positions):
        return jax.lax.map(lambda mean: jax.value_and_grad(member, 1)(mean, positions), draws)

    return _called(jax.jit(jax.value_and_grad(biased)), system.positions), _called(committee, system.positions)


def rows() -> Pair:
    """Rows of the design matrix; plain: the Jacobian of the descriptor by reverse passes."""
    basis, system, found, _ = _alloy(3, 6)

    @jax.jit
    def jacobian(positions):
        d = lambda R: vectors(system._replace(positions=R), found, 2 * basis.cutoff)
        return jax.jacrev(lambda R: descriptor(basis, d(R)[0], system.species, d(R)[1]))(positions)

    return _called(lambda: design_rows(basis, system, found)), _called(jacobian, system.positions)


def evidence() -> Pair:
    """Bayesian ridge of 6000 rows and 300 functions; plain: scikit-learn's."""
    from sklearn.linear_model import BayesianRidge

    rng = np.random.default_rng(0)
    X = rng.normal(size=(6000, 300)) * np.logspace(0, -3, 300)[None]
    y = X @ rng.normal(size=300) + 0.01 * rng.normal(size=6000)
    solve, theirs = jax.jit(brr), BayesianRidge(fit_intercept=False)
    return (lambda: solve(accumulate(empty(300), [(X, y)], 6000))), (lambda: theirs.fit(X, y) and None)


def monte_carlo() -> Pair:
    """A pass of 64 windows of LixCoO2; plain: as many flips, window by window."""
    expansion, supercell, order, kappa, phi = cases()["LixCoO2"]
    model = mc.model(expansion, supercell, order)

    def batch(W: int) -> Callable:
        given = Conditions(np.full(W, 300.0), np.tile(kappa, (W, 1)), np.tile(phi, (W, 1)))
        occupation = np.random.default_rng(0).integers(0, 2, (W, model.n_sites)).astype(np.int8)
        state = jax.jit(mc.start)(jax.random.key(0), model, occupation)
        run = jax.jit(mc.passes, static_argnames="capacity").lower(model, given, state, 1, 1).compile()
        return lambda: run(model, given, state, 1)

    together, alone = batch(64), batch(1)
    return together, lambda: [alone() for _ in range(64)]


def _alloy(order: int, degree: int, repeat: int = 1):
    atoms = labelled(8, 0)
    model = hx.fit(hx.ace_basis(("Al", "Cu"), 5.0, order, degree), atoms)
    system = from_atoms(atoms[0] * repeat, model.basis.elements)
    found = neighbour_list(system, model.basis.cutoff)
    system, found = jax.tree.map(jnp.asarray, (system, found))
    return model.basis, system, found, parameters_of(model)


def _called(function: Callable, *arguments) -> Callable:
    return lambda: function(*arguments)


CHECKS = {check.__name__: check for check in (kernel, bias, rows, evidence, monte_carlo)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--only", nargs="*", choices=CHECKS, default=list(CHECKS))
    options = parser.parse_args()
    known = json.loads(BASELINE.read_text()) if BASELINE.exists() else {}
    lost = []
    for name in options.only:
        mine, plain = CHECKS[name]()
        own, other, quartiles = paired_seconds(plain, mine, repeats=9)
        row("check", name=name, ratio=quartiles[1], on_record=known.get(name), plain_s=own, haljax_s=other)
        if quartiles[1] < (1 - LOSS) * known.get(name, 0.0):
            lost.append(f"{name}: {quartiles[1]:.3g} times the plain implementation, on record {known[name]:.3g}")
        if options.record:
            known[name] = min(float(f"{quartiles[1]:.3g}"), known.get(name, np.inf))
    if options.record:
        BASELINE.write_text(json.dumps(known, indent=4) + "\n")
    elif lost:
        sys.exit("slower than on record by more than 30 %:\n" + "\n".join(lost))


if __name__ == "__main__":
    main()
