"""From labelled structures to a model: design rows, E0, weights, evidence; updates and selection."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from haljax import bayes
from haljax.ace import ACEBasis, core_energy, descriptor, descriptor_gradient
from haljax.bayes import Posterior, Statistics, accumulate, empty, one_blas_thread, require_x64, seen_rows
from haljax.devices import cores
from haljax.model import FitSettings, Model
from haljax.potentials import _voigt
from haljax.structures import (
    Labels,
    Neighbours,
    System,
    bucket,
    from_atoms,
    labels,
    neighbour_list,
    vectors,
)

if TYPE_CHECKING:
    from ase import Atoms

log = logging.getLogger(__name__)
Array = Any  # numpy or JAX

# 1 / (3 meV/atom), 1 / (0.1 eV/Å), 1 / (0.03 eV/atom): rows of forces outnumber those of energies 3 N to one.
ENERGY_WEIGHT, FORCE_WEIGHT, STRESS_WEIGHT = 300.0, 10.0, 30.0
SMOOTHNESS = 2.0


def fit(
    basis: ACEBasis,
    train: Sequence[Atoms],
    e0: str | Mapping[str, float] = "lsq",
    energy_weight: float = ENERGY_WEIGHT,
    force_weight: float = FORCE_WEIGHT,
    stress_weight: float = STRESS_WEIGHT,
    solver: str = "brr",
    smoothness: float = SMOOTHNESS,
) -> Model:
    """Fit a linear ACE potential to labelled structures by maximum evidence.

    Parameters
    ----------
    train : structures with energies (eV) and, where there are any, forces (eV/Å) and stresses (eV/Å^3, ASE's
        sign). ``info["energy_weight"]``, ``info["force_weight"]``, ``info["stress_weight"]`` and
        ``arrays["force_weight"]`` multiply a structure's weights.
    e0 : energies of the isolated elements: "isolated" takes them from the single atoms in ``train`` that have
        no neighbour within the cutoff, "lsq" from a least-squares fit of the energies to the composition, or
        a mapping from element to eV.
    energy_weight, stress_weight : of an energy and a virial component per atom, 1/eV.
    force_weight : of a force component, Å/eV. Only ratios of weights matter: the noise is learned.
    solver : "brr" (one prior precision for all functions) or "ard" (one each; prunes).
    smoothness : power p of the prior, under which coefficients of rough functions (large n, l) are smaller.

    Raises
    ------
    ValueError : no structures, labels missing or not finite, an element the basis lacks, an unknown solver, a
        negative weight, nothing that has a weight.
    RuntimeError : x64 is off.
    """
    require_x64()
    if solver not in ("brr", "ard"):
        raise ValueError(f"solver must be 'brr' or 'ard', not {solver!r}")
    train = list(train)
    if not train:
        raise ValueError("there is nothing to fit: give at least one labelled structure")
    for name, value in (("energy", energy_weight), ("force", force_weight), ("stress", stress_weight)):
        if not 0 <= value < np.inf:
            raise ValueError(f"{name}_weight must be a finite number >= 0, not {value}")
    for i, atoms in enumerate(train):  # here, where i is the index in the caller's list
        from_atoms(atoms, basis.elements, index=i)
        labels(atoms, index=i)
    settings = FitSettings(energy_weight, force_weight, stress_weight, solver, smoothness)
    one_body = _one_body_energies(basis, train, e0)
    if e0 == "isolated":
        train = [atoms for atoms in train if not _isolated(basis, atoms)]
    statistics = _absorbed(empty(len(basis)), basis, one_body, settings, train)
    posterior, active = solve(basis, settings, statistics)
    return Model(basis, one_body, posterior, statistics, active, settings, len(train))


def update(model: Model, new: Sequence[Atoms]) -> Model:
    """The model after more labelled structures, at fixed E0, weights and hyperparameters.

    A rank-k update of the posterior: equal to a refit at the same hyperparameters. The rows wait in the model until
    its statistics are asked for (`refit`, `Model.save`) or there are more of them than functions.
    """
    blocks = list(_blocks(model.basis, model.e0, model.settings, new))
    if not blocks:
        raise ValueError("there is nothing to learn: give at least one labelled structure")
    rows, targets = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    extra = bucket(len(rows)) - len(rows)  # rows of zeros, which say nothing, to one of few shapes
    with one_blas_thread():
        posterior = jax.block_until_ready(
            _update(model.posterior, np.pad(rows * model.active, ((0, extra), (0, 0))), np.pad(targets, (0, extra)))
        )
    updated = replace(
        model,
        posterior=posterior,
        pending=(*model.pending, (rows, targets)),
        n_structures=model.n_structures + len(new),
    )
    if updated.n_pending > len(model.basis):
        return replace(updated, compressed=updated.statistics, pending=())
    return updated


def refit(model: Model, new: Sequence[Atoms]) -> Model:
    """The model after more labelled structures, with hyperparameters learned again; E0 and weights stay."""
    statistics = _absorbed(model.statistics, model.basis, model.e0, model.settings, new)
    posterior, active = solve(model.basis, model.settings, statistics)
    return replace(
        model,
        posterior=posterior,
        active=active,
        compressed=statistics,
        pending=(),
        n_structures=model.n_structures + len(new),
    )


def select(model: Model, pool: Sequence[Atoms], n: int, given: Sequence[Atoms] = ()) -> list[int]:
    """Indices of the ``n`` structures of an unlabelled pool that are worth labelling together.

    Greedy by conditional posterior variance of the energy: each pick conditions the posterior as if it had
    been labelled, so near-copies are not picked twice, nor of structures ``given`` whose labels are on their way.

    Raises
    ------
    ValueError : the pool is empty or smaller than ``n``.
    """
    pool = list(pool)
    if not pool:
        raise ValueError("the pool is empty: give at least one structure to select from")
    scale = model.settings.energy_weight or ENERGY_WEIGHT  # a fit to forces alone still judges by energies

    def rows(structures: Sequence[Atoms]) -> np.ndarray:
        weight = np.array([scale / len(atoms) for atoms in structures])
        return descriptors(model.basis, structures) * weight[:, None]

    posterior = model.posterior
    if given:  # what they will say does not matter for the variance
        known = np.pad(rows(given) * model.active, ((0, bucket(len(given)) - len(given)), (0, 0)))
        posterior = _update(posterior, known, known @ np.asarray(posterior.mean))
    indices, _ = bayes.select(posterior, jnp.asarray(rows(pool))[:, None, :], n)
    return [int(i) for i in indices]


def solve(basis: ACEBasis, settings: FitSettings, statistics: Statistics) -> tuple[Posterior, np.ndarray]:
    """Posterior at maximum evidence and the mask of active functions (M,)."""
    if not int(statistics.n):
        raise ValueError("there is nothing to learn from: every label is missing or has weight 0")
    scale = jnp.asarray(basis.smoothness(settings.smoothness))
    with one_blas_thread():
        posterior, info = jax.block_until_ready(_SOLVERS[settings.solver](seen_rows(statistics), scale))
    if not np.isfinite(float(posterior.log_evidence)):
        raise ValueError("the fit is not finite: look for extreme labels or weights among the training structures")
    if not info.converged:
        log.warning(
            "the evidence still grew after %d steps of %s: the model is usable, and sigma perhaps not yet right",
            int(info.iterations),
            settings.solver,
        )
    return posterior, np.asarray(info.active)


_SOLVERS = {"brr": jax.jit(bayes.brr), "ard": jax.jit(bayes.ard)}
_update = jax.jit(bayes.update)


def descriptors(basis: ACEBasis, structures: Sequence[Atoms]) -> np.ndarray:
    """Summed descriptors (n, M) of structures, so that E = e0 + core + c . D."""
    return np.stack([np.asarray(_descriptor(basis, *example)) for example in examples(basis, structures)])


class Rows(NamedTuple):
    """The unweighted rows of one structure and what they must reproduce besides the fixed core.

    Attributes
    ----------
    energy : (M,) D. forces : (N, 3, M) -dD/dR, 1/Å. virial : (6, M) -dD/d(strain), Voigt.
    core_energy, core_forces, core_virial : (), (N, 3), (6,) of the repulsive core, eV and Å.
    """

    energy: Array
    forces: Array
    virial: Array
    core_energy: Array
    core_forces: Array
    core_virial: Array


@partial(jax.jit, static_argnums=0)
def design_rows(basis: ACEBasis, system: System, neighbours: Neighbours) -> Rows:
    """All rows of the design matrix that one structure gives."""
    species = jnp.asarray(system.species)
    d, z_j = vectors(system, neighbours, 2 * basis.cutoff)
    value, gradient, tension = descriptor_gradient(basis, d, species, z_j, jnp.asarray(neighbours.index))

    def core(positions, strain):
        moved, _ = vectors(system._replace(positions=positions), neighbours, 2 * basis.cutoff, strain)
        return core_energy(basis, moved, species, z_j)

    start = jnp.asarray(system.positions), jnp.zeros((3, 3), d.dtype)
    energy, (core_gradient, core_tension) = jax.value_and_grad(core, argnums=(0, 1))(*start)
    return Rows(
        value,
        -gradient,
        -jax.vmap(_voigt, in_axes=2, out_axes=1)(tension),
        energy,
        -core_gradient,
        -_voigt(core_tension),
    )


@partial(jax.jit, static_argnums=0)
def _descriptor(basis: ACEBasis, system: System, neighbours: Neighbours) -> jax.Array:
    d, z_j = vectors(system, neighbours, 2 * basis.cutoff)
    return descriptor(basis, d, jnp.asarray(system.species), z_j)


def _weighted(
    basis: ACEBasis, one_body: np.ndarray, settings: FitSettings, example: tuple[System, Neighbours, Labels]
) -> tuple[np.ndarray, np.ndarray]:
    """Weighted rows (r, M) and targets (r,) of one structure; labels that are missing give no rows."""
    system, neighbours, label = example
    rows = Rows(*map(np.asarray, design_rows(basis, system, neighbours)))
    n = len(label.forces)
    energy = label.energy - one_body[system.species[:n]].sum() - rows.core_energy
    virial = -label.stress * abs(np.linalg.det(system.cell)) - rows.core_virial
    weights = np.concatenate(
        [
            [settings.energy_weight * label.energy_weight / n],
            (settings.force_weight * label.force_weight).ravel(),
            np.full(6, settings.stress_weight * label.stress_weight / n),
        ]
    )
    targets = np.concatenate([[energy], (label.forces - rows.core_forces[:n]).ravel(), virial])
    matrix = np.concatenate([rows.energy[None], rows.forces[:n].reshape(3 * n, -1), rows.virial])
    known = np.isfinite(targets) & (weights > 0)
    return matrix[known] * weights[known, None], targets[known] * weights[known]


def examples(basis: ACEBasis, structures: Sequence[Atoms]) -> Iterator[tuple[System, Neighbours]]:
    """Structures as arrays, all with one neighbour capacity, so that few shapes are compiled."""
    lists = [
        neighbour_list(from_atoms(atoms, basis.elements, len(atoms), i), basis.cutoff)
        for i, atoms in enumerate(structures)
    ]
    largest = bucket(max(map(len, structures), default=0))
    capacity = max((found.index.shape[1] for found in lists), default=0)
    for atoms, found in zip(structures, lists, strict=True):
        size = largest
        while size > 1 and -(-size // 16) >= len(atoms):  # few sizes: padded atoms cost next to nothing
            size = -(-size // 16)
        yield from_atoms(atoms, basis.elements, size), found.padded(size, capacity)


def _blocks(
    basis: ACEBasis, one_body: np.ndarray, settings: FitSettings, structures: Sequence[Atoms]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Weighted rows of each structure in order, computed on all cores and devices."""
    known = [labels(atoms, index=i) for i, atoms in enumerate(structures)]
    labelled = ((*example, label) for example, label in zip(examples(basis, structures), known, strict=True))
    # On a CPU the threads keep all cores busy on one device, and a user's choice of a device is theirs.
    spread_out = jax.default_backend() != "cpu" and getattr(jax.config, "jax_default_device", None) is None
    devices = jax.local_devices() if spread_out else []
    workers = max(cores(), len(devices))

    def weighted(k: int, example: tuple[System, Neighbours, Labels]) -> tuple[np.ndarray, np.ndarray]:
        with jax.default_device(devices[k % len(devices)]) if len(devices) > 1 else nullcontext():
            return _weighted(basis, one_body, settings, example)

    with ThreadPoolExecutor(workers) as pool:
        waiting = []
        for k, example in enumerate(labelled):
            waiting.append(pool.submit(weighted, k, example))
            if len(waiting) > 2 * workers:
                yield waiting.pop(0).result()
        for future in waiting:
            yield future.result()


