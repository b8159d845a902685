"""Rounds of dynamics in float32 under a model that was fitted in float64."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.units import kB

from haljax.config import Dynamics
from haljax.hal import acquisition, trajectory
from haljax.hal.acquisition import _width, default_tolerance, explore, room_for
from haljax.hal.boldness import AS_GIVEN, Boldness
from haljax.hal.controller import criterion, relative_force_error
from haljax.potentials import evaluate_system, parameters_of
from haljax.rows import all_rows, examples
from haljax.structures import from_atoms, neighbour_list

UNBOUNDED = {"tolerance": 1e3, "max_force": 1e3, "min_distance": 0.3}


def committee(model, key, n):
    """Deviations (n, P) of a round's committee from the mean, of the covariance of the model's spread."""
    factor = model.spread.factor
    return jax.random.normal(jax.random.fold_in(key, 1 << 20), (n, factor.shape[1])) @ factor.T


@pytest.fixture(scope="module")
def starts(alloy):
    made = [alloy(70 + i) for i in range(3)]
    for atoms in made:
        atoms.set_cell(atoms.cell * (1 + 1e-10))  # which float32 does not hold
    return made


@pytest.fixture(scope="module")
def go(small_model, starts):
    def go(model=small_model, boldness=AS_GIVEN, **changes):
        dynamics = Dynamics(**{"temperature_K": 600.0, "n_steps": 100, "committee": 4} | UNBOUNDED | changes)
        room = room_for(model.basis, dynamics.skin, starts)
        return explore(model, dynamics, starts, jax.random.key(0), room, lambda latest: None, boldness)

    return go


@pytest.fixture(scope="module")
def single(go):
    return go(precision="float32", pressure_GPa=1.0, swap_interval=20, tau_history=20)


def test_candidates_are_float64_and_what_was_seen_is_near_float64(single, small_model):
    """Relative to the terms that cancel in it, a value has some ten roundings of 6e-8; energies 1e-5 eV an atom."""
    assert {leaf.dtype for leaf in single.seen if leaf.dtype.kind == "f"} == {np.dtype(np.float32)}
    deviations = committee(small_model, jax.random.key(0), 4)
    for i, atoms in enumerate(single.candidates):
        assert atoms.positions.dtype == atoms.cell.array.dtype == np.float64
        assert single.replicas[i]["step"] == atoms.info["origin"]["step"] == 100
        system = from_atoms(atoms, small_model.basis.elements)
        found = jax.tree.map(jnp.asarray, neighbour_list(system, small_model.basis.cutoff))
        exact = evaluate_system(small_model.basis, parameters_of(small_model), system, found, deviations)
        real = np.ones(len(atoms), bool)
        error = criterion(relative_force_error(exact.force_deviations, exact.forces, 0.2, real), real, False)
        np.testing.assert_allclose(single.seen.energy[-1, i], exact.energy / len(atoms), atol=1e-5)
        np.testing.assert_allclose(single.seen.sigma[-1, i], exact.sigma / len(atoms), rtol=1e-4)
        np.testing.assert_allclose(single.seen.criterion[-1, i], error, rtol=1e-3)


@pytest.fixture(scope="module")
def hottest(go):
    """Unbounded replicas, and below the highest temperature of the one that is hottest after its first check."""
    seen = go().seen
    replica = int(np.argmax(seen.temperature[1:].max(axis=0) / seen.temperature[0]))
    assert seen.temperature[1:, replica].max() > seen.temperature[0, replica]
    return replica, float(seen.temperature[:, replica].max()) * (1 - 1e-9)


def test_a_structure_at_which_a_guard_struck_is_a_candidate(go, hottest, monkeypatch):
    replica, limit = hottest
    found = go(max_temperature_K=limit)
    origin, atoms = found.candidates[replica].info["origin"], found.candidates[replica]
    assert (origin["status"], origin["frame"]) == ("too_hot", "stopped")
    assert origin["step"] == found.replicas[replica]["step"] > 10
    # Atoms that are too close for a reference calculator: the structure of the check before.
    monkeypatch.setattr(acquisition, "SHORTEST", 5.0)
    found = go(max_temperature_K=limit)
    before = found.candidates[replica].info["origin"]
    assert (before["status"], before["frame"]) == ("too_hot", "last safe")
    assert before["step"] == origin["step"] - 10
    assert np.any(found.candidates[replica].positions != atoms.positions)
    # Stopped at the first check: no structure was safe.
    assert go(max_force=1e-3).candidates == []
    monkeypatch.undo()
    assert {a.info["origin"]["frame"] for a in go(max_force=1e-3).candidates} == {"stopped"}


def test_what_a_reference_calculator_can_label():
    pair = Atoms("Cu2", [[0, 0, 0], [0, 0, 1.4]])  # twice the covalent radius: 2.64 Å
    assert acquisition._can_be_labelled(pair)
    pair.positions[1, 2] = 1.3
    assert not acquisition._can_be_labelled(pair)
    pair.positions[1, 2] = np.nan
    assert not acquisition._can_be_labelled(pair)
    assert not acquisition._can_be_labelled(Atoms("Cu", cell=[1.3, 9, 9], pbc=True))  # its own image


def test_the_default_tolerance_is_relative_to_the_training_structures(small_model, alloy):
    dynamics, key = Dynamics(temperature_K=600.0), jax.random.key(5)
    train = [alloy(i) for i in range(6)]
    value = default_tolerance(small_model, dynamics, train, key)
    deviations, M = np.asarray(committee(small_model, key, dynamics.committee)), len(small_model.basis)
    arrays, found = (small_model.radii, small_model.density), []
    for atoms in train:
        rows = all_rows(small_model.basis, *next(examples(small_model.basis, [atoms])), *arrays)
        n = len(atoms)
        slopes = np.asarray(rows.forces)[:n]
        forces = slopes[..., :M] @ small_model.coefficients + np.asarray(rows.core_forces)[:n]
        error = np.sqrt(np.mean(np.sum((slopes @ deviations.T) ** 2, axis=1), axis=1))
        found.append((error / (np.linalg.norm(forces, axis=1) + dynamics.epsilon)).max())
    expected = acquisition.TOLERANCE_FACTOR * np.quantile(found, acquisition.TOLERANCE_QUANTILE)
    low, high = acquisition.TOLERANCE_LIMITS
    assert low < expected < high, "the limits hide what is tested"
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    # It follows the scale of the error bars, within limits.
    spread = small_model.spread
    surer = replace(small_model, spread=spread._replace(factor=spread.factor / 1e3))
    assert default_tolerance(surer, dynamics, train, key) == low
    doubtful = replace(small_model, spread=spread._replace(factor=spread.factor * 1e3))
    assert default_tolerance(doubtful, dynamics, train, key) == high


def test_bolder_replicas_are_stronger_biased_hotter_and_longer(go):
    given = go(tau_delay=0, n_steps=40)
    biased = go(tau_delay=0, n_steps=40, boldness=Boldness(1, tau_rel=2.0))
    # Up to the first check there is no bias, so that the trajectories are the same.
    np.testing.assert_allclose(biased.seen.tau[0], 2 * given.seen.tau[0], rtol=1e-12)
    np.testing.assert_array_equal(biased.seen.criterion[0], given.seen.criterion[0])
    hot = go(tau_delay=0, n_steps=40, boldness=Boldness(1, temperature=2.0))
    ratio = np.nanmean(hot.seen.temperature) / np.nanmean(given.seen.temperature)
    assert 1.5 < ratio < 2.5
    long = go(tau_delay=0, n_steps=40, boldness=Boldness(1, n_steps=1.5))
    assert [replica["step"] for replica in given.replicas + long.replicas] == [40] * 3 + [60] * 3


def test_dynamics_without_a_tolerance_are_refused(go):
    with pytest.raises(ValueError, match="no tolerance: set one, for instance by default_tolerance"):
        go(tolerance=None)


def test_a_gpu_steps_no_more_replicas_of_a_size_than_there_are(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    widths = [_width(256, alike, size=32, devices=1, n_cores=16) for alike in (3, 30, 250, 256)]
    assert widths == [4, 32, 256, 256]


def test_no_product_in_float32_is_left_to_a_gpu_to_make_in_fewer_digits(go, monkeypatch):
    """An H100 may multiply float32 as TF32 unless told not to; with 10 bits energies of moves would be off by kT."""
    programs, block = [], trajectory._block

    def traced(*arguments):
        programs.append(block.trace(*arguments).jaxpr)
        return block(*arguments)

    monkeypatch.setattr(trajectory, "_block", traced)
    go(precision="float32", pressure_GPa=1.0, swap_interval=20, tau_history=20, n_steps=20)
    highest = (jax.lax.Precision.HIGHEST,) * 2
    products = [product for program in programs for product in _products(program.jaxpr)]
    assert len(products) > 20 and all(product.params["precision"] == highest for product in products)


def _products(program):
    for equation in program.eqns:
        if equation.primitive.name == "dot_general":
            yield equation
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda leaf: hasattr(leaf, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from _products(inner)


def test_energies_of_isolated_atoms_cost_no_digits(single, go, small_model):
    """Of -20000 eV an atom, as pseudopotential codes have them, float32 leaves 0.03 eV for a Metropolis test."""
    mean = small_model.posterior.mean.at[len(small_model.basis) :].add(-2e4)
    deep = replace(small_model, posterior=small_model.posterior._replace(mean=mean))
    other = go(deep, precision="float32", pressure_GPa=1.0, swap_interval=20, tau_history=20)
    for name in ("cell_moves", "swap_moves"):
        moves = getattr(single.seen, name)
        assert 0 < moves[moves >= 0].mean() < 1
        np.testing.assert_array_equal(getattr(other.seen, name), moves)
    for a, b in zip(single.candidates, other.candidates, strict=True):
        np.testing.assert_array_equal(a.positions, b.positions)


def test_energy_is_conserved_as_well_as_in_float64(go, starts):
    """Without thermostat and bias: what is lost is the time step's, not the precision's."""
    wander = {}
    for precision in ("float64", "float32"):
        found = go(precision=precision, friction_per_fs=0.0, tau_rel=0.0, n_steps=500, timestep_fs=0.5)
        energy = found.seen.energy + 1.5 * kB * found.seen.temperature
        wander[precision] = np.abs(energy - energy[0]).max()
        for atoms, start in zip(found.candidates, starts, strict=True):
            np.testing.assert_array_equal(atoms.cell, start.cell)
    kinetic = 1.5 * kB * 600
    assert wander["float64"] < 5e-4 * kinetic and wander["float32"] < 5e-4 * kinetic, wander
