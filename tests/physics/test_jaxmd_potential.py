"""`haljax.potential` inside jax-md and JAX, and beside the ASE calculator."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from jax_md import partition, quantity, simulate, space

import haljax as hx
from haljax.bayes import committee
from haljax.md import Hamiltonian, Replica, advance
from haljax.structures import System, neighbour_state
from haljax.training import features

CUTOFF = 4.0


def sigma_of(model, atoms):
    """The model's standard deviation alone, from the features of the design matrix."""
    return np.linalg.norm(features(model, [atoms])[0] @ np.asarray(model.spread.factor))


@pytest.fixture(scope="module")
def p(small_model):
    """Its functions jitted, which the tests would otherwise spend their time on."""
    p = hx.potential(small_model)
    return p._replace(energy=jax.jit(p.energy), sigma=jax.jit(p.sigma), biased=jax.jit(p.biased))


@pytest.fixture(scope="module")
def crystal(alloy, small_model):
    """32 atoms in a sheared box (columns, upper triangular) whose heights exceed twice the cutoff."""
    atoms = alloy(60, (2, 2, 2))
    rows = np.array([[8.4, 0, 0], [0.5, 8.5, 0], [0.3, -0.4, 8.3]])
    atoms.set_cell(rows, scale_atoms=True)
    species = jnp.array([small_model.basis.elements.index(s) for s in atoms.symbols])
    return atoms, jnp.asarray(atoms.positions), jnp.asarray(rows.T), species


def dense_list(R, box, r_cutoff=CUTOFF):
    displacement, shift = space.periodic_general(box, fractional_coordinates=False)
    fn = partition.neighbor_list(
        displacement, box, r_cutoff, dr_threshold=0.2, disable_cell_list=True, format=partition.Dense
    )
    return shift, fn.allocate(R)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_jax_md_list_gives_what_ours_gives(p, crystal):
    _, R, box, species = crystal
    _, nbrs = dense_list(R, box)
    ours = p.neighbours(R, box, species)
    for function in (p.energy, p.sigma, lambda *a, **k: p.biased(*a, tau=2.0, **k)):
        jax_md = function(R, box=box, species=species, neighbor=nbrs)
        np.testing.assert_allclose(jax_md, function(R, box=box, species=species, neighbor=ours), rtol=1e-10)
    biased = p.biased(R, box=box, species=species, neighbor=ours, tau=2.0)
    parts = [f(R, box=box, species=species, neighbor=ours) for f in (p.energy, p.sigma)]
    assert parts[1] > 0.01
    np.testing.assert_allclose(biased, parts[0] - 2.0 * parts[1], rtol=1e-12)
    # Atoms outside the box, as after dynamics without wrapping.
    away = R.at[3].add(2 * box[:, 1] - box[:, 0])
    np.testing.assert_allclose(p.energy(away, box=box, species=species, neighbor=nbrs), parts[0], rtol=1e-10)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_jax_md_nve_runs_with_it(p, crystal):
    """The trajectory is that of our own integrator up to jax-md's float32 time step."""
    _, R, box, species = crystal
    shift, nbrs = dense_list(R, box)
    mass, dt, n_steps = jnp.where(species == 0, 26.98, 63.55)[:, None], 0.1, 20
    momenta = jax.random.normal(jax.random.key(0), R.shape) * jnp.sqrt(0.05 * mass)
    init, apply = simulate.nve(p.energy, lambda R, dR, **_: R + dR, dt)
    keywords = {"box": box, "species": species, "neighbor": nbrs}
    state = init(jax.random.key(1), R, kT=0.05, mass=mass, **keywords).set(momentum=momenta)
    apply = jax.jit(apply)
    for _ in range(n_steps):
        state = apply(state, **keywords)

    own = p.neighbours(R, box, species, skin=1.0)

    def biased(params, system, neighbours, tau):
        return p.energy(system.positions, box=box, species=species, neighbor=own)

    h = Hamiltonian(biased, CUTOFF)
    system = System(R, species, box.T, jnp.ones(3, bool))
    force = h.force(None, system, None, jnp.zeros(()))
    replica = Replica(system, momenta, force, jnp.array([26.98, 63.55]), jnp.zeros(()), jax.random.key(2))
    lists = neighbour_state(system, 0.1, 1.0, 4, (1, 1, 1))
    batch = jax.tree.map(lambda leaf: leaf[None], (replica, lists))
    ours, *_ = jax.jit(lambda b: advance(h, None, *b, *jnp.array([[0.05], [dt], [0.0]]), n_steps, 1.0, (1, 1, 1)))(
        batch
    )
    np.testing.assert_allclose(state.position, ours.system.positions[0], atol=1e-6)
    np.testing.assert_allclose(state.momentum, ours.momenta[0], atol=1e-5)
    assert np.max(np.abs(state.position - R)) > 0.05


