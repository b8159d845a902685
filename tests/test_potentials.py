"""The energy from positions to forces, block by block."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import bulk

from haljax.ace import ace_basis, core_energy, descriptor, energy_and_features
from haljax.potentials import Parameters, total_energy
from haljax.structures import from_atoms, neighbour_list, vectors


@pytest.mark.parametrize(
    ("repeat", "dtype"), [((4, 4, 1), np.float64), ((6, 6, 2), np.float64), ((6, 6, 2), np.float32)]
)
def test_blocks_of_atoms(repeat, dtype):
    """64 atoms are one block, 288 are five that do not fill up: the sum over atoms one by one, and its derivatives."""
    rng, basis = np.random.default_rng(12), ace_basis(("Al", "Cu"), 4.0, 2, 4)
    atoms = bulk("Al", cubic=True) * repeat
    atoms.symbols[rng.random(len(atoms)) < 0.5] = "Cu"
    atoms.rattle(0.1, seed=2)
    found = neighbour_list(from_atoms(atoms, basis.elements), basis.cutoff)
    assert len(atoms) in (64, 288) and np.mean(found.index >= 0) > 0.6
    system = jax.tree.map(
        lambda a: jnp.asarray(a, dtype if a.dtype == np.float64 else None), from_atoms(atoms, basis.elements)
    )
    strain = jnp.asarray(0.01 * rng.normal(size=(3, 3)), dtype)
    where = system.positions, system.cell, strain
    push = jnp.asarray(rng.normal(size=system.positions.shape), dtype)

    def seen(R, cell, strain):
        d, z_j = vectors(system._replace(positions=R, cell=cell), found, 2 * basis.cutoff, strain)
        return d, system.species, z_j

    size = np.maximum(np.abs(descriptor(basis, *seen(*where))), 1e-3)
    c = jnp.asarray(rng.normal(size=len(basis)) / size, dtype)
    # Another order of summation; in float32 as in test_float32_is_near_float64.
    close = partial(np.testing.assert_allclose, rtol=0)
    tolerance = 1e-11 if dtype == np.float64 else 1e-3

    def by_atom(c, *where):
        one = lambda *atom: energy_and_features(basis, c, *(a[None] for a in atom))[0]
        return jnp.sum(jax.vmap(one)(*seen(*where)))

    def in_features(c, *where):
        return c @ descriptor(basis, *seen(*where)) + core_energy(basis, *seen(*where))

    def in_blocks(c, R, cell, strain):
        params = Parameters(jnp.zeros(2, dtype), c, jnp.zeros((len(basis), 0), dtype))
        return total_energy(basis, params, system._replace(positions=R, cell=cell), found, strain)

    value, slopes = jax.jit(jax.value_and_grad(by_atom, (0, 1, 2, 3)))(c, *where)
    size = np.sum(np.abs(c * slopes[0]))
    for function in (in_features, in_blocks):
        energy, gradients = jax.jit(jax.value_and_grad(function, (0, 1, 2, 3)))(c, *where)
        assert {a.dtype for a in (energy, *gradients)} == {np.dtype(dtype)}
        close(energy, value, atol=tolerance * size)
        for a, b in zip(gradients, slopes, strict=True):
            close(a, b, atol=tolerance * np.max(np.abs(b)))
    # Coefficients of a fit with positions of single precision: the wider for the energy, theirs for the forces.
    wide, gradient = jax.jit(jax.value_and_grad(in_blocks, 1))(c.astype(np.float64), *where)
    assert wide.dtype == np.float64 and gradient.dtype == dtype
    close(gradient, slopes[1], atol=tolerance * np.max(np.abs(slopes[1])))

    def bend(function):
        slope = jax.grad(lambda R: function(c, R, *where[1:]))
        return jax.jit(lambda R: jax.jvp(slope, (R,), (push,))[1])(where[0])

    expected = bend(by_atom)
    close(bend(in_blocks), expected, atol=tolerance * np.max(np.abs(expected)))
    moved = where[0] + 0.01 * push
    together = jax.jit(jax.vmap(in_blocks, in_axes=(None, 0, None, None)))(c, jnp.stack([where[0], moved]), *where[1:])
    close(together, [value, jax.jit(by_atom)(c, moved, *where[1:])], atol=tolerance * size)
    close(in_blocks(c, *where), value, atol=tolerance * size)
    # Without a strain the same as with none.
    unstrained = jax.jit(lambda c, R, cell: in_blocks(c, R, cell, None))(c, *where[:2])
    close(unstrained, in_blocks(c, *where[:2], jnp.zeros((3, 3), dtype)), atol=tolerance * size)
