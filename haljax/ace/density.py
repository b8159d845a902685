"""Functions of the local density: what a basis of finite order may leave out, so that its error can be seen to grow.

A linear model is certain wherever its functions are, also where it cannot represent the reference. Energies of
expanded or compressed cells, of surfaces and of close approaches are wrong for that reason, and the posterior of the
coefficients alone does not know it. So the spread of a prediction counts a further term that the mean does not have: a
Gaussian process of the density rho around each atom, with the squared-exponential covariance
``A^2 exp(-(x - x')^2 / 2 l^2)``, ``x = rho / rho_0 - 1``, conditioned on the same data. It is expanded in its first
eight functions, ``A exp(-u^2/2) u^k / sqrt(k!)``, ``u = x / l``, of each element and of two densities: one counts all
neighbours alike, the other the nearest most, as the embedding energy of an embedded-atom potential does
(Daw & Baskes, Phys. Rev. B 29, 6443 (1984), doi:10.1103/PhysRevB.29.6443).

The constants were chosen on alloys by EMT (benchmarks/calibration.py): bars that hold off the data and are not wide.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from haljax.ace.basis import ACEBasis

Array = Any  # numpy or JAX

N_POWERS = 8
DECAYS = (0.0, 3.0)  # of the two densities with the distance, in units of the bond length
AMPLITUDE, LENGTH = 1.0, 0.3  # eV an atom; relative change of the density over which energies are unrelated


def n_density(basis: ACEBasis) -> int:
    """Number of these functions."""
    return len(DECAYS) * basis.n_species * N_POWERS


def densities(basis: ACEBasis, d: jax.Array, z_i: jax.Array, z_j: jax.Array) -> jax.Array:
    """The densities around each atom, (2, N), without unit; 0 for padded atoms.

    Arguments as in `haljax.ace.features`.
    """
    r0 = jnp.asarray(basis.bond_lengths, d.dtype)[jnp.maximum(z_i, 0)[:, None], jnp.maximum(z_j, 0)]
    r = jnp.sqrt(jnp.sum(d * d, axis=-1))
    window = jnp.where((r < basis.cutoff) & (z_j >= 0), (1 - (r / basis.cutoff) ** 2) ** 2, 0.0)
    return jnp.stack([jnp.sum(window * jnp.exp(-decay * (r / r0 - 1)), axis=1) for decay in DECAYS])


def density_features(basis: ACEBasis, reference: Array, d: jax.Array, z_i: jax.Array, z_j: jax.Array) -> jax.Array:
    """Functions of the density summed over the atoms of a structure, (`n_density`,) eV.

    Parameters
    ----------
    reference : (2, Z) mean densities rho_0 of each element in the data; 0 where it has none.
    """
    reference = jnp.asarray(reference, d.dtype)
    rho = densities(basis, d, z_i, z_j)
    known = reference[:, jnp.maximum(z_i, 0)]
    u = jnp.where(known > 0, (rho / jnp.where(known > 0, known, 1.0) - 1) / LENGTH, 0.0)  # (2, N)
    envelope = AMPLITUDE * jnp.exp(-0.5 * u * u)
    values, power = [], envelope
    for k in range(1, N_POWERS + 1):
        power = power * u
        values.append(power / math.sqrt(math.factorial(k)))
    own = (z_i[:, None] == jnp.arange(basis.n_species, dtype=z_i.dtype)[None, :]).astype(d.dtype)
    summed = jnp.einsum("krn,nz->rzk", jnp.stack(values), own, precision=jax.lax.Precision.HIGHEST)
    return summed.reshape(-1)


def mean_densities(basis: ACEBasis, found: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """(2, Z) means over all atoms of each element, from the densities (2, N) and species (N,) of structures."""
    rho = np.concatenate([values for values, _ in found], axis=1)
    species = np.concatenate([z for _, z in found])
    return np.stack(
        [rho[:, species == z].mean(axis=1) if np.any(species == z) else np.zeros(2) for z in range(basis.n_species)],
        axis=1,
    )
