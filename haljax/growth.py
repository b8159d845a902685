"""Choosing the basis: from a small one to the one that leave-one-out errors support, within a budget."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from haljax.ace import ACEBasis, GrowingBasis
from haljax.fitting import fitted
from haljax.model import FitSettings, Model, errors_in_words
from haljax.potentials import Parameters, total_energy
from haljax.structures import from_atoms, neighbour_list

if TYPE_CHECKING:
    from ase import Atoms

log = logging.getLogger(__name__)

LEAST_GAIN = 0.02  # of the error, for which a basis may grow
ENERGY_SHARE = 0.25  # of the logarithm of the energy's error beside that of the forces
TIMED_ATOMS, REPEATS = 64, 10  # atoms of the structure that is timed, and how often


def grown(growing: GrowingBasis, settings: FitSettings, structures: list[Atoms], before: Model | None = None) -> Model:
    """The fit of the basis that the structures support.

    From ``before``, or from the smallest basis, the search steps to a neighbouring basis (higher degree, higher order,
    another cutoff) as long as that lowers the leave-one-out errors by `LEAST_GAIN`, and ends where no neighbour does.

    Raises
    ------
    ValueError : the budget allows no basis at all.
    """
    largest = max(structures, key=len)
    with _silenced() as warnings:
        if before is None:
            before = _first(growing, settings, structures, largest)
        heard = {before.basis: list(warnings)}
        model: Model | None = before
        if not np.isfinite(error(before)):
            log.warning(
                "there are no leave-one-out errors to choose a basis by, so it stays the smallest, %s: give at least "
                "three independent structures, or a degree",
                before.basis.words(),
            )
            model = None
        while model is not None:
            before, model = model, None
            for basis in growing.neighbours(before.basis):
                if basis in heard:
                    continue
                warnings.clear()
                if growing.budget is not None and (taken := cost(basis, largest)) > growing.budget:
                    log.info("%s: over the budget, %.3g µs per atom", basis.words(), taken)
                    heard[basis] = []
                    continue
                candidate = fitted(basis, settings, structures)
                heard[basis] = list(warnings)
                better = error(candidate) < (1 - LEAST_GAIN) * error(before)
                log.info("%s: %s than %s", _words(candidate), "better" if better else "no better", before.basis.words())
                if better:
                    model = candidate
                    break
    for record in heard[before.basis]:
        logging.getLogger(record.name).handle(record)
    return before


def error(model: Model) -> float:
    """One number for the leave-one-out errors of a model, in arbitrary units; NaN where there are none.

    Mostly the forces, of which there are many: errors of a dozen energies are too noisy to choose by. Mean absolute
    errors, so that few structures unlike the others do not decide.
    """
    energy, force = model.loo.energy_mae, model.loo.force_mae
    if not np.isfinite(force):
        return energy
    return force * (energy**ENERGY_SHARE if energy > 0 else 1.0)


def cost(basis: ACEBasis, atoms: Atoms) -> float:
    """Time of energy and forces, µs per atom, of a structure repeated to some `TIMED_ATOMS` atoms; the best of few."""
    atoms = _repeated(atoms, basis.cutoff)
    params = Parameters(jnp.zeros(basis.n_species), jnp.ones(len(basis)), jnp.zeros((0, 0)))
    system = from_atoms(atoms, basis.elements, len(atoms))
    neighbours = jax.tree.map(jnp.asarray, neighbour_list(system, basis.cutoff))

    @jax.jit
    def run(positions: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jax.value_and_grad(
            lambda positions: total_energy(basis, params, system._replace(positions=positions), neighbours)
        )(positions)

    positions = jnp.asarray(system.positions)
    jax.block_until_ready(run(positions))
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(run(positions))
        times.append(time.perf_counter() - start)
    return 1e6 * min(times) / len(atoms)


def _first(growing: GrowingBasis, settings: FitSettings, structures: list[Atoms], largest: Atoms) -> Model:
    """The fit of the first of the smallest bases that is within the budget."""
    for basis in growing.first():
        if growing.budget is None or (taken := cost(basis, largest)) <= growing.budget:
            return fitted(basis, settings, structures)
    raise ValueError(
        f"no basis meets the budget of {growing.budget:g} µs per atom: the smallest, {basis.words()}, takes "
        f"{taken:.3g} here; give a larger budget, or a shorter cutoff"
    )


def _repeated(atoms: Atoms, cutoff: float) -> Atoms:
    times = -(-TIMED_ATOMS // len(atoms))
    if atoms.pbc.any():
        axis = int(np.argmax(atoms.pbc))
        return atoms.repeat([times if i == axis else 1 for i in range(3)])
    many, step = atoms.copy(), np.ptp(atoms.positions[:, 0]) + 2 * cutoff
    for k in range(1, times):
        copy = atoms.copy()
        copy.positions[:, 0] += k * step
        many += copy
    return many


def _words(model: Model) -> str:
    loo = errors_in_words(model.loo.energy, model.loo.force)
    return f"{model.basis.words()}, leave-one-out {loo}"


@contextmanager
def _silenced() -> Iterator[list[logging.LogRecord]]:
    """Collect what fits log and print nothing: the caller prints the messages of the fit that it chooses."""
    kept: list[logging.LogRecord] = []

    def keep(record: logging.LogRecord) -> bool:
        kept.append(record)
        return False

    loggers = [logging.getLogger(f"haljax.{name}") for name in ("fitting", "one_body")]
    for logger in loggers:
        logger.addFilter(keep)
    try:
        yield kept
    finally:
        for logger in loggers:
            logger.removeFilter(keep)
