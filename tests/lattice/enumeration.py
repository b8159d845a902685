"""Small lattice models, and their exact averages from all states; independent of the sampler's way to energies."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np

from haljax.lattice.monte_carlo import Counters
from haljax.lattice.units import KB


def ising(J, field=0.0, axes=((1, 0, 0), (0, 1, 0))):
    """Terms of ``E = -J sum s s' - h sum s`` per cell, s = 1 - 2 p."""
    terms = [(-J * len(axes) - field, ()), ((4 * J * len(axes) + 2 * field) * 1.0, ((0, 0, 0, 0, 1),))]
    return tuple(terms + [(-4 * J, ((0, 0, 0, 0, 1), (*axis, 0, 1))) for axis in axes])


def staggered(supercell, axes=(0, 1, 2)):
    """Composition and the order parameter that alternates from site to site along the axes."""
    cells = supercell.sites()[:, :3]
    sign = 1 - 2 * (cells[:, list(axes)].sum(axis=1) % 2)
    return Counters(np.stack([np.ones(len(cells), int), sign]), (1, 1), len(cells))


def all_states(n_sites, n_species=2):
    """(n_species^n_sites, n_sites)"""
    return np.array(list(itertools.product(range(n_species), repeat=n_sites)), np.int8)


def energies(terms, supercell, occupation):
    """(...,) eV per cell, float64, term by term and cell by cell."""
    total = np.zeros(occupation.shape[:-1])
    for coefficient, factors in terms:
        product = np.ones((*occupation.shape[:-1], supercell.n_cells))
        for *site, k in factors:
            product = product * (occupation[..., supercell.neighbours([site])[:, 0]] == k)
        total += coefficient * product.mean(axis=-1)
    return total


def values(counters, occupation):
    """(..., d) order parameters."""
    return np.stack(
        [(occupation == k) @ w / counters.n_counted for w, k in zip(counters.weights, counters.species, strict=True)],
        axis=-1,
    )


class Exact(NamedTuple):
    eta: np.ndarray
    energy: float
    covariance: np.ndarray  # of eta
    energy_variance: float


def averages(eta, energy, n_cells, temperature, kappa, phi, mu=0.0, weights=1.0):
    """Under one window's conditions, from states with eta (n, d), energy (n,) eV per cell and weights (n,)."""
    potential = energy + ((eta - kappa) ** 2) @ np.asarray(phi) - eta @ np.broadcast_to(mu, eta.shape[1])
    exponent = -n_cells * potential / (KB * temperature)
    p = weights * np.exp(exponent - exponent.max())
    p /= p.sum()
    mean, e = p @ eta, p @ energy
    return Exact(mean, e, (p[:, None] * (eta - mean)).T @ (eta - mean), p @ (energy - e) ** 2)


def check(z, limit=4.0):
    """z-scores (n,) or (n, d): none beyond the limit (4 sigma), and error bars that are honest on the whole."""
    z = np.asarray(z)
    assert np.all(np.isfinite(z))
    assert np.abs(z).max() < limit, np.abs(z).max()
    n = z.size
    # chi^2 of n independent numbers has variance 2 n; correlated ones (order parameters of one window) a few times that
    assert abs(np.mean(z**2) - 1) < 4 * np.sqrt(4 / n), (np.mean(z**2), n)
