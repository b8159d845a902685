"""ASE Atoms to padded arrays and back, shape buckets, neighbour lists on host and device, labels."""

from __future__ import annotations

from haljax.structures.keys import candidates, checked_keys, strange, unused
from haljax.structures.labels import Labels, labels, renamed, with_labels
from haljax.structures.lists import NeighbourList
from haljax.structures.neighbours import (
    Neighbours,
    NeighbourState,
    build,
    must_rebuild,
    neighbour_list,
    neighbour_state,
    neighbours_at,
    refresh,
    required_stencil,
    separations,
    vectors,
)
from haljax.structures.system import System, bucket, from_atoms, read_structures, stack, to_atoms

__all__ = [
    "Labels",
    "NeighbourList",
    "NeighbourState",
    "Neighbours",
    "System",
    "bucket",
    "unused",
    "strange",
    "renamed",
    "checked_keys",
    "candidates",
    "build",
    "from_atoms",
    "labels",
    "must_rebuild",
    "neighbour_list",
    "neighbour_state",
    "neighbours_at",
    "read_structures",
    "refresh",
    "required_stencil",
    "separations",
    "stack",
    "to_atoms",
    "vectors",
    "with_labels",
]
