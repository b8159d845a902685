"""Averages of the dynamics and of each Monte Carlo move against exact results.

Standard errors come from independent replicas, so autocorrelation within a replica is accounted for; four of them
are allowed.
"""

from collections.abc import Callable
from functools import partial
from itertools import permutations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haljax.md import (
    Hamiltonian,
    Replica,
    advance,
    cell_move,
    kinetic_energy,
    maxwell_boltzmann,
    swap_move,
    temperature,
)
from haljax.structures import System, neighbour_state

KT = 0.05


def replicas(n, positions, species, cell, masses, seed, kT=KT, periodic=True):
    """n replicas of one structure with their own keys and momenta, and empty lists (cutoff 0.1 Å)."""
    system = System(jnp.asarray(positions), jnp.asarray(species, jnp.int32), jnp.asarray(cell), jnp.full(3, periodic))
    systems = jax.tree.map(lambda leaf: jnp.repeat(leaf[None], n, axis=0), system)
    keys = jax.random.split(jax.random.key(seed), (n, 2))
    masses = jnp.asarray(masses)
    kT = jnp.broadcast_to(kT, (n,))
    momenta = jax.vmap(lambda key, kT: maxwell_boltzmann(key, masses, system.species, kT))(keys[:, 0], kT)
    lists = jax.vmap(lambda s: neighbour_state(s, 0.1, 1e-3, 4, (0, 0, 0)))(systems)
    masses = jnp.repeat(masses[None], n, axis=0)
    return Replica(systems, momenta, jnp.zeros_like(momenta), masses, jnp.zeros(n), keys[:, 1]), lists


def agrees(per_replica, exact, precision):
    """Mean over independent replicas equals the exact value within 4 standard errors, which are small enough."""
    mean = np.mean(per_replica)
    error = np.std(per_replica, ddof=1) / np.sqrt(len(per_replica))
    assert error < precision * abs(exact), "the test has no power"
    assert abs(mean - exact) < 4 * error, f"{mean} +- {error}, exact {exact}"


# Langevin dynamics

SPRINGS = jnp.array([2.0, 4.0, 8.0, 8.0])
MASSES = (4.0, 8.0)
KINDS = (0, 1, 0, 1)
DT = 0.14


def springs(params, system, neighbours, tau):
    return 0.5 * jnp.sum(SPRINGS[:, None] * (system.positions - params) ** 2)


def test_langevin_samples_the_canonical_ensemble_of_every_replica():
    """Harmonic springs: positions exactly canonical under BAOAB, momenta up to the factor 1 - (w dt / 2)^2.

    Leimkuhler & Matthews, J Chem Phys 138, 174102 (2013), doi:10.1063/1.4802990.
    """
    kT = np.repeat([0.02, 0.05, 0.2], 24)
    friction = np.tile([0.3, 1.4, 4.0], 24)
    n = len(kT)
    anchors = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)))
    batch, lists = replicas(n, anchors, KINDS, np.eye(3), MASSES, 1, kT=jnp.asarray(kT), periodic=False)
    lists = jax.vmap(lambda s: neighbour_state(s, 0.1, 1e3, 4, (0, 0, 0)))(batch.system)
    # 200 steps are about 20 / w of the slowest spring: energies are forgotten to e^-7 at any of these frictions.
    step = partial(advance, Hamiltonian(springs, 0.1), anchors, n_steps=200, skin=1e3, stencil=(0, 0, 0))

    def sample(carry, _):
        batch, lists = carry
        batch, lists, too_fast, shortage = step(batch, lists, jnp.asarray(kT), jnp.full(n, DT), jnp.asarray(friction))
        return (batch, lists), (batch.system.positions - anchors[None], batch.momenta, jax.vmap(kinetic_energy)(batch))

    (_, _), (u, p, kinetic) = jax.jit(lambda c: jax.lax.scan(sample, c, length=54))((batch, lists))
    u, p, kinetic = (np.asarray(x)[4:] for x in (u, p, kinetic))

    mass = np.array(MASSES)[list(KINDS)]
    shadow = 1 - np.asarray(SPRINGS) / mass * DT**2 / 4
    potential = np.asarray(SPRINGS)[None, None, :, None] * u**2 / kT[None, :, None, None]
    motion = p**2 / mass[None, None, :, None] / kT[None, :, None, None] / shadow[None, None, :, None]
    for squares in (potential, motion):  # squares of standard normals
        for temperature_ in np.unique(kT):
            for friction_ in np.unique(friction):
                chosen = squares[:, (kT == temperature_) & (friction == friction_)]
                assert abs(chosen.mean() - 1) < 4 * np.sqrt(2 / chosen.size), (temperature_, friction_)
        for atom in range(4):
            assert abs(squares[:, :, atom].mean() - 1) < 4 * np.sqrt(2 / squares[:, :, atom].size), atom
    assert abs(np.mean(potential * motion) - 1) < 4 * np.sqrt(8 / potential.size)  # positions and momenta independent
    # 3 N degrees of freedom; 3 N - 3 would be a third off.
    agrees(np.mean(temperature(kinetic, 3 * 4) / kT[None] / shadow.mean(), axis=0), 1.0, 0.01)


