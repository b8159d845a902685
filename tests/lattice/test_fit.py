from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT

from haljax import bayes
from haljax.lattice import Supercell, energy, fit_expansion, lattice, map_structure, orbits
from haljax.lattice.fit import features
from haljax.structures import with_labels

from .crystals import fcc, lixcoo2, random_expansion, random_occupation, rocksalt

MATRICES = [
    np.diag([2, 2, 2]),
    np.array([[-1, 1, 1], [1, -1, 1], [1, 1, -1]]),
    np.array([[2, 1, 0], [0, 2, 1], [1, 0, 3]]),
]


def random_structures(crystal, n, seed=0):
    """Pairs of a supercell and an occupation of all compositions."""
    rng = np.random.default_rng(seed)
    supercells = [Supercell(tuple(map(tuple, MATRICES[i % 3])), crystal.n_sites) for i in range(n)]
    return [(s, (rng.uniform(size=s.n_sites) < rng.uniform()).astype(np.int32)) for s in supercells]


def as_atoms(crystal, supercell, occupation, scale=1.0, rattle=0.0):
    """ase.Atoms of an occupation; nothing stands where a vacancy is."""
    sites = supercell.sites()
    symbols = [crystal.species[s][k] for s, k in zip(sites[:, 3], occupation, strict=True)]
    keep = [i for i, symbol in enumerate(symbols) if symbol != "Va"]
    atoms = Atoms(
        [symbols[i] for i in keep],
        positions=crystal.cartesian(sites)[keep],
        cell=np.array(supercell.matrix).T @ np.array(crystal.cell),
        pbc=True,
    )
    atoms.set_cell(atoms.cell * scale, scale_atoms=True)
    atoms.rattle(rattle, seed=1)
    return atoms


@pytest.fixture(scope="module")
def problem():
    crystal = fcc("Al", "Cu")
    truth = random_expansion(crystal, {2: 5.0, 3: 2.9, 4: 2.9})
    truth = truth.replace_eci(0.05 * np.array(truth.eci))
    train, test = random_structures(crystal, 60), random_structures(crystal, 40, seed=1)
    energies = [np.array([float(energy(truth, *pair)) for pair in pairs]) for pairs in (train, test)]
    return truth, train, energies[0], test, energies[1]


@pytest.mark.parametrize("solver", ["brr", "ard"])
def test_known_ecis_come_back(problem, solver):
    truth, train, energies, test, expected = problem
    fit = fit_expansion(truth.lattice, truth.orbits, train, energies, solver)
    # noiseless: what remains is the floor of the hyper-priors on the noise, below 1e-6 eV
    np.testing.assert_allclose(fit.expansion.eci, truth.eci, atol=1e-6)
    assert fit.noise < 1e-6 and np.abs(fit.residuals).max() < 1e-6
    mean, error = fit.energies(test)
    np.testing.assert_allclose(mean, expected, atol=1e-6)
    assert np.all(error < 1e-5)


def test_error_bars_cover(problem):
    truth, train, energies, test, expected = problem
    rng = np.random.default_rng(0)
    noise, of_truth, of_labels, of_eci = 3e-3, [], [], []
    for _ in range(20):
        fit = fit_expansion(truth.lattice, truth.orbits, train, energies + noise * rng.normal(size=60))
        mean, error = fit.energies(test)
        of_truth.append((mean - expected) / np.sqrt(error**2 - fit.noise**2))
        of_labels.append((mean - expected - noise * rng.normal(size=40)) / error)
        of_eci.append((np.array(fit.expansion.eci) - truth.eci) / fit.eci_error)
        assert fit.noise == pytest.approx(noise, rel=0.4)
    # 20 independent fits of 9 ECIs: their scaled errors have a standard deviation of 1 +- 0.15 or so
    assert np.std(of_eci) == pytest.approx(1, abs=0.25)
    assert np.std(of_truth) == pytest.approx(1, abs=0.25)
    assert np.std(of_labels) == pytest.approx(1, abs=0.15)


def test_leave_one_out_is_leaving_one_out(problem):
    truth, train, energies, *_ = problem
    noisy = energies + 3e-3 * np.random.default_rng(0).normal(size=60)
    fit = fit_expansion(truth.lattice, truth.orbits, train, noisy)
    rows, alpha = features(truth.lattice, truth.orbits, train), float(fit.posterior.noise_precision)
    for i in (0, 7, 30):
        keep = np.arange(60) != i
        precision = alpha * rows[keep].T @ rows[keep] + np.diag(fit.posterior.prior_precision)
        eci = np.linalg.solve(precision, alpha * rows[keep].T @ noisy[keep])
        assert fit.leave_one_out[i] == pytest.approx(noisy[i] - rows[i] @ eci, rel=1e-6)


