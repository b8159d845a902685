"""H = E - tau sigma of a real model: its derivatives, its conservation, and the committee's limit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haljax.bayes import triangular_blocks
from haljax.md import Replica, advance, hamiltonian, kinetic_energy, maxwell_boltzmann
from haljax.potentials import biased_energy, energy_and_sigma, evaluate_system, parameters_of
from haljax.rows import all_rows
from haljax.structures import from_atoms, neighbour_list, neighbour_state, required_stencil, to_atoms
from haljax.training import features

FS = 0.09822694788464063  # Å sqrt(amu/eV)
MASSES = jnp.array([26.98, 63.55])
VOIGT = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))


@pytest.fixture(scope="module")
def example(small_model, alloy):
    """A cell that the fit has not seen, in an array of 20 slots."""
    system = from_atoms(alloy(40), small_model.basis.elements, size=20)
    return jax.tree.map(jnp.asarray, system), neighbour_list(system, small_model.basis.cutoff)


@pytest.fixture(scope="module")
def result(small_model, example):
    evaluate = jax.jit(evaluate_system, static_argnums=0)
    return evaluate(small_model.basis, parameters_of(small_model), *example)


def for_dynamics(params):
    """The parameters of a campaign's steps."""
    blocks = triangular_blocks(params.factor)
    return params._replace(factor=tuple(block.astype(jnp.float32) for block in blocks))


def terms_of(model):
    """E and what tau multiplies: sigma, faded where atoms come closer than in the data."""

    def terms(params, system, neighbours):
        energy, _ = energy_and_sigma(model.basis, params, system, neighbours)
        return jnp.stack([energy, energy - biased_energy(model.basis, params, system, neighbours, 1.0)])

    return jax.jit(terms)


def rows_of(model, example):
    return all_rows(model.basis, *example, jnp.asarray(model.radii), jnp.asarray(model.density))


def deviations_of(model, key, n):
    """A committee (n, P): deviations from the mean that have the covariance of the model's spread."""
    factor = model.spread.factor
    return jax.random.normal(key, (n, factor.shape[1])) @ factor.T


def tau_of(result, relative=0.5):
    """The bias of which grad sigma is so strong relative to the forces."""
    return relative * jnp.linalg.norm(result.forces) / jnp.linalg.norm(result.sigma_gradient)


def slope(function, h=1e-4):
    """Derivative at 0 by central differences of fourth order."""
    near = (np.array(function(h)) - np.array(function(-h))) / (2 * h)
    far = (np.array(function(2 * h)) - np.array(function(-2 * h))) / (4 * h)
    return (4 * near - far) / 3


@pytest.mark.parametrize("close", [None, 0.9, 0.6])
def test_first_derivatives_equal_finite_differences(small_model, example, close):
    """Of a cell near equilibrium, and of ones with a pair at such fractions of the shortest distance in the data.

    There the bias fades, from 1 on, and is gone at 0.8.
    """
    system, neighbours = example
    params, terms = parameters_of(small_model), terms_of(small_model)
    if close:
        away = system.positions[1] - system.positions[0]
        r = close * small_model.near[system.species[0], system.species[1]]
        pushed = system.positions.at[1].set(system.positions[0] + r * away / jnp.linalg.norm(away))
        system = system._replace(positions=pushed)
    result = jax.jit(evaluate_system, static_argnums=0)(small_model.basis, params, system, neighbours)
    faded = float(terms(params, system, neighbours)[1] / result.sigma)
    assert {None: faded == pytest.approx(1, abs=1e-9), 0.9: 0.01 < faded < 0.9, 0.6: abs(faded) < 1e-12}[close]
    rng = np.random.default_rng(0)
    real = (np.asarray(system.species) >= 0)[:, None]
    for _ in range(6):
        direction = rng.normal(size=real.shape[:1] + (3,)) * real
        energy, sigma = slope(
            lambda h, u=direction: terms(params, system._replace(positions=system.positions + h * u), neighbours)
        )
        scale = np.linalg.norm(direction)
        assert abs(energy + np.sum(result.forces * direction)) < 1e-7 * scale * np.linalg.norm(result.forces)
        expected = np.sum(result.sigma_gradient * direction)
        # No further than rounding where the bias is gone.
        assert abs(sigma - expected) < 1e-7 * scale * np.linalg.norm(result.sigma_gradient) + 1e-8
    assert np.all(result.forces[16:] == 0) and np.all(result.sigma_gradient[16:] == 0)
    for k, (a, b) in enumerate(VOIGT):
        strain = np.zeros((3, 3))
        strain[a, b] += 0.5
        strain[b, a] += 0.5

        def strained(h, strain=strain):
            deformation = np.eye(3) + h * strain
            return terms(
                params,
                system._replace(positions=system.positions @ deformation, cell=system.cell @ deformation),
                neighbours,
            )

        energy, sigma = slope(strained)
        assert abs(energy + result.virial[k]) < 1e-7 * np.linalg.norm(result.virial)
        assert abs(sigma - result.sigma_strain[k]) < 1e-7 * np.linalg.norm(result.sigma_strain) + 1e-8