def _absorbed(
    statistics: Statistics,
    basis: ACEBasis,
    one_body: np.ndarray,
    settings: FitSettings,
    structures: Sequence[Atoms],
) -> Statistics:
    """Statistics after more structures, block by block: memory does not grow with the data."""
    blocks = _blocks(basis, one_body, settings, structures)
    return accumulate(statistics, blocks, sum(1 + 3 * len(atoms) + 6 for atoms in structures))


def _isolated(basis: ACEBasis, atoms: Atoms) -> bool:
    """A single atom with no image of itself in reach; the primitive cell of a crystal is none."""
    return len(atoms) == 1 and bool(np.all(neighbour_list(from_atoms(atoms, basis.elements), basis.cutoff).index < 0))


def _one_body_energies(basis: ACEBasis, train: Iterable[Atoms], e0: str | Mapping[str, float]) -> np.ndarray:
    """(Z,) eV."""
    if isinstance(e0, Mapping):
        if missing := [e for e in basis.elements if e not in e0]:
            raise ValueError(f"e0 lacks {', '.join(missing)}: give an energy in eV for every element")
        if bad := [e for e in basis.elements if not np.isfinite(e0[e])]:
            raise ValueError(f"e0 of {', '.join(bad)} is NaN or infinite: give it in eV")
        return np.array([float(e0[e]) for e in basis.elements])
    if e0 == "isolated":
        found = {atoms.symbols[0]: labels(atoms).energy for atoms in train if _isolated(basis, atoms)}
        if missing := [e for e in basis.elements if not np.isfinite(found.get(e, np.nan))]:
            raise ValueError(
                f"e0='isolated' needs the energy of a single atom of {', '.join(missing)}, alone within the "
                "cutoff, among the training structures; add it, or use e0='lsq' or a mapping"
            )
        return np.array([found[e] for e in basis.elements])
    if e0 == "lsq":
        known = [(atoms, label) for atoms in train if (label := labels(atoms)).energy_weight > 0]
        known = [(atoms, label) for atoms, label in known if np.isfinite(label.energy)]
        if not known:
            raise ValueError("e0='lsq' needs energies, but no structure has one; give e0 as a mapping")
        counts = np.array([[np.sum(atoms.symbols == e) for e in basis.elements] for atoms, _ in known], float)
        n_atoms = counts.sum(axis=1, keepdims=True)
        energies = np.array([label.energy for _, label in known])[:, None]
        return np.linalg.lstsq(counts / n_atoms, energies / n_atoms, rcond=1e-8)[0][:, 0]
    raise ValueError(f"e0 must be 'lsq', 'isolated' or a mapping from element to eV, not {e0!r}")
