"""The seven order parameters of LixCoO2's zigzag: 32 sublattices, the even half-cube, and free energies on it."""

from itertools import permutations, product

import jax
import jax.numpy as jnp
import numpy as np

from haljax.free_energy import criteria
from haljax.free_energy.data import empty
from haljax.free_energy.mean_field import mean_field
from haljax.lattice.polytope import from_sublattices

SIGNS = np.array([s for s in product((1, -1), repeat=6) if np.prod(s) == 1])
PATTERNS = np.column_stack([np.ones(32), SIGNS]).T
DOMAIN = from_sublattices(PATTERNS.T)
WELL = np.array([[0.5, 0.5, 0, 0, 0, 0, 0]])


def ordering(eta):
    """Favours one order parameter at a time, at half filling: six wells and their opposites."""
    square = eta[1:] ** 2
    return 0.8 * (eta[0] - 0.5) ** 2 - 0.35 * jnp.sum(square) + 0.4 * (jnp.sum(square) ** 2 - jnp.sum(square**2))


ZIGZAG = mean_field(ordering, PATTERNS)
IDEAL = mean_field(lambda eta: 0.0 * eta[0], PATTERNS)


def signed_permutations():
    """Subgroup of W(D6) on (eta_0, ..., eta_6), order 384: permutations that keep three pairs, and even signs of pairs
    that leave the half-cube and every function of the squares alone."""
    pairs = ((1, 2), (3, 6), (4, 5))
    group = []
    for order in permutations(range(3)):
        for swap in product((0, 1), repeat=3):
            for signs in product((1, -1), repeat=3):
                matrix = np.zeros((7, 7))
                matrix[0, 0] = 1
                for i, j in enumerate(order):
                    source = pairs[j][::-1] if swap[i] else pairs[j]
                    for target, origin in zip(pairs[i], source, strict=True):
                        matrix[target, origin] = signs[i]
                group.append(matrix)
    return np.array(group)


GROUP = signed_permutations()


def view(surface=None, labels=None, latest=None, candidates=None, **others):
    """A view of the half-cube at 300 K with a few hundred candidates."""

    if candidates is None:
        candidates = criteria.fill(jax.random.key(99), DOMAIN, 320)
    none = empty(7)
    return criteria.View(
        DOMAIN,
        300.0,
        candidates,
        none if labels is None else labels,
        none if latest is None else latest,
        surface,
        **others,
    )


class Ensemble:
    """Mean fields as members, with a spread."""

    def __init__(self, *fields):
        self.fields = fields
        self.members = len(fields)

    def member(self, k):
        return self.fields[k]

    def _mean(self, name, eta, temperature):
        return jnp.mean(jnp.stack([getattr(f, name)(eta, temperature) for f in self.fields]), axis=0)

    def free_energy(self, eta, temperature):
        return self._mean("free_energy", eta, temperature)

    def chemical_potential(self, eta, temperature):
        return self._mean("chemical_potential", eta, temperature)

    def hessian(self, eta, temperature):
        return self._mean("hessian", eta, temperature)

    def spread(self, eta, temperature):
        mu = jnp.stack([f.chemical_potential(eta, temperature) for f in self.fields])
        return mu.mean(0), mu.std(0)


jax.tree_util.register_pytree_node(Ensemble, lambda e: (e.fields, None), lambda _, fields: Ensemble(*fields))
