"""Neighbour lists in a dense (N, K) layout, for any cell: skewed, smaller than the cutoff, partly periodic.

On the host `neighbour_list` (a k-d tree, for fits); inside jit `build`, brute force over a static stencil of
lattice shifts (for dynamics, vmapped over replicas); `refresh` reuses a list with a skin and decides once for
the whole batch, because a `lax.cond` under vmap runs both of its branches.
"""

from __future__ import annotations

from itertools import product
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from haljax.structures.pairs import pairs, reciprocal
from haljax.structures.system import System, bucket

Array = Any  # numpy or JAX

_HIGHEST = jax.lax.Precision.HIGHEST  # else a GPU may multiply float32 as TF32 and misplace atoms by 1e-3 Å
_BLOCK = 1 << 17  # candidates held at a time, a few MB: cache, and memory times the replicas


class Neighbours(NamedTuple):
    """Both directions of every pair, with all periodic images; every leaf may carry leading replica axes.

    Attributes
    ----------
    index : (N, K) int32, the neighbour j in slot k of atom i, -1 for an empty slot. One j may stand there
        several times, and i itself, with different shifts.
    shift : (N, K, 3) int32, S such that d = R[j] - R[i] + S @ cell.
    overflow : () int32, 0 where the list is complete; else the capacity K that was needed, or -1 where the
        stencil of shifts was too small or positions or cell are not finite. Whoever computes an energy must
        make it NaN where this is not 0.
    """

    index: Array
    shift: Array
    overflow: Array

    def padded(self, size: int, capacity: int) -> Neighbours:
        """The same list with ``size`` atoms and ``capacity`` slots, on the host; neither may shrink."""
        rows, columns = size - self.index.shape[0], capacity - self.index.shape[1]
        return Neighbours(
            np.pad(self.index, ((0, rows), (0, columns)), constant_values=-1),
            np.pad(self.shift, ((0, rows), (0, columns), (0, 0))),
            self.overflow,
        )


class NeighbourState(NamedTuple):
    """A list built with a skin, and what it was built from."""

    neighbours: Neighbours
    reference_positions: Array
    reference_cell: Array


def neighbour_list(system: System, cutoff: float, capacity: int | None = None) -> Neighbours:
    """The list of one system on the host, in numpy; without a `capacity`, K is `bucket` of the largest count.

    Raises
    ------
    ValueError : an atom has more neighbours than `capacity`.
    """
    positions, species, cell, pbc = (np.asarray(leaf) for leaf in system)
    atoms = np.flatnonzero(species >= 0)
    i, j, shift = pairs(positions[atoms], cell, pbc, cutoff)
    i, j = atoms[i], atoms[j]
    count = np.bincount(i, minlength=len(species))
    most = int(count.max())
    capacity = bucket(most) if capacity is None else capacity
    if most > capacity:
        raise ValueError(
            f"{most} neighbours of atom {count.argmax()} within {cutoff:g} Å exceed capacity {capacity}; "
            f"rerun with capacity >= {bucket(most)}"
        )
    slot = np.arange(len(i)) - np.repeat(np.cumsum(count) - count, count)
    index = np.full((len(species), capacity), -1, dtype=np.int32)
    shifts = np.zeros((len(species), capacity, 3), dtype=np.int32)
    index[i, slot], shifts[i, slot] = j, shift
    return Neighbours(index, shifts, np.int32(0))


def _images(cell: Array, pbc: Array, cutoff: float | Array) -> Array:
    """Images (3,) needed each way, as floats so that NaN survives.

    Once a difference of positions is wrapped to |fraction| <= 1/2, image n is at least (|n| - 1/2) h away, h
    the distance between the faces.
    """
    xp = cell.__array_namespace__()
    return xp.where(pbc, xp.floor(cutoff * xp.sqrt(xp.sum(reciprocal(cell) ** 2, axis=-1)) + 0.5), 0.0)


