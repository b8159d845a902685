"""Rows of the design matrix of labelled structures, with the columns in the order of `haljax.potentials`.

A row has a column for each function of the basis, for E0 of each element and for each function of the density. Rows
are weighted by 1 over the expected error of their label, so that one noise serves for all.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from haljax.ace import (
    ACEBasis,
    core_energy,
    densities,
    density_features,
    density_gradient,
    descriptor,
    descriptor_gradient,
    mean_densities,
)
from haljax.devices import in_threads
from haljax.potentials import _voigt, counts
from haljax.structures import Labels, Neighbours, System, bucket, from_atoms, labels, neighbour_list, vectors
from haljax.structures.system import structure_name

if TYPE_CHECKING:
    from ase import Atoms

Array = Any  # numpy or JAX

ENERGY, FORCE, STRESS = range(3)  # kinds of rows
KINDS = ("energy", "force", "stress")
CORE_MARGIN = 0.8  # outer radius of the core over the shortest distance in the data
IN_MEMORY = 1 << 28  # bytes of rows beyond which further ones wait on disk


class Rows(NamedTuple):
    """The unweighted rows of one structure and what they must reproduce besides the core.

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
def design_rows(basis: ACEBasis, system: System, neighbours: Neighbours, radii: Array | None = None) -> Rows:
    """The rows of the M functions of the basis that one structure gives; ``radii`` (2, Z, Z) of the core."""
    species = jnp.asarray(system.species)
    d, z_j = vectors(system, neighbours, 2 * basis.cutoff)
    value, gradient, tension = descriptor_gradient(basis, d, species, z_j, jnp.asarray(neighbours.index), radii)

    def core(positions, strain):
        moved, _ = vectors(system._replace(positions=positions), neighbours, 2 * basis.cutoff, strain)
        return core_energy(basis, moved, species, z_j, radii)

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
def all_rows(basis: ACEBasis, system: System, neighbours: Neighbours, radii: Array, density: Array) -> Rows:
    """As `design_rows` with all P columns: the basis, the counts of the elements, the functions of the density."""
    rows = design_rows(basis, system, neighbours, radii)
    species = jnp.asarray(system.species)
    d, z_j = vectors(system, neighbours, 2 * basis.cutoff)
    value, gradient, tension = density_gradient(basis, density, d, species, z_j, jnp.asarray(neighbours.index))
    n, z, dtype = len(species), basis.n_species, value.dtype
    return rows._replace(
        energy=jnp.concatenate([rows.energy, counts(basis, species, dtype), value]),
        forces=jnp.concatenate([rows.forces, jnp.zeros((n, 3, z), dtype), -gradient], axis=-1),
        virial=jnp.concatenate(
            [rows.virial, jnp.zeros((6, z), dtype), -jax.vmap(_voigt, in_axes=2, out_axes=1)(tension)], axis=-1
        ),
    )


@partial(jax.jit, static_argnums=0)
def all_features(basis: ACEBasis, system: System, neighbours: Neighbours, radii: Array, density: Array) -> jax.Array:
    """The row (P,) of a structure's energy alone."""
    d, z_j = vectors(system, neighbours, 2 * basis.cutoff)
    z_i = jnp.asarray(system.species)
    return jnp.concatenate(
        [
            descriptor(basis, d, z_i, z_j, radii),
            counts(basis, z_i, d.dtype),
            density_features(basis, density, d, z_i, z_j),
        ]
    )


class Weights(NamedTuple):
    """Of an energy and of a virial component per atom, 1/eV, and of a force component, Å/eV."""

    energy: float
    force: float
    stress: float


class Block(NamedTuple):
    """Weighted rows (r, P) of one structure, their targets (r,), and of what kind they are (r,).

    ``weight`` (r,) is what each row was multiplied by; ``share`` (r,) the part of it that is the structure's own: from
    the weights that the user gave it, and from a fit that doubts it. Targets lack the energy of the core, not E0.
    """

    rows: np.ndarray
    targets: np.ndarray
    kind: np.ndarray
    weight: np.ndarray
    share: np.ndarray

    def times(self, factor: float) -> Block:
        """The block with all weights multiplied."""
        return Block(self.rows * factor, self.targets * factor, self.kind, self.weight * factor, self.share * factor)


def weighted(
    basis: ACEBasis, radii: Array, density: Array, weights: Weights, example: tuple[System, Neighbours, Labels]
) -> Block:
    """The rows of one structure; labels that are missing or have weight 0 give none."""
    system, neighbours, label = example
    rows = Rows(*map(np.asarray, all_rows(basis, system, neighbours, radii, density)))
    n = len(label.forces)
    virial = -label.stress * abs(np.linalg.det(system.cell)) - rows.core_virial
    share = np.concatenate([[label.energy_weight], label.force_weight.ravel(), np.full(6, label.stress_weight)])
    kind = np.repeat(np.arange(3, dtype=np.int8), (1, 3 * n, 6))
    weight = share * np.array([weights.energy / n, weights.force, weights.stress / n])[kind]
    targets = np.concatenate([[label.energy - rows.core_energy], (label.forces - rows.core_forces[:n]).ravel(), virial])
    matrix = np.concatenate([rows.energy[None], rows.forces[:n].reshape(3 * n, -1), rows.virial])
    known = np.isfinite(targets) & (weight > 0)
    weight = weight[known]
    return Block(matrix[known] * weight[:, None], targets[known] * weight, kind[known], weight, share[known])


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