def test_draws_have_the_posteriors_moments(problem):
    truth, train, energies, *_ = problem
    noisy = energies + 3e-3 * np.random.default_rng(0).normal(size=60)
    fit = fit_expansion(truth.lattice, truth.orbits, train, noisy)
    draws = fit.draw(jax.random.key(0), 400)
    eci = np.array([draw.eci for draw in draws])
    # five standard errors of 400 draws
    assert np.all(np.abs(eci.mean(axis=0) - fit.expansion.eci) < 0.25 * fit.eci_error)
    np.testing.assert_allclose(eci.std(axis=0), fit.eci_error, rtol=0.2)
    assert draws[0].orbits == truth.orbits and draws[0].lattice == truth.lattice
    assert fit.draw(jax.random.key(0), 400)[7] == draws[7]


def test_a_constant_energy_shift_changes_nothing_else(problem):
    # the flat prior of the empty and point orbits: total energies of thousands of eV are no trouble
    truth, train, energies, *_ = problem
    noisy = energies + 3e-3 * np.random.default_rng(0).normal(size=60)
    occupied = features(truth.lattice, truth.orbits, train)[:, 1]
    plain = fit_expansion(truth.lattice, truth.orbits, train, noisy)
    shifted = fit_expansion(truth.lattice, truth.orbits, train, noisy - 3000 + 200 * occupied)
    np.testing.assert_allclose(shifted.expansion.eci[2:], plain.expansion.eci[2:], atol=1e-8)
    np.testing.assert_allclose(np.array(shifted.expansion.eci)[:2] - plain.expansion.eci[:2], [-3000, 200], atol=1e-7)


def test_a_flat_prior_is_a_fit_of_what_it_leaves(problem):
    # with the empty and point functions projected out, ridge regression of the other ECIs on 58 rows
    truth, train, energies, *_ = problem
    noisy = energies + 3e-3 * np.random.default_rng(0).normal(size=60)
    rows = features(truth.lattice, truth.orbits, train)
    complement = np.linalg.svd(rows[:, :2])[0][:, 2:]  # (60, 58)
    unit, n = 1e-3, len(truth.orbits)
    statistics = bayes.absorb(
        bayes.empty(n - 2), jnp.asarray(complement.T @ rows[:, 2:]), jnp.asarray(complement.T @ noisy / unit)
    )
    expected, _ = bayes.brr(statistics)
    fit = fit_expansion(truth.lattice, truth.orbits, train, noisy)
    np.testing.assert_allclose(fit.expansion.eci[2:], unit * expected.mean, rtol=1e-7)
    np.testing.assert_allclose(fit.noise, unit / np.sqrt(expected.noise_precision), rtol=1e-7)
    np.testing.assert_allclose(fit.eci_error[2:], unit * np.linalg.norm(expected.factor, axis=1), rtol=1e-7)


def test_updates_go_on_from_a_fit(problem):
    truth, train, energies, test, expected = problem
    noisy = energies + 3e-3 * np.random.default_rng(0).normal(size=60)
    fit = fit_expansion(truth.lattice, truth.orbits, train, noisy)
    rows = features(truth.lattice, truth.orbits, test)
    updated = bayes.update(fit.posterior, jnp.asarray(rows), jnp.asarray(expected))
    alpha, every = (
        float(fit.posterior.noise_precision),
        np.concatenate([features(truth.lattice, truth.orbits, train), rows]),
    )
    precision = alpha * every.T @ every + np.diag(fit.posterior.prior_precision)
    mean = np.linalg.solve(precision, alpha * every.T @ np.concatenate([noisy, expected]))
    np.testing.assert_allclose(updated.mean, mean, atol=1e-9)


def test_scale_is_the_width_of_the_prior(problem):
    truth, train, energies, *_ = problem
    noisy = energies + 3e-3 * np.random.default_rng(0).normal(size=60)
    scale = np.ones(len(truth.orbits))
    scale[-1] = 1e6
    fit = fit_expansion(truth.lattice, truth.orbits, train, noisy, scale=scale)
    assert abs(fit.expansion.eci[-1]) < 1e-6


def test_al_cu_by_emt():
    crystal = fcc("Al", "Cu", a=3.9)
    structures = []
    for supercell, occupation in random_structures(crystal, 50, seed=3):
        x = occupation.mean()
        atoms = as_atoms(crystal, supercell, occupation, scale=(3.99 * (1 - x) + 3.59 * x) / 3.9, rattle=0.005)
        atoms.calc = EMT()
        structures.append(with_labels(atoms, atoms.get_potential_energy()))
    fit = fit_expansion(crystal, orbits(crystal, {2: 5.0, 3: 4.0}), structures)
    energies = np.array([atoms.get_potential_energy() / len(atoms) for atoms in structures])
    left_out = np.sqrt(np.mean(fit.leave_one_out**2))
    # a few meV of some 45 meV of spread; the pairs alone leave 8 meV, and rattling and volumes are no part of it
    assert left_out < 0.1 * energies.std() and left_out < 0.004
    mean, error = fit.energies(structures)
    np.testing.assert_allclose(mean, energies - fit.residuals, atol=1e-12)
    assert np.all(error > fit.noise * 0.999)


