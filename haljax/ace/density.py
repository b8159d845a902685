"""Functions of the local density: what a basis of finite order may leave out, so that its error can be seen to grow.

A linear model is certain wherever its functions are, also where it cannot represent the reference. Energies of
expanded or compressed cells, of surfaces and of close approaches are wrong for that reason, and the posterior of the
coefficients alone does not know it. So the spread of a prediction counts a further term that the mean does not have: a
Gaussian process of the density rho around each atom, with the squared-exponential covariance
``A^2 exp(-(y - y')^2 / 2 l^2)``, y a function of rho / rho_0, conditioned on the same data. It is expanded in its first
eight functions, ``A exp(-u^2/2) u^k / sqrt(k!)``, ``u = y / l``, for each element and for three choices of density and
y (`CHANNELS`): a density of all neighbours alike, which follows the volume an atom; one of the nearest neighbours, as
in the embedding energy of an embedded-atom potential (Daw & Baskes, Phys. Rev. B 29, 6443 (1984),
doi:10.1103/PhysRevB.29.6443); and its logarithm, which still changes where few neighbours are left.

The constants were chosen on alloys by EMT (benchmarks/calibration.py): bars that hold off the data and are not wide.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from haljax.ace.basis import ACEBasis

Array = Any  # numpy or JAX

N_POWERS = 8
REST = 0.05  # added to rho / rho_0, so that an isolated atom has finite functions


class Channel(NamedTuple):
    """A density and a process of it.

    Attributes
    ----------
    decay : of the density with the distance, in units of the bond length.
    power : y = (x^power - x_0^power) / power, x = rho / rho_0; 0 stands for the logarithm.
    length : change of y over which energies are unrelated. amplitude : eV an atom.
    """

    decay: float
    power: int
    length: float
    amplitude: float


CHANNELS = (Channel(0.0, 0, 0.15, 0.3), Channel(3.0, 1, 0.3, 0.6), Channel(3.0, 0, 1.0, 1.0))


def n_density(basis: ACEBasis) -> int:
    """Number of these functions."""
    return len(CHANNELS) * basis.n_species * N_POWERS


def densities(basis: ACEBasis, d: jax.Array, z_i: jax.Array, z_j: jax.Array) -> jax.Array:
    """The densities around each atom, (channels, N), without unit; 0 for padded atoms.

    Arguments as in `haljax.ace.features`.
    """
    r0 = jnp.asarray(basis.bond_lengths, d.dtype)[jnp.maximum(z_i, 0)[:, None], jnp.maximum(z_j, 0)]
    r = jnp.sqrt(jnp.sum(d * d, axis=-1))
    window = jnp.where((r < basis.cutoff) & (z_j >= 0), (1 - (r / basis.cutoff) ** 2) ** 2, 0.0)
    found = {decay: jnp.sum(window * jnp.exp(-decay * (r / r0 - 1)), axis=1) for decay in {c.decay for c in CHANNELS}}
    return jnp.stack([found[channel.decay] for channel in CHANNELS])


def density_features(basis: ACEBasis, reference: Array, d: jax.Array, z_i: jax.Array, z_j: jax.Array) -> jax.Array:
    """Functions of the density summed over the atoms of a structure, (`n_density`,) eV.

    Parameters
    ----------
    reference : (channels, Z) mean densities rho_0 of each element in the data; 0 where it has none.
    """
    reference = jnp.asarray(reference, d.dtype)
    own = (z_i[:, None] == jnp.arange(basis.n_species, dtype=z_i.dtype)[None, :]).astype(d.dtype)
    parts = []
    for channel, rho, mean in zip(CHANNELS, densities(basis, d, z_i, z_j), reference, strict=True):
        known = mean[jnp.maximum(z_i, 0)]
        x = jnp.where(known > 0, rho / jnp.where(known > 0, known, 1.0), 1.0) + REST
        p = channel.power
        y = (x**p - (1 + REST) ** p) / p if p else jnp.log(x / (1 + REST))
        u = y / channel.length
        power = channel.amplitude * jnp.exp(-0.5 * u * u)
        values = []
        for k in range(1, N_POWERS + 1):
            power = power * u
            values.append(power / math.sqrt(math.factorial(k)))
        parts.append(jnp.einsum("kn,nz->zk", jnp.stack(values), own, precision=jax.lax.Precision.HIGHEST))
    return jnp.stack(parts).reshape(-1)


def mean_densities(basis: ACEBasis, found: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Means over the atoms of each element, (channels, Z), from densities (channels, N) and species (N,) of each."""
    rho = np.concatenate([values for values, _ in found], axis=1)
    species = np.concatenate([z for _, z in found])
    means = np.zeros((len(rho), basis.n_species))
    for z in np.unique(species[species >= 0]):
        means[:, z] = rho[:, species == z].mean(axis=1)
    return means