def required_stencil(cell: Array, pbc: Array, cutoff: float | Array) -> Array:
    """The stencil (3,) int32 that `build` needs for this cell (3, 3): 0 along axes without periodicity.

    Numpy in, numpy out; JAX likewise. Give `build` the largest over all cells expected, as a tuple of ints.
    """
    return _images(cell, pbc, cutoff).astype(np.int32)


def build(system: System, cutoff: float | Array, capacity: int, stencil: tuple[int, int, int]) -> Neighbours:
    """The list of one system inside jit; vmap it over replicas.

    Brute force over N x N x prod(2 n + 1) candidates, in blocks of rows so that memory stays bounded. Nothing
    is raised: a list that is not complete says so in `overflow`.

    Parameters
    ----------
    system : one system; its atoms need not lie inside the cell.
    cutoff : Å, skin included; a pair at exactly this distance is left out.
    capacity : slots K, static.
    stencil : static, number of periodic images each way along the three axes (`required_stencil`).
    """
    system = System(*map(jnp.asarray, jax.lax.stop_gradient(system)))
    positions, species, cell, pbc = system
    n, dtype = len(species), positions.dtype
    dual = reciprocal(cell)
    images = np.array(list(product(*(range(-m, m + 1) for m in stencil))), dtype=np.int32)
    if_periodic = jnp.all(pbc[None, :] | (images == 0), axis=1)
    offsets = jnp.matmul(images.astype(dtype), cell, precision=_HIGHEST)
    own = np.all(images == 0, axis=1)

    def row(i: Array) -> tuple[Array, Array, Array]:
        d = positions - positions[i][None, :]
        home = jnp.where(pbc[None, :], jnp.round(jnp.matmul(d, dual.T, precision=_HIGHEST)), 0)
        d = d - jnp.matmul(home, cell, precision=_HIGHEST)
        r2 = sum((d[:, None, x] + offsets[None, :, x]) ** 2 for x in range(3))
        real = (species >= 0) & (species[i] >= 0)
        other = (jnp.arange(n) != i)[:, None] | ~own[None, :]
        near = (r2 < cutoff**2) & real[:, None] & other & if_periodic[None, :]
        # The place of the k-th True: on a CPU a binary search in the running count beats scatter, sort and,
        # up to some thousand candidates, top_k.
        running = jnp.cumsum(near.ravel(), dtype=jnp.int32)
        place = jnp.searchsorted(running, jnp.arange(1, capacity + 1, dtype=jnp.int32)).astype(jnp.int32)
        j, image = jnp.minimum(place // len(images), n - 1), place % len(images)
        full = place < running.size
        shift = jnp.asarray(images)[image] - home[j].astype(jnp.int32)
        return jnp.where(full, j, -1), jnp.where(full[:, None], shift, 0), running[-1]

    rows = max(1, _BLOCK // (n * len(images)))
    atoms = jnp.arange(n, dtype=jnp.int32)
    index, shift, count = jax.vmap(row)(atoms) if rows >= n else jax.lax.map(row, atoms, batch_size=rows)

    # Compared so that NaN counts as too far.
    enough = jnp.all(_images(cell, pbc, cutoff) <= np.array(stencil)) & jnp.all(jnp.isfinite(positions))
    most = jnp.max(count)
    overflow = jnp.where(enough, jnp.where(most > capacity, most, 0), -1)
    return Neighbours(index, shift, overflow)


def neighbour_state(
    system: System, cutoff: float | Array, skin: float | Array, capacity: int, stencil: tuple[int, int, int]
) -> NeighbourState:
    """A fresh list out to cutoff + skin (Å) for `refresh` to keep; otherwise as `build`."""
    return NeighbourState(build(system, cutoff + skin, capacity, stencil), system.positions, system.cell)


def must_rebuild(
    state: NeighbourState,
    positions: Array,
    cell: Array,
    cutoff: float | Array,
    skin: float | Array,
    mask: Array,
) -> Array:
    """Whether a pair missing from the list could have come within the cutoff: () bool, never wrongly False.

    With the deformation F = inv(cell_ref) cell and displacements u = R - R_ref F, a pair at d_ref is now at
    |d_ref F + u_j - u_i| >= (1 - ||F - 1||) |d_ref| - 2 max|u|; missing pairs had |d_ref| >= cutoff + skin.

    Parameters
    ----------
    state : of one system.
    positions, cell : (N, 3), (3, 3) Å, the present ones; positions must not have been wrapped since.
    cutoff, skin : Å, as the list was built.
    mask : (N,) bool, the real atoms.
    """
    # F - 1, formed from the difference so that it is exactly zero where nothing changed.
    change = cell - state.reference_cell
    deformation = jnp.matmul(reciprocal(state.reference_cell).T, change, precision=_HIGHEST)
    affine = jnp.matmul(state.reference_positions, deformation, precision=_HIGHEST)
    u2 = jnp.sum((positions - state.reference_positions - affine) ** 2, axis=-1)
    moved = jnp.sqrt(jnp.max(jnp.where(mask, u2, 0)))
    strained = jnp.sqrt(jnp.sum(deformation**2))
    return ~((1 - strained) * (cutoff + skin) - 2 * moved >= cutoff)


def refresh(
    states: NeighbourState,
    systems: System,
    cutoff: float | Array,
    skin: float | Array,
    stencil: tuple[int, int, int],
) -> NeighbourState:
    """The lists of a batch, rebuilt (all of them) if any replica must be, unchanged otherwise.

    One predicate for the batch, so do not vmap this function. Arguments as for `build` and
    `must_rebuild`, with a leading replica axis on states and systems; the capacity stays.
    """
    capacity = states.neighbours.index.shape[-1]

    def due(state: NeighbourState, system: System) -> Array:
        return must_rebuild(state, system.positions, system.cell, cutoff, skin, system.species >= 0)

    def fresh(system: System) -> NeighbourState:
        return neighbour_state(system, cutoff, skin, capacity, stencil)

    any_due = jnp.any(jax.vmap(due)(states, systems))
    return jax.lax.cond(any_due, lambda: jax.vmap(fresh)(systems), lambda: states)


def vectors(system: System, neighbours: Neighbours, far: float, strain: Array | None = None) -> tuple[Array, Array]:
    """Vectors to the neighbours of one system, differentiable in positions, cell, strain; vmap over replicas.

    Parameters
    ----------
    far : Å; an empty slot gets the constant vector (far, 0, 0), beyond every cutoff, without gradient.
    strain : (3, 3) symmetric ε, or None: all vectors become d (1 + ε), so that dE/dε at 0 is volume x stress.

    Returns
    -------
    d : (N, K, 3) Å, R[j] - R[i] + S @ cell.
    species : (N, K) int32 of the neighbours, -1 in empty slots.
    """
    positions, species, cell, index, shift = map(
        jnp.asarray, (system.positions, system.species, system.cell, neighbours.index, neighbours.shift)
    )
    ends, z_j = neighbours_at(positions, species, index)
    return separations(positions, ends, z_j, shift, cell, far, strain), z_j


def neighbours_at(positions: jax.Array, species: jax.Array, index: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Positions (N, K, 3), before any shift, and species (N, K) of the neighbours; -1 in empty slots."""
    j = jnp.maximum(index, 0)
    return positions[j], jnp.where(index >= 0, species[j], -1)


def separations(
    starts: jax.Array,
    ends: jax.Array,
    z_j: jax.Array,
    shift: jax.Array,
    cell: jax.Array,
    far: float,
    strain: Array | None,
) -> jax.Array:
    """As `vectors`, from atoms at ``starts`` (N, 3) to neighbours that are, before any shift, at ``ends`` (N, K, 3)."""
    d = ends - starts[:, None, :] + jnp.einsum("nks,sc->nkc", shift.astype(ends.dtype), cell, precision=_HIGHEST)
    if strain is not None:
        d = d + jnp.einsum("nkb,bc->nkc", d, strain, precision=_HIGHEST)
    return jnp.where(z_j[:, :, None] >= 0, d, jnp.array([far, 0, 0], d.dtype))