def test_jax_md_stress_is_minus_the_calculators(p, crystal, small_model):
    atoms, R, box, species = crystal
    neighbours = p.neighbours(R, box, species)
    theirs = quantity.stress(p.energy, R, box, species=species, neighbor=neighbours)
    atoms = atoms.copy()
    atoms.calc = hx.Calculator(small_model)
    np.testing.assert_allclose(-theirs, atoms.get_stress(voigt=False), atol=1e-12)


def test_calculator_derivatives_are_those_of_its_energy(p, alloy, small_model):
    """A cell smaller than the cutoff, so with several images of the same neighbour."""
    atoms = alloy(61, (1, 1, 1))
    atoms.calc = hx.Calculator(small_model)
    forces, stress = atoms.get_forces(), atoms.get_stress()
    np.testing.assert_allclose(forces, calculate_numerical_forces(atoms, 1e-4), atol=1e-5)
    np.testing.assert_allclose(stress, calculate_numerical_stress(atoms, 1e-5), atol=1e-6)
    # The same from `potential`, which has the cell in columns.
    species = jnp.array([small_model.basis.elements.index(s) for s in atoms.symbols])
    box = jnp.asarray(atoms.cell.array.T)
    neighbours = p.neighbours(atoms.positions, box, species)
    energy, gradient = jax.jit(jax.value_and_grad(p.energy))(jnp.asarray(atoms.positions), box, species, neighbours)
    np.testing.assert_allclose(energy, atoms.get_potential_energy(), rtol=1e-10)
    np.testing.assert_allclose(-gradient, forces, atol=1e-10)
    sigma = p.sigma(jnp.asarray(atoms.positions), box, species, neighbours)
    np.testing.assert_allclose(sigma, sigma_of(small_model, atoms), rtol=1e-8)
    # The calculator's is scaled and has the noise besides; no pair is within the core.
    spread = small_model.spread
    expected = np.hypot(spread.scale[0] * sigma, len(atoms) * spread.noise[0])
    np.testing.assert_allclose(atoms.calc.results["energy_std"], expected, rtol=1e-8)  # sigma has a floor


def test_a_molecule_needs_neither_box_nor_list(p, small_model):
    pair = Atoms("AlCu", [[0, 0, 0], [1.5, 1.8, 0.4]])
    pair.calc = hx.Calculator(small_model)
    # A padded atom changes nothing, and gets no force.
    R, species = jnp.asarray(np.vstack([pair.positions, np.zeros(3)])), jnp.array([0, 1, -1])
    of = jax.jit(jax.value_and_grad(lambda R, tau: p.biased(R, species=species, tau=tau)))
    energy, gradient = of(R, 0.0)
    np.testing.assert_allclose(energy, pair.get_potential_energy(), rtol=1e-12)
    np.testing.assert_allclose(-gradient, np.vstack([pair.get_forces(), np.zeros(3)]), atol=1e-12)
    np.testing.assert_allclose(gradient[0], -gradient[1], atol=1e-12)
    sigma = energy - of(R, 1.0)[0]
    np.testing.assert_allclose(sigma, sigma_of(small_model, pair), rtol=1e-8)
    # Apart, only the one-body energies remain, and their uncertainty, which pulls at nothing.
    far = R.at[1].set(jnp.array([9.0, 0, 0]))
    np.testing.assert_allclose(of(far, 0.0)[0], small_model.e0.sum(), rtol=1e-12)
    energy, gradient = of(far, 1.0)
    assert small_model.e0.sum() - energy > 0.3
    np.testing.assert_allclose(gradient, 0, atol=1e-12)