def test_momenta_at_the_start_and_their_degrees_of_freedom():
    """Canonical momenta have 3 N degrees of freedom; those of NVE from rest, without drift, 3 N - 3."""
    species = jnp.array([0, 1, 1, 0, -1])
    keys = jax.random.split(jax.random.key(3), 4000)
    masses = jnp.array([1.0, 30.0])
    p = jax.vmap(lambda key: maxwell_boltzmann(key, masses, species, jnp.array(KT)))(keys)
    assert np.all(p[:, 4] == 0)
    mass = np.asarray(masses)[np.asarray(species)[:4]]

    def kT(p, dof):
        return np.asarray(temperature(0.5 * np.sum(p[:, :4] ** 2 / mass[None, :, None], axis=(1, 2)), dof))

    agrees(kT(p, 12), KT, 0.01)
    for atom in range(4):
        agrees(np.mean(np.asarray(p)[:, atom] ** 2, axis=-1) / mass[atom], KT, 0.02)
    velocity = np.sum(p, axis=1) / mass.sum()
    at_rest = np.asarray(p)[:, :4] - mass[None, :, None] * velocity[:, None, :]
    agrees(kT(at_rest, 9), KT, 0.01)


# Cell moves


def volume_of(cell):
    return jnp.abs(jnp.linalg.det(cell))


def of_shape(cell):
    """Grows as the cell departs from a cube and does not depend on its volume, whose distribution it leaves alone.

    Without it a free shape is a product of random matrices, which grows longer and thinner for ever.
    """
    return 3 * KT * jnp.sum(cell**2) / volume_of(cell) ** (2 / 3)


def ideal_gas(params, system, neighbours, tau):
    """The constant depends on tau: one tau on both sides of the test, so that it must not matter."""
    return of_shape(system.cell) - 100.0 * tau + 0.0 * jnp.sum(system.positions)


def stiff_volume(params, system, neighbours, tau):
    return params * (volume_of(system.cell) - 50.0) ** 2 + ideal_gas(params, system, neighbours, tau)


def free_shape(params, system, neighbours, tau):
    return 0.5 * params * jnp.sum(system.cell**2) + 0.0 * jnp.sum(system.positions)