def blocks_of(
    basis: ACEBasis,
    radii: Array,
    density: Array,
    weights: Weights,
    structures: Sequence[Atoms],
    seen: Iterable[tuple[System, Neighbours]] | None = None,
) -> Iterator[Block]:
    """Weighted rows of each structure in order, computed on all cores and devices; ``seen`` are its `examples`."""
    known = [labels(atoms, index=i) for i, atoms in enumerate(structures)]
    seen = examples(basis, structures) if seen is None else seen
    labelled = ((*example, label) for example, label in zip(seen, known, strict=True))
    radii, density = jnp.asarray(radii), jnp.asarray(density)
    return in_threads(partial(weighted, basis, radii, density, weights), labelled)


class Table:
    """The blocks of all structures: in memory up to `IN_MEMORY` bytes, the others in a temporary file."""

    def __init__(self, blocks: Iterable[Block]) -> None:
        self._kept: list[Block | tuple[int, tuple[int, int]]] = []  # a block, or where its rows are in the file
        self._light: list[Block] = []  # blocks whose rows are on disk, without rows
        self._file = None
        held = 0
        for block in blocks:
            if held + block.rows.nbytes <= IN_MEMORY:
                held += block.rows.nbytes
                self._kept.append(block)
                continue
            if self._file is None:
                self._file = tempfile.TemporaryFile()
            start = self._file.seek(0, 2)
            self._file.write(np.ascontiguousarray(block.rows).tobytes())
            self._kept.append((start, block.rows.shape))
            self._light.append(block._replace(rows=np.zeros((0, block.rows.shape[1]))))

    def __len__(self) -> int:
        return len(self._kept)

    def __iter__(self) -> Iterator[Block]:
        light = iter(self._light)
        for kept in self._kept:
            if isinstance(kept, Block):
                yield kept
                continue
            start, shape = kept
            assert self._file is not None
            self._file.seek(start)
            rows = np.frombuffer(self._file.read(8 * shape[0] * shape[1])).reshape(shape)
            yield next(light)._replace(rows=rows)


class Part:
    """Some blocks of a table, all weights of each multiplied by its own factor."""

    def __init__(self, table: Table, kept: Sequence[int], factors: np.ndarray) -> None:
        self._table, self._factors = table, dict(zip(kept, factors.tolist(), strict=True))

    def __len__(self) -> int:
        return len(self._factors)

    def __iter__(self) -> Iterator[Block]:
        for k, block in enumerate(self._table):
            if (factor := self._factors.get(k)) is not None:
                yield block if factor == 1 else block.times(factor)


def shortest_distances(basis: ACEBasis, seen: Sequence[tuple[System, Neighbours]]) -> np.ndarray:
    """(S, Z, Z) Å, of each pair of elements in each of the `examples`; infinite where it has none within the cutoff."""
    found = np.full((len(seen), basis.n_species, basis.n_species), np.inf)
    for shortest, (system, neighbours) in zip(found, seen, strict=True):
        i, slot = np.nonzero(neighbours.index >= 0)
        j = neighbours.index[i, slot]
        d = system.positions[j] - system.positions[i] + neighbours.shift[i, slot] @ system.cell
        np.minimum.at(shortest, (system.species[i], system.species[j]), np.linalg.norm(d, axis=1))
    return np.minimum(found, np.swapaxes(found, 1, 2))


def radii_from(basis: ACEBasis, shortest: np.ndarray) -> np.ndarray:
    """Radii (2, Z, Z) Å of the core: `CORE_MARGIN` times the shortest distance of each pair of elements in the data.

    The shortest that is supported: by two structures at least, and one in twenty, so that a single structure of
    atoms absurdly close does not drag the core in. Never above the basis' own radii, which serve for pairs that no
    structure has, and never below half of them where only one structure supports it.
    """
    inner, outer = (np.array(r) for r in basis.core_radii)
    for a in range(basis.n_species):
        for b in range(basis.n_species):
            d = np.sort(shortest[:, a, b][np.isfinite(shortest[:, a, b])])
            if len(d) == 0:
                continue
            k = max(1, -(-len(d) // 20)) if len(d) > 1 else 0
            supported = CORE_MARGIN * d[min(k, len(d) - 1)]
            outer[a, b] = min(outer[a, b], supported if len(d) > 1 else max(supported, 0.5 * outer[a, b]))
    return np.stack([np.minimum(inner, outer / 2), outer])


def too_close(basis: ACEBasis, radii: np.ndarray, shortest: np.ndarray, structures: Sequence[Atoms]) -> dict[int, str]:
    """Structures with atoms inside the core's outer radius: index -> which pair, and how close."""
    found = {}
    for i, atoms in enumerate(structures):
        if np.any(inside := shortest[i] < radii[1]):
            a, b = np.unravel_index(np.argmin(np.where(inside, shortest[i] / radii[1], np.inf)), inside.shape)
            pair = f"{basis.elements[a]}-{basis.elements[b]}"
            found[i] = f"{structure_name(atoms, i)}: {pair} at {shortest[i][a, b]:.2f} Å (core: {radii[1][a, b]:.2f} Å)"
    return found


def reference_densities(basis: ACEBasis, seen: Sequence[tuple[System, Neighbours]]) -> np.ndarray:
    """Mean densities (channels, Z) of each element in `examples`, in which the functions of the density are written."""
    found = in_threads(lambda example: np.asarray(_densities(basis, *example)), seen)
    return mean_densities(basis, [(rho, system.species) for rho, (system, _) in zip(found, seen, strict=True)])


@partial(jax.jit, static_argnums=0)
def _densities(basis: ACEBasis, system: System, neighbours: Neighbours) -> jax.Array:
    d, z_j = vectors(system, neighbours, 2 * basis.cutoff)
    return densities(basis, d, jnp.asarray(system.species), z_j)