def test_batches_of_structures_and_of_coefficients(p, crystal, small_model):
    _, R, box, species = crystal
    R = jnp.stack([R, R.at[0, 0].add(0.1)])
    lists = [p.neighbours(r, box, species, skin=0.5) for r in R]
    widest = max(n.index.shape[1] for n in lists)
    neighbours = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(n.padded(32, widest) for n in lists))
    batched = jax.jit(jax.vmap(p.energy, (0, None, None, 0)))(R, box, species, neighbours)
    for r, n, energy in zip(R, lists, batched, strict=True):
        np.testing.assert_allclose(energy, p.energy(r, box, species, n), rtol=1e-12)

    draws = committee(jax.random.key(1), small_model.posterior, 4)[:, : len(small_model.basis)]
    params = p.parameters._replace(mean=draws)
    axes = jax.tree.map(lambda _: None, p.parameters)._replace(mean=0)
    energies = jax.jit(jax.vmap(lambda q: p.energy(R[0], box, species, lists[0], parameters=q), (axes,)))(params)
    for draw, energy in zip(draws, energies, strict=True):
        member = p.parameters._replace(mean=draw)
        np.testing.assert_allclose(energy, p.energy(R[0], box, species, lists[0], parameters=member), rtol=1e-12)
    assert np.ptp(energies) > 0
    # The gradient with respect to the coefficients is the descriptor: E is linear in them.
    slope = jax.jit(jax.grad(lambda q: p.energy(R[0], box, species, lists[0], parameters=q)))(p.parameters).mean
    np.testing.assert_allclose((draws - p.parameters.mean[None]) @ slope, energies - batched[0], rtol=1e-8)


def test_jit_equals_eager_and_float32_is_near(p, crystal, small_model):
    _, R, box, species = crystal
    neighbours = p.neighbours(R, box, species)
    own = hx.potential(small_model)
    for function, jitted in ((own.energy, p.energy), (own.sigma, p.sigma)):
        eager = function(R, box, species, neighbours)
        np.testing.assert_allclose(jitted(R, box, species, neighbours), eager, rtol=1e-12)
        single = jitted(R.astype(jnp.float32), box.astype(jnp.float32), species, neighbours)
        assert single.dtype == jnp.float32 and eager.dtype == jnp.float64
        np.testing.assert_allclose(single, eager, rtol=2e-3, atol=1e-3)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_what_would_be_wrong_is_refused(p, crystal, alloy):
    _, R, box, species = crystal
    with pytest.raises(ValueError, match=r"neighbor=potential\.neighbours"):
        p.energy(R, box=box, species=species)
    with pytest.raises(ValueError, match="species is needed"):
        p.energy(R)
    _, nbrs = dense_list(R, box)
    sparse = partition.neighbor_list(
        space.periodic_general(box, fractional_coordinates=False)[0], box, CUTOFF, disable_cell_list=True,
        format=partition.Sparse,
    ).allocate(R)  # fmt: skip
    with pytest.raises(ValueError, match="Dense"):
        p.energy(R, box=box, species=species, neighbor=sparse)
    # An overflown list, and a box in which the minimum image is not the only one: NaN, also under jit.
    full = nbrs.update(R * 0.9, box=box * 0.9)
    squeezed = nbrs.set(error=nbrs.error.update(partition.PEC.NEIGHBOR_LIST_OVERFLOW, True))
    assert np.isnan(p.energy(R, box=box, species=species, neighbor=squeezed))
    assert np.isnan(p.energy(R * 0.9, box=box * 0.9, species=species, neighbor=full))
    ours = p.neighbours(R, box, species)
    incomplete = replace(ours, neighbours=ours.neighbours._replace(overflow=jnp.int32(99)))
    assert np.isnan(p.energy(R, box, species, incomplete)) and np.isnan(p.sigma(R, box, species, incomplete))


