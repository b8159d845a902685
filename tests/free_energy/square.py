"""A composition and two order parameters on four sublattices, with the symmetry of the square."""

from itertools import product

import jax
import numpy as np

from haljax.free_energy.data import labels
from haljax.free_energy.network import Network
from haljax.lattice.ideal import negentropy
from haljax.lattice.symmetry import invariants
from haljax.lattice.units import KB

PATTERNS = np.array([[1.0, a, b] for a, b in product((1, -1), repeat=2)]).T
GROUP = np.array(
    [
        np.block([[np.ones((1, 1)), np.zeros((1, 2))], [np.zeros((2, 1)), np.diag(signs) @ np.eye(2)[list(order)]]])
        for order in ((0, 1), (1, 0))
        for signs in product((1.0, -1.0), repeat=2)
    ]
)
INVARIANTS = invariants(GROUP, 4)


def network(**changes):
    return Network(INVARIANTS, PATTERNS, **({"widths": (24, 24)} | changes))


def inside(n, seed=0, margin=0.01):
    """n points (n, 3) at which no sublattice is emptier or fuller than the margin."""
    x = np.random.default_rng(seed).uniform(margin, 1 - margin, (20 * n, 4))
    eta = x @ PATTERNS.T / 4
    fractions = eta @ PATTERNS
    return eta[np.all((fractions > margin) & (fractions < 1 - margin), axis=1)][:n]


def exact(eta, T):
    """g () at eta (3,): with an interaction that depends on temperature, and vanishes at eta = 0 with its entropy."""
    c, square = eta[0], eta[1] ** 2 + eta[2] ** 2
    interaction = 0.4 * c * (c - 1) - 0.15 * square + 0.3 * eta[1] ** 2 * eta[2] ** 2 - 0.02
    return KB * T * negentropy(PATTERNS, eta) + interaction + 60.0 / T * c**2 * (1 - c) * (1 + 4 * square)


def exact_energy(eta, T):
    """d(beta g)/d beta ()."""
    return jax.grad(lambda beta: beta * exact(eta, 1 / (KB * beta)))(1 / (KB * T))


def exact_labels(n, temperatures, seed=0, energies=False, hessians=False, margin=0.01):
    eta = inside(n, seed, margin)
    T = np.resize(np.asarray(temperatures, float), n)
    mu = np.asarray(jax.vmap(jax.grad(exact))(eta, T))
    return labels(
        eta,
        T,
        mu,
        energy=np.asarray(jax.vmap(exact_energy)(eta, T)) if energies else None,
        hessian=np.asarray(jax.vmap(jax.hessian(exact))(eta, T)) if hessians else None,
    )
