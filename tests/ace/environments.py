"""Random structures as neighbour vectors, by ASE's neighbour list, and functions compiled once a basis."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import ase
import jax
import jax.numpy as jnp
import numpy as np
from ase.data import covalent_radii
from ase.geometry import minkowski_reduce
from ase.neighborlist import neighbor_list

from haljax.ace import ACEBasis, ace_basis, core_energy, descriptor, descriptor_gradient

N, K = 8, 32  # one shape for all the small structures, so that each function of a basis is compiled once
CUTOFF = 4.0

# Every shape of basis that the physics is checked on.
BASES = {
    "Si-o1-d6": ace_basis(("Si",), CUTOFF, 1, 6),
    "Si-o2-d8": ace_basis(("Si",), CUTOFF, 2, 8),
    "Si-o3-d8": ace_basis(("Si",), CUTOFF, 3, 8),
    "Si-o4-d7": ace_basis(("Si",), CUTOFF, 4, 7),
    "Si-o5-d7": ace_basis(("Si",), CUTOFF, 5, 7),
    "AlCu-o2-d6": ace_basis(("Al", "Cu"), CUTOFF, 2, 6),
    "AlCu-o3-d6": ace_basis(("Al", "Cu"), CUTOFF, 3, 6),
    "AlCu-o4-d5": ace_basis(("Al", "Cu"), CUTOFF, 4, 5),
    "CHO-o2-d6": ace_basis(("C", "H", "O"), CUTOFF, 2, 6),
}


class Structure(NamedTuple):
    """Positions and cell with the dense neighbour layout of the features; -1 marks what is padded."""

    positions: np.ndarray  # (N, 3)
    cell: np.ndarray  # (3, 3)
    index: np.ndarray  # (N, K)
    shift: np.ndarray  # (N, K, 3)
    z_i: np.ndarray  # (N,)
    z_j: np.ndarray  # (N, K)


def from_ase(atoms: ase.Atoms, basis: ACEBasis, n: int | None = N, k: int | None = K, slots=None) -> Structure:
    """Neighbours of every atom, padded to ``n`` atoms and ``k`` slots; ``slots`` (a Generator) shuffles the slots."""
    i, j, shifts = neighbor_list("ijS", atoms, basis.cutoff)
    counts = np.bincount(i, minlength=len(atoms))
    n, k = n or len(atoms), k or max(1, int(counts.max(initial=0)))
    assert n >= len(atoms) and k >= counts.max(initial=0), f"{len(atoms)} atoms, {counts.max()} neighbours"
    index, shift = np.full((n, k), -1, np.int32), np.zeros((n, k, 3))
    for atom, count in enumerate(counts):
        filled = np.arange(count) if slots is None else slots.permutation(k)[:count]
        index[atom, filled], shift[atom, filled] = j[i == atom], shifts[i == atom]
    z_i = np.full(n, -1, np.int32)
    z_i[: len(atoms)] = [basis.elements.index(symbol) for symbol in atoms.symbols]
    positions = np.zeros((n, 3))
    positions[: len(atoms)] = atoms.positions
    return Structure(positions, atoms.cell.array, index, shift, z_i, np.where(index >= 0, z_i[index], -1))


def vectors(positions: jax.Array, cell: jax.Array, index: jax.Array, shift: jax.Array) -> jax.Array:
    """(N, K, 3) vectors to the neighbours; far beyond the cutoff in empty slots."""
    d = positions[index] - positions[:, None] + shift @ cell
    far = jnp.array([20.0, 0.0, 0.0], positions.dtype)
    return jnp.where((index >= 0)[..., None], d, far[None, None])


def random_atoms(
    rng: np.random.Generator,
    basis: ACEBasis,
    n: int = 6,
    pbc=True,
    volume: float = 14.0,
    margin: float = 0.02,
) -> ase.Atoms:
    """``n`` random atoms in a random triclinic cell of ``volume`` Å^3 an atom, every element among them.

    Bonds are as short as 0.55 of the sum of covalent radii, inside the switch between core and fit. No pair
    is within ``margin`` Å of the cutoff or of the ends of the switch, where derivatives above the first few jump.
    """
    numbers = np.array([basis.numbers[t % basis.n_species] for t in range(n)])
    bond = covalent_radii[numbers]
    while True:
        shape = np.eye(3) + rng.uniform(-0.35, 0.35, (3, 3))
        cell = minkowski_reduce(shape * (n * volume / abs(np.linalg.det(shape))) ** (1 / 3))[0]
        if np.linalg.det(cell) < 0:
            cell = cell[[1, 0, 2]]
        atoms = ase.Atoms(numbers, cell=cell, pbc=pbc)
        for atom in range(n):
            for _ in range(200):
                atoms.positions[atom] = rng.random(3) @ cell
                i, j, r = neighbor_list("ijd", atoms[: atom + 1], 3.0)
                if np.all(r > 0.55 * (bond[i] + bond[j])):
                    break
            else:
                break
        else:
            i, j, r = neighbor_list("ijd", atoms, basis.cutoff + 1)
            z = np.array([basis.elements.index(s) for s in atoms.symbols])
            edges = [basis.cutoff, *(radius[z[i], z[j]] for radius in basis.core_radii)]
            if min(np.min(np.abs(r - edge)) for edge in edges) > margin:
                return atoms


def cluster(rng: np.random.Generator, basis: ACEBasis, n: int, radius: float) -> Structure:
    """``n`` atoms of random elements, anywhere in a ball of ``radius`` Å, all neighbours of each other."""
    positions = np.zeros((N, 3))
    x = rng.normal(size=(n, 3))
    positions[:n] = radius * rng.random((n, 1)) ** (1 / 3) * x / np.linalg.norm(x, axis=1)[:, None]
    z_i = np.full(N, -1, np.int32)
    z_i[:n] = rng.integers(basis.n_species, size=n)
    index = np.full((N, K), -1, np.int32)
    for i in range(n):
        index[i, : n - 1] = [j for j in range(n) if j != i]
    return Structure(positions, np.eye(3), index, np.zeros((N, K, 3)), z_i, np.where(index >= 0, z_i[index], -1))


@lru_cache
def values(basis: ACEBasis):
    """Jitted (positions, cell, index, shift, z_i, z_j) -> D."""
    return jax.jit(
        lambda positions, cell, index, shift, *z: descriptor(basis, vectors(positions, cell, index, shift), *z)
    )


@lru_cache
def rows(basis: ACEBasis):
    """Jitted (positions, cell, index, shift, z_i, z_j) -> D, dD/dR, dD/d(strain)."""
    return jax.jit(
        lambda positions, cell, index, shift, *z: descriptor_gradient(
            basis, vectors(positions, cell, index, shift), *z, index
        )
    )


@lru_cache
def forces(basis: ACEBasis):
    """Jitted (c, structure...) -> d(c . D)/d(positions, strain) by reverse mode; strain acts as x -> x + strain x."""

    def energy(positions, strain, c, cell, index, shift, *z):
        deform = jnp.eye(3, dtype=cell.dtype) + strain
        return c @ descriptor(basis, vectors(positions @ deform.T, cell @ deform.T, index, shift), *z)

    def gradient(c, positions, *rest):
        return jax.grad(energy, argnums=(0, 1))(positions, jnp.zeros((3, 3), positions.dtype), c, *rest)

    return jax.jit(gradient)


@lru_cache
def core(basis: ACEBasis):
    """Jitted (positions, cell, index, shift, z_i, z_j) -> core energy and its gradients as ``forces`` has them."""

    def energy(positions, strain, cell, index, shift, *z):
        deform = jnp.eye(3, dtype=cell.dtype) + strain
        return core_energy(basis, vectors(positions @ deform.T, cell @ deform.T, index, shift), *z)

    def both(positions, *rest):
        return jax.value_and_grad(energy, argnums=(0, 1))(positions, jnp.zeros((3, 3), positions.dtype), *rest)

    return jax.jit(both)


@lru_cache
def sizes(basis: ACEBasis) -> np.ndarray:
    """(M,) typical size of each function: the largest |D| over twelve random structures."""
    rng = np.random.default_rng(7)
    return np.max([np.abs(values(basis)(*from_ase(random_atoms(rng, basis), basis))) for _ in range(12)], axis=0)