def cells(biased: Callable, params, n_atoms, pressure, size, fixed_shape, n_moves=400, n_replicas=256, edge=4.0):
    """Cells (moves, replicas, 3, 3) along the Markov chain of cell moves, one padded slot beside the atoms."""
    h = Hamiltonian(biased, 0.1)
    positions = np.random.default_rng(5).uniform(0, 4, (n_atoms + 1, 3))
    species = [0] * n_atoms + [-1]
    batch, lists = replicas(n_replicas, positions, species, edge * np.eye(3), (1.0,), seed=6)
    batch = batch._replace(tau=jnp.linspace(0.0, 5.0, n_replicas))

    def move(replica, lists, key):
        return cell_move(
            h, params, replica, lists, key, jnp.array(KT), jnp.array(pressure), jnp.array(size), fixed_shape, 0.0,
            (0, 0, 0),
        )  # fmt: skip

    def one(carry, key):
        batch, lists, accepted, _ = jax.vmap(move)(*carry, jax.random.split(key, n_replicas))
        return (batch, lists), (batch.system.cell, accepted)

    keys = jax.random.split(jax.random.key(7), n_moves)
    _, (out, accepted) = jax.jit(lambda c: jax.lax.scan(one, c, keys))((batch, lists))
    assert 0.15 < np.mean(accepted) < 0.95
    return np.asarray(out)[n_moves // 5 :]


@pytest.mark.parametrize(("fixed_shape", "size"), [(True, 0.25), (False, 0.18)])
def test_volume_of_an_ideal_gas(fixed_shape, size):
    """p(V) ~ V^N exp(-P V / kT): a gamma distribution with mean (N + 1) kT/P and variance (N + 1) (kT/P)^2."""
    n, unit = 3, 16.0
    v = np.abs(np.linalg.det(cells(ideal_gas, None, n, KT / unit, size, fixed_shape)))
    agrees(v.mean(axis=0), (n + 1) * unit, 0.02)
    agrees(((v - (n + 1) * unit) ** 2).mean(axis=0), (n + 1) * unit**2, 0.04)
    # <ln V> weighs small volumes: digamma(4) = 11/6 - Euler's constant.
    agrees(np.log(v / unit).mean(axis=0), 11 / 6 - np.euler_gamma, 0.02)


@pytest.mark.parametrize(("fixed_shape", "size"), [(True, 0.1), (False, 0.15)])
def test_volume_under_an_energy_of_the_volume(fixed_shape, size):
    n, stiffness, pressure = 2, 5e-4, 3e-3
    v = np.abs(np.linalg.det(cells(stiff_volume, jnp.array(stiffness), n, pressure, size, fixed_shape)))
    grid = np.linspace(1e-3, 150, 200_001)
    weight = grid**n * np.exp(-(stiffness * (grid - 50) ** 2 + pressure * grid) / KT)
    exact = [np.sum(grid**k * weight) / np.sum(weight) for k in (1, 2)]
    agrees(v.mean(axis=0), exact[0], 0.01)
    agrees((v**2).mean(axis=0), exact[1], 0.02)


def test_shape_and_volume_in_the_full_measure():
    """H = k/2 |h|^2 and two atoms: V^(N-2) exp(-H/kT) dh makes the nine entries of h independent normals.

    The measure is that of Martyna, Tobias, Klein, J Chem Phys 101, 4177 (1994), doi:10.1063/1.467468, where the
    volume appears as V^(1 - d) beside the V^N of the atoms; W = h^T h is then a Wishart matrix.
    """
    h = cells(free_shape, jnp.array(KT / 4.0), 2, 0.0, 0.3, False, n_moves=1500, n_replicas=192, edge=2.0)
    w = np.einsum("mrki,mrkj->mrij", h, h)
    agrees(np.trace(w, axis1=2, axis2=3).mean(axis=0), 9 * 4.0, 0.02)
    agrees(np.sum(w**2, axis=(2, 3)).mean(axis=0), 63 * 4.0**2, 0.04)
    agrees((np.linalg.det(h) ** 2).mean(axis=0), 6 * 4.0**3, 0.1)


def crystal(params, system, neighbours, tau):
    """Springs to lattice sites that follow the cell, and an energy of the volume."""
    d = system.positions - params @ system.cell
    return 0.5 * jnp.sum(d**2) + 1e-3 * (volume_of(system.cell) - 60.0) ** 2


def test_volume_of_a_harmonic_crystal_under_langevin_and_cell_moves():
    """The springs' integral does not depend on the cell, so p(V) ~ exp(-(U(V) + P V)/kT): no power of V remains."""
    h, pressure, n = Hamiltonian(crystal, 0.1), 0.01, 192
    fractions = jnp.asarray(np.random.default_rng(8).uniform(size=(3, 3)))
    cell = 3.9 * np.eye(3)
    batch, _ = replicas(n, fractions @ cell, (0, 0, 0), cell, (1.0,), 9)
    lists = jax.vmap(lambda s: neighbour_state(s, 0.1, 1e3, 4, (0, 0, 0)))(batch.system)
    batch = batch._replace(force=jax.vmap(lambda r: h.force(fractions, r.system, None, r.tau))(batch))
    o = jnp.ones(n)

    def round_(carry, key):
        batch, lists, _, _ = advance(h, fractions, *carry, KT * o, 0.3 * o, 1.0 * o, 5, 1e3, (0, 0, 0))
        batch, lists, accepted, _ = jax.vmap(
            lambda replica, lists, key: cell_move(
                h, fractions, replica, lists, key, jnp.array(KT), jnp.array(pressure), jnp.array(0.03), True, 1e3,
                (0, 0, 0),
            )
        )(batch, lists, jax.random.split(key, n))  # fmt: skip
        return (batch, lists), (volume_of(batch.system.cell), accepted)

    keys = jax.random.split(jax.random.key(10), 500)
    _, (v, accepted) = jax.jit(lambda c: jax.lax.scan(round_, c, keys))((batch, lists))
    assert 0.2 < np.mean(accepted) < 0.9
    v = np.asarray(v)[100:]
    grid = np.linspace(1, 120, 200_001)
    weight = np.exp(-(1e-3 * (grid - 60) ** 2 + pressure * grid) / KT)
    mean = np.sum(grid * weight) / np.sum(weight)
    # One power of V too many would move the mean by var/V = 0.46 Å^3, three by 1.4.
    agrees(v.mean(axis=0), mean, 0.002)
    agrees(((v - mean) ** 2).mean(axis=0), np.sum((grid - mean) ** 2 * weight) / np.sum(weight), 0.03)


# Swaps


def lattice(params, system, neighbours, tau):
    """Site energies of each element, and a coupling along the chain of sites."""
    site, bond = params
    species = system.species[:5]
    return (
        jnp.sum(site[species, jnp.arange(5)])
        + jnp.sum(bond[species[:-1], species[1:]])
        + 0.0 * jnp.sum(system.positions)
        - 100.0 * tau
    )


def test_swaps_reach_the_boltzmann_populations_of_all_arrangements():
    """Five sites, elements 2 + 2 + 1 and one padded slot: thirty arrangements, by enumeration."""
    rng = np.random.default_rng(11)
    params = jnp.asarray(0.7 * KT * rng.normal(size=(3, 5))), jnp.asarray(0.5 * KT * rng.normal(size=(3, 3)))
    start, n, n_swaps = [0, 0, 1, 1, 2, -1], 128, 800
    h = Hamiltonian(lattice, 0.1)
    batch, lists = replicas(n, rng.uniform(size=(6, 3)), start, 4.0 * np.eye(3), (1.0, 2.0, 3.0), 12)
    batch = batch._replace(tau=jnp.linspace(0.0, 1.0, n))

    def one(batch, key):
        batch, accepted = jax.vmap(lambda r, l, k: swap_move(h, params, r, l, k, jnp.array(KT)))(
            batch, lists.neighbours, jax.random.split(key, n)
        )
        return batch, (batch.system.species, accepted)

    keys = jax.random.split(jax.random.key(13), n_swaps)
    end, (species, accepted) = jax.jit(lambda b: jax.lax.scan(one, b, keys))(batch)
    assert 0.1 < np.mean(accepted) < 0.9
    species = np.asarray(species)[50:]
    np.testing.assert_array_equal(np.sort(species, axis=-1), np.broadcast_to(np.sort(start), species.shape))
    np.testing.assert_array_equal(species[:, :, 5], -1)
    code = species[:, :, :5] @ 3 ** np.arange(5)

    states = np.array(sorted(set(permutations(start[:5]))))
    site, bond = map(np.asarray, params)
    energy = np.array([site[s, np.arange(5)].sum() + bond[s[:-1], s[1:]].sum() for s in states])
    exact = np.exp(-energy / KT)
    exact /= exact.sum()
    assert exact.max() > 10 * exact.min()  # far from uniform
    for state, probability in zip(states, exact, strict=True):
        agrees((code == state @ 3 ** np.arange(5)).mean(axis=0), probability, 0.15)