def test_a_stale_list_is_nan_and_a_renewed_one_is_exact(p, crystal):
    """What moved less than half the skin, or was strained as little, has the energy of a new list."""
    _, R, box, species = crystal
    old = p.neighbours(R, box, species, skin=0.5)
    renewed = jax.jit(lambda R, box: old.update(R, box))
    rng = np.random.default_rng(0)
    directions = rng.normal(size=R.shape)
    directions /= np.linalg.norm(directions, axis=1)[:, None]
    shear = jnp.eye(3).at[0, 1].set(0.03)
    for moved, cell, fine in (
        (R + 0.24 * directions, box, True),
        (R.at[5, 0].add(1.0), box, False),
        (R + 0.3 * directions, box, False),
        (R @ (0.99 * jnp.eye(3)), 0.99 * box, True),
        (R @ (0.93 * jnp.eye(3)), 0.93 * box, False),
        (R @ shear.T, shear @ box, True),
        (R, 0.96 * box, False),
    ):
        others = {"box": cell, "species": species}
        exact = p.energy(moved, **others, neighbor=p.neighbours(moved, cell, species))
        for function in (p.energy, p.sigma, partial(p.biased, tau=1.0)):
            found = function(moved, **others, neighbor=old)
            assert np.isfinite(found) if fine else np.isnan(found)
            assert np.isfinite(function(moved, **others, neighbor=renewed(moved, cell)))
        np.testing.assert_allclose(p.energy(moved, **others, neighbor=renewed(moved, cell)), exact, rtol=1e-12)
        if fine:
            np.testing.assert_allclose(p.energy(moved, **others, neighbor=old), exact, rtol=1e-12)
    np.testing.assert_array_equal(renewed(R + 0.1 * directions, box).index, old.index)  # no work where none is needed
    # A strain of `perturbation` counts too, and its derivative at none does not.
    strained = partial(p.energy, R, box=box, species=species, neighbor=old)
    assert np.isfinite(strained(perturbation=1.01 * jnp.eye(3))) and np.isnan(strained(perturbation=1.1 * jnp.eye(3)))
    # Finite differences of a list without a skin, and positions of float32, are no move.
    tight = p.neighbours(R, box, species)
    assert np.isfinite(p.energy(R.at[0, 0].add(1e-4), box, species, tight))
    assert np.isfinite(p.energy(R.astype(jnp.float32), box.astype(jnp.float32), species, tight))


def test_a_list_that_cannot_be_renewed_says_so(p, crystal):
    _, R, box, species = crystal
    old = p.neighbours(R, box, species, skin=0.3)
    crowded = old.update(0.8 * R, 0.8 * box)
    assert int(crowded.overflow) != 0
    assert np.isnan(p.energy(0.8 * R, box=0.8 * box, species=species, neighbor=crowded))
    again = p.neighbours(0.8 * R, 0.8 * box, species)
    assert np.isfinite(p.energy(0.8 * R, box=0.8 * box, species=species, neighbor=again))


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_nve_with_a_list_that_is_renewed(p, crystal):
    """100 fs in which atoms cross the skin: with the first list NaN, renewed it is as with a list wide enough."""
    _, R, box, species = crystal
    mass = jnp.where(species == 0, 26.98, 63.55)[:, None]

    def last(renew, skin):
        init, apply = simulate.nve(p.energy, lambda R, dR, **_: R + dR, 0.2)
        neighbor = p.neighbours(R, box, species, skin=skin)
        state = init(jax.random.key(1), R, kT=0.1, mass=mass, box=box, species=species, neighbor=neighbor)

        def step(carry, _):
            state, neighbor = carry
            neighbor = neighbor.update(state.position) if renew else neighbor
            state = apply(state, box=box, species=species, neighbor=neighbor, kT=0.1)
            return (state, neighbor), None

        return jax.jit(lambda carry: jax.lax.scan(step, carry, length=50)[0][0])((state, neighbor))

    kept, renewed, wide = last(False, 0.3), last(True, 0.3), last(False, 2.5)
    assert np.isnan(kept.position).any()
    assert np.abs(renewed.position - R).max() > 0.3
    # jax-md's constants are of float32, and the sums of another order.
    np.testing.assert_allclose(renewed.position, wide.position, atol=1e-6)


def test_species_are_indices(p, crystal, small_model):
    atoms, R, box, species = crystal
    np.testing.assert_array_equal(p.species(atoms), species)
    np.testing.assert_array_equal(p.species(["Cu", "Al"]), [1, 0])
    with pytest.raises(ValueError, match="Ni is not among"):
        p.species(["Ni"])
    neighbours, numbers = p.neighbours(R, box, species), jnp.asarray(atoms.numbers)
    with pytest.raises(ValueError, match=r"species must be from 0 to 1, .* not \[13, 29\]: potential.species\(atoms\)"):
        hx.potential(small_model).energy(R, box, numbers, neighbours)
    assert np.isnan(jax.jit(p.energy)(R, box, numbers, neighbours))
    assert np.isnan(jax.jit(p.sigma)(R, box, jnp.full_like(species, -2), neighbours))


def test_other_keywords_do_no_harm_and_misspelt_ones_are_refused(p, crystal):
    _, R, box, species = crystal
    others = {"box": box, "species": species, "neighbor": p.neighbours(R, box, species)}
    assert p.energy(R, **others, kT=0.1, t=3) == p.energy(R, **others)
    with pytest.raises(TypeError, match="'neighbour' is no argument of a potential: did you mean 'neighbor'"):
        p.energy(R, box=box, species=species, neighbour=others["neighbor"])
