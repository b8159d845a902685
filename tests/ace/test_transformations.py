"""jit, vmap, grad and precision: the same numbers whichever way the features are called."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import bulk

from haljax.ace import ace_basis, core_energy, descriptor, descriptor_gradient

from .environments import BASES, core, forces, from_ase, random_atoms, rows, sizes, values, vectors


def eager(positions, cell, index, shift, *z):
    return vectors(*(jnp.asarray(x) for x in (positions, cell, index, shift))), *(jnp.asarray(x) for x in z)


def test_jit_equals_eager(rng):
    basis = BASES["AlCu-o3-d6"]
    structure = from_ase(random_atoms(rng, basis), basis)
    arguments = eager(*structure)
    # Another order of summation, no more.
    np.testing.assert_allclose(values(basis)(*structure), descriptor(basis, *arguments), rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(core(basis)(*structure)[0], core_energy(basis, *arguments), rtol=1e-11)
    outside = descriptor_gradient(basis, *arguments, jnp.asarray(structure.index))
    for a, b in zip(rows(basis)(*structure), outside, strict=True):
        np.testing.assert_allclose(np.asarray(a) / sizes(basis), np.asarray(b) / sizes(basis), rtol=0, atol=1e-12)


def test_jit_equals_eager_on_more_than_32768_rows():
    """jax 0.10.2 computes wrong numbers on the CPU past some 16 384 rows, under jit alone (jax-ml/jax#39103)."""
    basis = ace_basis(("Si",), 5.0, 3, 4)
    atoms = bulk("Si", cubic=True) * (5, 5, 5)
    atoms.rattle(0.1, seed=1)
    structure = from_ase(atoms, basis, n=None, k=36)
    assert structure.index.size > 32768 and np.mean(structure.index >= 0) > 0.7
    c = np.random.default_rng(0).normal(size=len(basis))
    c /= np.abs(values(basis)(*structure)) + 1e-3

    def energy(positions):
        return c @ descriptor(basis, vectors(positions, *map(jnp.asarray, structure[1:4])), *structure[4:])

    positions = jnp.asarray(structure.positions)
    slow, (fast, _) = jax.grad(energy)(positions), forces(basis)(c, *structure)
    largest = np.max(np.abs(slow))
    assert largest > 0
    np.testing.assert_allclose(fast, slow, rtol=0, atol=1e-11 * largest)
    np.testing.assert_allclose(jax.jit(energy)(positions), energy(positions), rtol=1e-10)
    # The rows of the design matrix go another way, atom by atom.
    np.testing.assert_allclose(rows(basis)(*structure)[1] @ c, slow, rtol=0, atol=1e-10 * largest)


def test_vmap_equals_loop(rng):
    """Structures of different size in one batch, as replicas are."""
    basis = BASES["AlCu-o3-d6"]
    batch = [from_ase(random_atoms(rng, basis, n=n), basis) for n in (6, 5, 7)]
    stacked = [np.stack(x) for x in zip(*batch, strict=True)]
    c = rng.normal(size=len(basis)) / sizes(basis)
    together = (
        jax.vmap(values(basis))(*stacked),
        *jax.vmap(forces(basis), in_axes=(None,) + (0,) * 6)(c, *stacked),
    )
    energies, _ = jax.vmap(core(basis))(*stacked)
    for i, structure in enumerate(batch):
        one = values(basis)(*structure), *forces(basis)(c, *structure)
        np.testing.assert_allclose(together[0][i] / sizes(basis), one[0] / sizes(basis), rtol=0, atol=1e-12)
        for a, b in zip(together[1:], one[1:], strict=True):
            np.testing.assert_allclose(a[i], b, rtol=0, atol=1e-11 * np.max(np.abs(b)))
        np.testing.assert_allclose(energies[i], core(basis)(*structure)[0], rtol=1e-12)


@pytest.mark.parametrize("name", ["Si-o4-d7", "AlCu-o3-d6"])
def test_float32_is_near_float64(name, rng):
    """Everything stays in float32. Four factors, each wrong by the cancellation in a recursion of up to 20 radial
    functions (some 50 ulp), and sums over 6 x 20 neighbours: 1e-4 of a function's size leaves a margin of a few.
    """
    basis = BASES[name]
    double = from_ase(random_atoms(rng, basis), basis)
    single = double._replace(**{x: getattr(double, x).astype(np.float32) for x in ("positions", "cell", "shift")})
    c = rng.normal(size=len(basis)) / sizes(basis)
    d, (force, strain) = values(basis)(*single), forces(basis)(c.astype(np.float32), *single)
    energy, _ = core(basis)(*single)
    assert {x.dtype for x in (d, force, strain, energy)} == {np.dtype(np.float32)}
    np.testing.assert_allclose(d / sizes(basis), values(basis)(*double) / sizes(basis), rtol=0, atol=1e-4)
    expected = forces(basis)(c, *double)
    for a, b in zip((force, strain), expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=5e-4 * np.max(np.abs(b)))
    np.testing.assert_allclose(energy, core(basis)(*double)[0], rtol=1e-4)


@pytest.mark.parametrize(("name", "dtype"), [("Si-o3-d8", np.float64), ("AlCu-o3-d6", np.float32)])
def test_empty_slots_and_atoms_close_by_give_no_nan(name, dtype, rng):
    """Empty rows, empty slots, and two atoms 1e-4 Å apart, deep inside the core: all derivatives finite."""
    basis = BASES[name]
    atoms = random_atoms(rng, basis, n=4)
    atoms.positions[1] = atoms.positions[0] + [1e-4, 0, 0]
    structure = from_ase(atoms, basis)
    structure = structure._replace(**{x: getattr(structure, x).astype(dtype) for x in ("positions", "cell", "shift")})
    c = (1 / sizes(basis)).astype(dtype)
    for leaf in jax.tree.leaves(
        [
            values(basis)(*structure),
            forces(basis)(c, *structure),
            rows(basis)(*structure),
            core(basis)(*structure),
        ]
    ):
        assert np.all(np.isfinite(leaf))
        assert leaf.dtype == dtype
    empty = structure._replace(
        index=np.full_like(structure.index, -1),
        z_i=np.full_like(structure.z_i, -1),
        z_j=np.full_like(structure.z_j, -1),
    )
    for leaf in jax.tree.leaves(
        [values(basis)(*empty), forces(basis)(c, *empty), rows(basis)(*empty), core(basis)(*empty)]
    ):
        assert np.all(leaf == 0)
