"""The energy from positions to forces, block by block; the biased energy, also where atoms come close."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT

import haljax as hx
from haljax.ace import ace_basis, core_energy, descriptor, energy_and_features
from haljax.potentials import Parameters, total_energy
from haljax.report.hal import dimers
from haljax.structures import from_atoms, neighbour_list, vectors, with_labels


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


# Close approach


def rattled(atoms, seed):
    atoms = atoms.copy()
    atoms.rattle(0.08, seed=seed)
    atoms.calc = EMT()
    return with_labels(atoms, atoms.get_potential_energy(), atoms.get_forces())


@pytest.fixture(scope="module", params=["alloy", "methanol", "oxide"])
def fitted(request, tiny_model):
    """A model, its potential jitted, and structures like its data: metals, hydrogen, and oxygen in a metal."""
    if request.param == "alloy":
        model = tiny_model
    elif request.param == "methanol":
        start = molecule("CH3OH")
        model = hx.fit(hx.ace_basis(("C", "H", "O"), 4.0, 2, 5), [rattled(start, seed) for seed in range(12)])
    else:
        start = bulk("CuO", "rocksalt", a=4.3, cubic=True)
        model = hx.fit(hx.ace_basis(("Cu", "O"), 4.0, 2, 5), [rattled(start, seed) for seed in range(8)])
    p = hx.potential(model)
    return model, p._replace(energy=jax.jit(p.energy), sigma=jax.jit(p.sigma), biased=jax.jit(p.biased))


def along(p, tau, place, r):
    """Biased energies (n,) eV along distances ``r``, and their slopes."""
    R, others = place  # a function of r, and the other arguments

    def biased(r):
        return p.biased(R(r), **others, tau=tau)

    return jax.jit(jax.vmap(jax.value_and_grad(biased)))(jnp.asarray(r))


def in_box(p, atoms, elements):
    box, species = jnp.asarray(atoms.cell.array.T), jnp.array([elements.index(s) for s in atoms.symbols])
    if not atoms.pbc.any():
        return {"species": species}
    # A skin, as the atom that is moved goes no further than half of it.
    neighbour = p.neighbours(atoms.positions, box, species, skin=4.0)
    return {"box": box, "species": species, "neighbor": neighbour}


def test_biased_is_energy_less_tau_sigma_in_structures_like_the_data(fitted):
    model, p = fitted
    for atoms in model.structures[:4]:
        atoms = atoms.copy()
        atoms.rattle(0.02, seed=7)
        others = in_box(p, atoms, model.basis.elements)
        energy, sigma = (f(atoms.positions, **others) for f in (p.energy, p.sigma))
        for tau in (0.0, 1.0, 100.0):
            biased = p.biased(atoms.positions, **others, tau=tau)
            np.testing.assert_allclose(biased, energy - tau * sigma, rtol=1e-12, atol=1e-12 * (1 + tau))
        assert sigma > 1e-4


def test_no_dimer_has_an_attractive_hole_below_the_data(fitted):
    """As the report judges it: the energy falls nowhere as two atoms come closer than in the data."""
    model, _ = fitted
    curves = dimers(model, model.structures)
    assert {curve.name: curve.hole() for curve in curves} == dict.fromkeys((curve.name for curve in curves), None)


@pytest.mark.parametrize("tau", [0.0, 1.0, 100.0])
def test_dimers_repel_below_the_core_whatever_the_bias(fitted, tau):
    """From 0.2 Å to the outer radius of the core of every pair; there the bias has faded."""
    model, p = fitted
    for a, b in model.basis.pairs:
        outer = model.radii[1, a, b]
        r = np.linspace(0.2, outer, 200, endpoint=False)
        place = lambda r: jnp.stack([jnp.zeros(3), jnp.array([1.0, 0, 0]) * r])
        energy, slope = along(p, tau, (place, {"species": jnp.array([a, b])}), r)
        name = "-".join(model.basis.elements[k] for k in (a, b))
        assert np.all(np.isfinite(energy)) and np.all(slope < 0), (name, outer, r[slope >= 0], slope[slope >= 0])


@pytest.mark.parametrize("tau", [0.0, 100.0])
def test_an_atom_pushed_onto_another_in_a_crystal_is_repelled(tiny_model, alloy, tau):
    """An atom more, from the void of an fcc cell towards each of three atoms around it.

    From 0.3 Å to nine tenths of the outer radius of the core: nearer to it atoms on the other side push as much.
    """
    p, elements = hx.potential(tiny_model), tiny_model.basis.elements
    for element, seed in (("Al", 1), ("Cu", 2)):
        crystal = alloy(seed, (2, 2, 2))
        void = crystal.positions[0] + crystal.cell[0] / 4  # between two atoms along an edge of a cubic cell
        atoms = crystal + Atoms(element, [void])
        others = in_box(p, atoms, elements)
        distance = np.linalg.norm(crystal.positions - void, axis=1)
        for near in np.argsort(distance)[:3]:
            away = (void - crystal.positions[near]) / distance[near]
            a, b = elements.index(element), elements.index(crystal.symbols[near])
            outer = tiny_model.radii[1, a, b]
            r = np.linspace(0.3, 0.9 * outer, 60)
            start, towards = jnp.asarray(atoms.positions), jnp.asarray(crystal.positions[near])
            place = lambda r, start=start, towards=towards, away=away: start.at[-1].set(towards + r * away)
            energy, slope = along(p, tau, (place, others), r)
            assert np.all(np.isfinite(energy)) and np.all(slope < 0), (element, near, r[slope >= 0])


@pytest.mark.parametrize("tau", [0.0, 10.0])
def test_atoms_that_start_within_the_core_fly_apart(fitted, tau):
    """NVE from 0.5 Å at rest, in steps of 0.01 fs: energy is conserved, nothing is trapped, nothing is NaN."""
    model, p = fitted
    fs = 0.09822694788464063  # Å sqrt(amu/eV)
    dt, masses = 0.01 * fs, {"H": 1.008, "C": 12.011, "O": 15.999, "Al": 26.98, "Cu": 63.55}
    for a, b in model.basis.pairs:
        species = jnp.array([a, b])
        mass = jnp.array([masses[model.basis.elements[k]] for k in (a, b)])[:, None]
        value_and_slope = jax.value_and_grad(lambda R, species=species: p.biased(R, species=species, tau=tau))

        def step(state, _, mass=mass, value_and_slope=value_and_slope):
            R, v, slope = state
            v = v - 0.5 * dt * slope / mass
            R = R + dt * v
            energy, slope = value_and_slope(R)
            v = v - 0.5 * dt * slope / mass
            return (R, v, slope), (energy + 0.5 * jnp.sum(mass * v**2), jnp.linalg.norm(R[1] - R[0]))

        start = jnp.array([[0.0, 0, 0], [0.3, 0, 0.4]])
        first, slope = value_and_slope(start)
        total, r = jax.jit(lambda state: jax.lax.scan(step, state, length=8000)[1])((start, jnp.zeros((2, 3)), slope))
        assert np.all(np.isfinite(total)) and r[-1] > 2 * model.basis.cutoff
        # Verlet's error is that of the stiffest moment, some (omega dt)^2 of the potential energy at the start.
        above = first - float(p.biased(jnp.array([[0.0, 0, 0], [0, 0, 50.0]]), species=species, tau=tau))
        assert np.abs(total - first).max() < 1e-2 * above
