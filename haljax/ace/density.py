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

_HIGHEST = jax.lax.Precision.HIGHEST  # else a GPU may multiply float32 as TF32

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
    r = jnp.sqrt(jnp.sum(d * d, axis=-1))
    return jnp.sum(_from_neighbours(basis, r, z_i, z_j), axis=2)


def density_features(basis: ACEBasis, reference: Array, d: jax.Array, z_i: jax.Array, z_j: jax.Array) -> jax.Array:
    """Functions of the density summed over the atoms of a structure, (`n_density`,) eV.

    Parameters
    ----------
    reference : (channels, Z) mean densities rho_0 of each element in the data; 0 where it has none.
    """
    return _by_element(basis, _of_density(basis, reference, densities(basis, d, z_i, z_j), z_i)[0], z_i)


def density_gradient(
    basis: ACEBasis, reference: Array, d: jax.Array, z_i: jax.Array, z_j: jax.Array, index: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`density_features` (F,) with derivatives by the atoms (N, 3, F) and by the strain (3, 3, F).

    Arguments and order of the derivatives as in `haljax.ace.features.descriptor_gradient`; the chain rule is closed
    centre by centre, for the same reason.
    """
    n_atoms, dtype = len(z_i), d.dtype
    index = jnp.maximum(index, 0)  # empty slots add zeros to atom 0
    r = jnp.sqrt(jnp.sum(d * d, axis=-1))
    parts, pull = jax.jvp(lambda r: _from_neighbours(basis, r, z_i, z_j), (r,), (jnp.ones_like(r),))
    rho = jnp.sum(parts, axis=2)
    values, slopes = _of_density(basis, reference, rho, z_i)
    unit = d / r[..., None]

    def add(i, total):
        """What centre i adds: rows 0 ... N - 1 to the atoms' derivatives, the last three to those by the strain."""
        along = pull[:, i].T[:, None, :] * unit[i][:, :, None]  # (K, 3, channels)
        sums = jnp.concatenate([jnp.full((1, len(along)), -1, dtype), d[i].T])
        along = jnp.concatenate([along, jnp.einsum("tj,jac->tac", sums, along, precision=_HIGHEST)])
        places = jnp.concatenate([index[i], i[None], n_atoms + jnp.arange(3, dtype=index.dtype)])
        return total.at[z_i[i], places].add(along[..., None] * slopes[None, None, :, :, i])

    start = jnp.zeros((basis.n_species, n_atoms + 3, 3, len(CHANNELS), N_POWERS), dtype)
    last = jnp.max(jnp.where(z_i >= 0, jnp.arange(n_atoms, dtype=index.dtype) + 1, 0))  # atoms padded at the end
    total = jnp.moveaxis(jax.lax.fori_loop(jnp.zeros_like(last), last, add, start), 0, 3)
    total = total.reshape(n_atoms + 3, 3, -1)
    return _by_element(basis, values, z_i), total[:n_atoms], jnp.swapaxes(total[n_atoms:], 0, 1)


def _from_neighbours(basis: ACEBasis, r: jax.Array, z_i: jax.Array, z_j: jax.Array) -> jax.Array:
    """What each neighbour adds to the densities around each atom, (channels, N, K)."""
    r0 = jnp.asarray(basis.bond_lengths, r.dtype)[jnp.maximum(z_i, 0)[:, None], jnp.maximum(z_j, 0)]
    window = jnp.where((r < basis.cutoff) & (z_j >= 0), (1 - (r / basis.cutoff) ** 2) ** 2, 0.0)
    found = {decay: window * jnp.exp(-decay * (r / r0 - 1)) for decay in {c.decay for c in CHANNELS}}
    return jnp.stack([found[channel.decay] for channel in CHANNELS])


def _of_density(basis: ACEBasis, reference: Array, rho: jax.Array, z_i: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The functions of each channel for each atom, (channels, powers, N) eV, and their derivatives by its density.

    With f_k = A exp(-u^2/2) u^k / sqrt(k!) the derivative by u is sqrt(k) f_(k-1) - sqrt(k+1) f_(k+1).
    """
    known = jnp.asarray(reference, rho.dtype)[:, jnp.maximum(z_i, 0)]
    u, slope = jax.jvp(lambda rho: _reduced(rho, known), (rho,), (jnp.ones_like(rho),))
    f = [jnp.array([[c.amplitude] for c in CHANNELS], rho.dtype) * jnp.exp(-0.5 * u * u)]
    for k in range(1, N_POWERS + 2):
        f.append(f[-1] * u / math.sqrt(k))
    slopes = [math.sqrt(k) * f[k - 1] - math.sqrt(k + 1) * f[k + 1] for k in range(1, N_POWERS + 1)]
    return jnp.stack(f[1:-1], axis=1), jnp.stack(slopes, axis=1) * slope[:, None]


def _reduced(rho: jax.Array, known: jax.Array) -> jax.Array:
    """u of each channel and atom, (channels, N)."""
    x = jnp.where(known > 0, rho / jnp.where(known > 0, known, 1.0), 1.0) + REST
    y = [
        (x**c.power - (1 + REST) ** c.power) / c.power if c.power else jnp.log(x / (1 + REST))
        for c, x in zip(CHANNELS, x, strict=True)
    ]
    return jnp.stack([y / c.length for c, y in zip(CHANNELS, y, strict=True)])


def _by_element(basis: ACEBasis, values: jax.Array, z_i: jax.Array) -> jax.Array:
    """Sums over the atoms of each element, (F,), of functions (channels, powers, N)."""
    own = (z_i[:, None] == jnp.arange(basis.n_species, dtype=z_i.dtype)[None, :]).astype(values.dtype)
    return jnp.einsum("ckn,nz->czk", values, own, precision=_HIGHEST).reshape(-1)


def mean_densities(basis: ACEBasis, found: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Means over the atoms of each element, (channels, Z), from densities (channels, N) and species (N,) of each."""
    rho = np.concatenate([values for values, _ in found], axis=1)
    species = np.concatenate([z for _, z in found])
    means = np.zeros((len(rho), basis.n_species))
    for z in np.unique(species[species >= 0]):
        means[:, z] = rho[:, species == z].mean(axis=1)
    return means
