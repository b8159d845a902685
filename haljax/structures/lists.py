"""A neighbour list that knows what it was made for: stale it says so, and it can renew itself inside jit."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from haljax.structures.neighbours import (
    Neighbours,
    NeighbourState,
    build,
    must_rebuild,
    neighbour_list,
    required_stencil,
)
from haljax.structures.system import System, bucket

Array = Any  # numpy or JAX

MARGIN = 1e-3  # Å beyond the skin: positions of float32, and steps of finite differences, make no list stale
ROOM = 1.25  # slots over those needed at first, for atoms that come closer while the list is renewed
SPARE = 1 / 3  # of the skin, which is left when a list is renewed
SHRINK = 0.95  # of the cell, down to which the images that are looked at suffice


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("neighbours", "system", "skin"),
    meta_fields=("cutoff", "stencil"),
)
@dataclass(frozen=True)
class NeighbourList:
    """The list of one system out to cutoff + skin, with the positions, species and cell that it was made for.

    A pytree: it goes through jit, vmap and scan. ``update`` is the counterpart of jax-md's ``neighbors.update``.

    Attributes
    ----------
    neighbours : the list itself; ``index``, ``shift`` and ``overflow`` are its own.
    system : what it was made for.
    skin : () Å; atoms may move half of it.
    cutoff : Å, static. stencil : periodic images each way that `update` looks at, static.
    """

    neighbours: Neighbours
    system: System
    skin: Array
    cutoff: float
    stencil: tuple[int, int, int]

    @property
    def index(self) -> Array:
        return self.neighbours.index

    @property
    def shift(self) -> Array:
        return self.neighbours.shift

    @property
    def overflow(self) -> Array:
        """() int32, 0 where the list is complete; else the slots needed, or -1 where the cell has shrunk too far."""
        return self.neighbours.overflow

    def stale(self, positions: Array, cell: Array, spare: Array = 0.0) -> jax.Array:
        """() bool, whether a pair that the list lacks may be within the cutoff + spare; never wrongly False.

        Parameters
        ----------
        positions : (N, 3) Å, not wrapped since the list was made. cell : (3, 3) Å, vectors in rows.
        """
        positions, cell = jax.lax.stop_gradient((jnp.asarray(positions), jnp.asarray(cell)))
        made_for = jax.tree.map(lambda leaf: jnp.asarray(leaf, positions.dtype), self.system[::2])
        state = NeighbourState(self.neighbours, *made_for)
        cutoff, skin = self.cutoff + spare, jnp.asarray(self.skin, positions.dtype) + MARGIN - spare
        return must_rebuild(state, positions, cell, cutoff, skin, jnp.asarray(self.system.species) >= 0)

    def checked(self, positions: Array, cell: Array) -> Neighbours:
        """The list itself; where it is stale, incomplete by its ``overflow``, so that energies are NaN."""
        overflow = jnp.where(self.stale(positions, cell), -1, jnp.asarray(self.overflow))
        return self.neighbours._replace(overflow=overflow.astype(jnp.int32))

    def update(self, positions: Array, box: Array | None = None) -> NeighbourList:
        """The list for these positions, made anew where two thirds of the skin are used up; inside jit too.

        The last third is for a step that moves the atoms before it asks for forces, as those of jax-md do.

        Where it then lacks slots, or the box has shrunk by more than a twentieth, ``overflow`` is not 0 and energies
        are NaN: make another with ``neighbours`` of `haljax.potential`, on the host.

        Parameters
        ----------
        positions : (N, 3) Å. box : lattice vectors in columns, as in jax-md; None where it is as it was.
        """
        positions = jnp.asarray(positions)
        cell = jnp.asarray(self.system.cell, positions.dtype) if box is None else rows_of(box, positions.dtype)
        system = System(positions, jnp.asarray(self.system.species), cell, jnp.asarray(self.system.pbc))
        capacity = self.index.shape[-1]

        def fresh() -> NeighbourList:
            reach = self.cutoff + jnp.asarray(self.skin, positions.dtype) + MARGIN
            return replace(self, neighbours=build(system, reach, capacity, self.stencil), system=system)

        def kept() -> NeighbourList:
            return jax.tree.map(jnp.asarray, replace(self, system=cast(self.system, positions.dtype)))

        spare = SPARE * jnp.asarray(self.skin, positions.dtype)
        return jax.lax.cond(self.stale(positions, cell, spare), fresh, kept)

    def padded(self, size: int, capacity: int) -> NeighbourList:
        """The same with ``size`` atoms and ``capacity`` slots, on the host; neither may shrink."""
        positions, species, cell, pbc = map(np.asarray, self.system)
        extra = size - len(species)
        system = System(
            np.pad(positions, ((0, extra), (0, 0))), np.pad(species, (0, extra), constant_values=-1), cell, pbc
        )
        neighbours = Neighbours(*map(np.asarray, self.neighbours)).padded(size, capacity)
        return jax.tree.map(jnp.asarray, replace(self, neighbours=neighbours, system=system))


def cast(system: System, dtype: Any) -> System:
    """With positions and cell of this precision."""
    return system._replace(positions=jnp.asarray(system.positions, dtype), cell=jnp.asarray(system.cell, dtype))


def rows_of(box: Any, dtype: Any) -> jax.Array:
    """A box of jax-md (lattice vectors in columns, or edges, or one edge) as a cell with vectors in rows."""
    box = jnp.asarray(box, dtype)
    return box.T if box.ndim == 2 else jnp.diag(jnp.broadcast_to(box, (3,)))


def made_on_host(system: System, cutoff: float, skin: float) -> NeighbourList:
    """A complete list out to cutoff + skin, Å, with room to be renewed where there is a skin."""
    system = System(*map(np.asarray, system))
    reach = cutoff + skin + MARGIN
    found = neighbour_list(system, reach)
    if skin > 0:
        most = int(np.sum(found.index >= 0, axis=1).max(initial=1))
        found = found.padded(len(system.species), max(bucket(int(ROOM * most)), found.index.shape[1]))
    images = required_stencil(SHRINK * system.cell, system.pbc, reach)
    stencil = (int(images[0]), int(images[1]), int(images[2]))
    return jax.tree.map(jnp.asarray, NeighbourList(found, system, np.asarray(skin, float), cutoff, stencil))
