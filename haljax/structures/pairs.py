"""All pairs within a cutoff, on the host: numpy and a k-d tree, any cell and any mixture of periodic axes."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = Any  # numpy or JAX


def reciprocal(cell: Array) -> Array:
    """The rows b_k (3, 3) with b_k . a_l = delta_kl for the rows a_l of `cell`: fractional = positions @ b.T.

    1 / |b_k| is the distance between the two faces of the cell that axis k joins. Numpy in, numpy out; JAX
    likewise.
    """
    xp = cell.__array_namespace__()
    a, b, c = cell
    rows = xp.stack([xp.linalg.cross(b, c), xp.linalg.cross(c, a), xp.linalg.cross(a, b)])
    return rows / xp.sum(a * rows[0])


def pairs(positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, cutoff: float) -> tuple[np.ndarray, ...]:
    """Ordered pairs closer than `cutoff` (Å), as `ase.neighborlist.neighbor_list("ijS")` gives them.

    The atoms are wrapped into the cell and surrounded by their periodic images as far out as the cutoff
    reaches; a k-d tree finds the pairs. The cell may be skewed or smaller than the cutoff, atoms may lie
    outside it. O(N log N) for a cell that is large against the cutoff.

    Parameters
    ----------
    positions : (N, 3) Å, for padding already removed.
    cell : (3, 3) Å, rows are the lattice vectors, invertible also where an axis is not periodic.
    pbc : (3,) bool.
    cutoff : Å; a pair at exactly this distance is left out.

    Returns
    -------
    i, j : (P,) int32, sorted by i, then j, then S.
    shift : (P, 3) int32, with d = positions[j] - positions[i] + shift @ cell for the positions as given.
    """
    from scipy.spatial import KDTree

    dual = reciprocal(cell)
    fraction = positions @ dual.T
    home = np.where(pbc, np.floor(fraction), 0.0)
    fraction = fraction - home
    margin = cutoff * np.linalg.norm(dual, axis=1)
    reach = np.where(pbc, np.ceil(margin), 0).astype(int)
    images = np.stack(np.meshgrid(*(np.arange(-n, n + 1) for n in reach), indexing="ij"), -1).reshape(-1, 3)

    ghost = fraction[None, :, :] + images[:, None, :]
    near = np.all((ghost >= fraction.min(0) - margin) & (ghost <= fraction.max(0) + margin), axis=-1)
    image, atom = np.nonzero(near)
    found = KDTree(fraction @ cell).sparse_distance_matrix(KDTree(ghost[near] @ cell), cutoff, output_type="ndarray")
    i, j, shift = found["i"], atom[found["j"]], images[image[found["j"]]]
    keep = (found["v"] < cutoff) & ((i != j) | np.any(shift != 0, axis=1))
    i, j, shift = i[keep], j[keep], shift[keep]
    shift = shift + (home[i] - home[j]).astype(int)
    order = np.lexsort((*shift.T[::-1], j, i))
    return i[order].astype(np.int32), j[order].astype(np.int32), shift[order].astype(np.int32)
