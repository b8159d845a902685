"""The fixed repulsive core: ZBL screened nuclear repulsion, switched off before bonding distances."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from haljax.ace.radial import smooth_step

COULOMB = 14.399645478425668  # e^2 / (4 pi eps0) in eV Å (CODATA 2018)


def zbl(r: jax.Array, z_i: jax.Array, z_j: jax.Array) -> jax.Array:
    """Ziegler-Biersack-Littmark pair energy, eV, of nuclei of charge ``z_i`` and ``z_j`` at ``r`` Å.

    Source: Ziegler, Biersack, Littmark, *The Stopping and Range of Ions in Solids* (1985); the
    coefficients as printed in the LAMMPS manual, pair_style zbl.
    """
    screening = 0.46850 / (z_i**0.23 + z_j**0.23)
    x = r / screening
    phi = (
        0.18175 * jnp.exp(-3.19980 * x)
        + 0.50986 * jnp.exp(-0.94229 * x)
        + 0.28022 * jnp.exp(-0.40290 * x)
        + 0.02817 * jnp.exp(-0.20162 * x)
    )
    return COULOMB * z_i * z_j / r * phi


def switched_zbl(r: jax.Array, z_i: jax.Array, z_j: jax.Array, r_in: jax.Array, r_out: jax.Array) -> jax.Array:
    """ZBL times a switch that is 1 below ``r_in`` and 0 above ``r_out`` (Å); monotonically repulsive."""
    return zbl(r, z_i, z_j) * smooth_step(r, r_out, r_in)  # from the far end: 1 - step would cancel there


def core_radii(numbers: tuple[int, ...], inner: float, outer: float) -> tuple[np.ndarray, np.ndarray]:
    """(Z, Z) inner and outer radii in Å, as fractions of the sum of the covalent radii."""
    from ase.data import covalent_radii

    radius = covalent_radii[np.array(numbers)]
    total = radius[:, None] + radius[None, :]
    return inner * total, outer * total