def test_biased_force_is_that_of_a_linear_model(small_model, example, result):
    """-grad(E - tau sigma) has the coefficients c - tau Sigma D / sigma."""
    system, neighbours = example
    model, params, tau = small_model, parameters_of(small_model), tau_of(result)
    h = hamiltonian(model.basis)
    assert hamiltonian(model.basis) is h
    value, force = jax.jit(h.energy_and_force)(params, system, neighbours, tau)
    bias = np.asarray(tau * result.sigma_gradient)
    assert 0.2 < np.linalg.norm(bias) / np.linalg.norm(result.forces) < 1
    np.testing.assert_allclose(force, result.forces + tau * result.sigma_gradient, atol=1e-10)
    np.testing.assert_allclose(value, result.energy - tau * result.sigma, rtol=1e-12)

    x = features(model, [to_atoms(system, model.basis.elements)])[0]
    factor = np.asarray(params.factor)
    sigma = np.sqrt(x @ factor @ factor.T @ x)
    np.testing.assert_allclose(result.sigma, sigma, rtol=1e-8)
    # Of all features: the functions of the basis, which alone have a mean, E0 and functions of the density.
    coefficients = np.zeros(len(x))
    coefficients[: len(params.mean)] = params.mean
    coefficients -= tau * (factor @ (factor.T @ x)) / sigma
    rows = rows_of(model, example)
    explicit = np.asarray(rows.forces) @ coefficients + rows.core_forces
    np.testing.assert_allclose(force, explicit, atol=1e-8 * np.abs(force).max())


@pytest.mark.parametrize(
    "change",
    [{}, {"rattle": 0.3}, {"strain": 0.1}, {"strain": -0.1}, {"rattle": 0.45}, {"species": 0}, {"species": 1}],
    ids=lambda change: "-".join(f"{k} {v}" for k, v in change.items()) or "like the training structures",
)
@pytest.mark.parametrize("relative", [0.1, 0.4])
def test_float32_factor_changes_the_bias_by_far_less_than_a_percent(small_model, example, result, change, relative):
    """Also on structures far from the training structures. Forces without the bias are the same."""
    system, neighbours = example
    model, params = small_model, parameters_of(small_model)
    real = np.asarray(system.species) >= 0
    moved = system.positions + change.get("rattle", 0.0) * np.random.default_rng(0).normal(size=(20, 3)) * real[:, None]
    stretch = 1 + change.get("strain", 0.0)
    system = system._replace(
        positions=stretch * moved,
        cell=stretch * system.cell,
        species=jnp.where(real, change.get("species", system.species), -1),
    )
    neighbours = neighbour_list(jax.tree.map(np.asarray, system), model.basis.cutoff)
    exact = jax.jit(evaluate_system, static_argnums=0)(model.basis, params, system, neighbours)
    h, tau = hamiltonian(model.basis), tau_of(result, relative)
    energy, bias = terms_of(model)(for_dynamics(params), system, neighbours)
    np.testing.assert_allclose(energy, exact.energy, rtol=1e-12)
    expected = terms_of(model)(params, system, neighbours)[1]
    np.testing.assert_allclose(bias, expected, rtol=1e-4, atol=1e-9)
    force = h.force(for_dynamics(params), system, neighbours, tau)
    assert force.dtype == np.float64
    error = np.linalg.norm(force - exact.forces - tau * exact.sigma_gradient)
    # No further than rounding where atoms are so close that the bias is gone.
    assert error < 2e-3 * np.linalg.norm(tau * exact.sigma_gradient) + 1e-9