@pytest.mark.parametrize("crystal", [lixcoo2().lattice, rocksalt()], ids=["lixcoo2", "rocksalt"])
@pytest.mark.parametrize("matrix", [((2, 0, 0), (0, 3, 0), (0, 0, 2)), ((2, 1, 0), (0, 2, 1), (1, 0, 3))])
def test_structures_map_back(crystal, matrix):
    supercell = Supercell(matrix, crystal.n_sites)
    occupation = random_occupation(crystal, supercell)
    atoms = as_atoms(crystal, supercell, occupation, scale=1.02, rattle=0.05)
    shuffled = atoms[np.random.default_rng(0).permutation(len(atoms))]
    shuffled.positions += [0.3, -0.2, 0.1]  # a drift of the whole structure
    shuffled.wrap()
    found, mapped = map_structure(crystal, shuffled, tolerance=0.3)
    assert found == supercell
    np.testing.assert_array_equal(mapped, occupation)


def test_vacancies_and_dummies():
    crystal = lattice(fcc("A", "B").cell, [[0, 0, 0]], [("Al", "X")])
    atoms = bulk("Al", a=4.0, cubic=True) * (2, 1, 1)
    supercell, occupation = map_structure(crystal, atoms[1:])
    assert supercell.n_sites == 8 and occupation.sum() == 1
    dummy = atoms.copy()
    dummy.symbols[0] = "X"
    np.testing.assert_array_equal(map_structure(crystal, dummy)[1], occupation)


def test_a_volume_of_its_own():
    # without vacancies the number of cells is known, so the size of the structure does not matter
    atoms = bulk("Cu", a=3.0) * (5, 5, 5)
    supercell, occupation = map_structure(fcc("Al", "Cu", a=4.0), atoms)
    assert supercell.n_cells == 125 and np.all(occupation == 1)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda a: a.set_pbc([True, True, False]), "not periodic"),
        (lambda a: a.rotate(20, "z", rotate_cell=True), "too far from integers"),
        (lambda a: a.positions.__setitem__((0, 0), 1.4), "from the nearest site"),
        (lambda a: a.symbols.__setitem__(0, "Fe"), "atom 0 is Fe, but its site .* holds Al or Cu"),
        (lambda a: a.positions.__setitem__(0, a.positions[1] + 0.1), "same site"),
        (lambda a: a.__delitem__(0), "no atom on a site"),
    ],
)
def test_structures_that_do_not_map(change, message):
    crystal = lattice(fcc("A", "B").cell, [[0, 0, 0]], [("Al", "Cu")])
    atoms = bulk("Al", a=4.0, cubic=True) * (2, 1, 1)
    change(atoms)
    with pytest.raises(ValueError, match=message):
        map_structure(crystal, atoms)


def test_an_empty_site_that_cannot_be():
    crystal = rocksalt()
    atoms = as_atoms(crystal, Supercell(((2, 0, 0), (0, 2, 0), (0, 0, 2)), 2), np.zeros(16, int))
    with pytest.raises(ValueError, match="no atom on a site .basis site 1. that cannot be vacant"):
        map_structure(crystal, atoms[:-1])


def test_nothing_to_fit(problem):
    truth, train, energies, *_ = problem
    crystal, some = truth.lattice, truth.orbits
    for arguments, message in [
        ((crystal, some, [], []), "at least one structure"),
        ((crystal, some, train, energies[:-1]), "give one for each"),
        ((crystal, some, train, np.where(np.arange(60) == 3, np.nan, energies)), "structure 3 is NaN"),
        ((crystal, some, train), "carry no label"),
        ((crystal, some[:2], train, energies), "no orbit of two or more sites"),
        ((crystal, some, train, energies, "lasso"), "'brr' or 'ard'"),
        ((crystal, some, train, energies, "brr", None, np.zeros(len(some))), "positive numbers"),
        ((crystal, some, [train[0]] * 5, energies[:5]), "other compositions"),
        ((crystal, some, [bulk("Al", a=4.0)]), "no energy, forces or stress"),
        ((crystal, some, [bulk("Fe", "fcc", a=4.0)]), "structure 0 does not map"),
    ]:
        with pytest.raises(ValueError, match=message):
            fit_expansion(*arguments)