def test_force_deviations_are_those_of_their_coefficients(small_model, example, result):
    model, params = small_model, parameters_of(small_model)
    draws = deviations_of(model, jax.random.key(0), 3)
    everything = jax.jit(evaluate_system, static_argnums=0)(model.basis, params, *example, draws)
    rows = rows_of(model, example)
    for draw, deviation in zip(draws, everything.force_deviations, strict=True):
        np.testing.assert_allclose(deviation, np.asarray(rows.forces) @ np.asarray(draw), atol=1e-9)
    np.testing.assert_allclose(everything.forces, result.forces, atol=1e-10)


def test_a_large_committee_has_the_exact_spread(small_model, alloy, example, result):
    model, n = small_model, 2000
    deviations = deviations_of(model, jax.random.key(1), n)
    everything = jax.jit(evaluate_system, static_argnums=0)(model.basis, parameters_of(model), *example, deviations)
    of_forces = everything.force_deviations[:, :16]
    rows = rows_of(model, example)
    exact = np.linalg.norm(np.asarray(rows.forces)[:16] @ np.asarray(model.spread.factor), axis=-1)
    error = np.sqrt(1 / (2 * n))  # relative, of a standard deviation from n normal draws
    ratio = np.sqrt(np.mean(of_forces**2, axis=0)) / exact
    assert np.max(np.abs(ratio - 1)) < 4.5 * error
    assert abs(np.mean(ratio**2) - 1) < 4 * 2 * error  # at most as uncertain as one component
    of_energy = np.asarray(deviations @ jnp.asarray(features(model, [alloy(40)])[0]))
    assert abs(np.std(of_energy) / float(result.sigma) - 1) < 4 * error


@pytest.mark.parametrize("steps_with", [lambda params: params, for_dynamics], ids=["own factor", "of a campaign"])
def test_energy_of_biased_dynamics_is_conserved_to_second_order(small_model, example, result, steps_with):
    """Without friction a BAOAB step is velocity Verlet: the error of H falls fourfold when dt halves.

    H itself is that of the model's own factor.
    """
    model, params, tau = small_model, parameters_of(small_model), tau_of(result, 0.2)
    system, _ = example
    basis, h, skin = model.basis, hamiltonian(model.basis), 0.7
    stencil = tuple(int(n) for n in required_stencil(np.asarray(system.cell), np.ones(3, bool), basis.cutoff + skin))
    lists = neighbour_state(system, basis.cutoff, skin, 48, stencil)
    momenta = maxwell_boltzmann(jax.random.key(2), MASSES, system.species, jnp.array(0.03))
    force = h.force(params, system, lists.neighbours, tau)
    one = Replica(system, momenta, force, MASSES, tau, jax.random.key(3))
    start = jax.tree.map(lambda leaf: leaf[None], (one, lists))

    def total(replica, lists):
        energy, _ = energy_and_sigma(basis, params, replica.system, lists.neighbours)
        biased = biased_energy(basis, params, replica.system, lists.neighbours, tau)
        return jnp.stack([biased + kinetic_energy(replica), energy + kinetic_energy(replica)])

    @jax.jit
    def energies(dt, n_steps):
        """H and E along 120 fs, every 4 fs."""

        def advanced(carry, _):
            replica, lists, too_fast, shortage = advance(
                h, steps_with(params), *carry, jnp.full(1, 0.03), dt[None], jnp.zeros(1), n_steps, skin, stencil
            )
            return (replica, lists), (jax.vmap(total)(replica, lists)[0], too_fast[0] | (shortage[0] != 0))

        return jax.lax.scan(advanced, start, length=30)[1]

    before = total(one, lists)
    errors = []
    for n_steps in (4, 8, 16):  # 1, 0.5 and 0.25 fs: sigma is steeper than energies are
        values, bad = energies(jnp.array(4.0 * FS / n_steps), n_steps)
        assert not np.any(bad)
        errors.append(np.asarray(values - before[None]))
    rms = [np.sqrt(np.mean(error[:, 0] ** 2)) for error in errors]
    assert 3.7 < rms[0] / rms[1] < 4.3 and 3.7 < rms[1] / rms[2] < 4.3
    assert rms[2] < 1e-4 * 16
    # What is conserved is H: the bias does work on E.
    assert np.sqrt(np.mean(errors[2][:, 1] ** 2)) > 100 * rms[2]
