"""No attractive hole closer than the data: where a fit has one, it is held up by the repulsion of the nuclei.

Nothing in the data determines the pair terms below the shortest distance, so that they may fall there before the core
takes over. Where the energy of a dimer falls as the atoms approach, the fit is made again with forces of the
Ziegler-Biersack-Littmark repulsion as further labels of that pair, at first with their own size as their error and then
with ever less, until it rises all the way. Fits that do not need it are untouched.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from haljax.ace import ACEBasis, core_energy, descriptor
from haljax.ace.core import zbl

Array = Any  # numpy or JAX

POINTS = 200  # distances at which the energy of a dimer is looked at
STEP = 1e-4  # Å, of differences
LABELS = 12  # distances with a force of the repulsion, for each pair
FALL = 0.01  # eV by which an energy may fall before it is a hole
COLLAPSE = 1.0  # eV by which the energy of a triplet may fall: bonds of three atoms may be shorter than in the data
TRIPLETS, SCALES = 64, 40  # random triplets, and how many sizes of each are looked at
ERRORS = (1.0, 0.3, 0.1, 0.03, 0.01)  # of these forces, relative to their size, tried in turn


@partial(jax.jit, static_argnums=0)
def dimer(basis: ACEBasis, radii: Array, z: Array, r: Array) -> tuple[jax.Array, jax.Array]:
    """Energy of the core (n,) eV and descriptor (n, M) of two atoms of species z (2,) at distances r (n,) Å."""

    def one(r: jax.Array) -> tuple[jax.Array, jax.Array]:
        along = jnp.stack([r, -r])[:, None, None] * jnp.array([1.0, 0.0, 0.0])[None, None, :]
        arguments = basis, along, z, z[::-1, None]
        return core_energy(*arguments, radii), descriptor(*arguments, radii)

    return jax.vmap(one)(r)


def _slopes(basis: ACEBasis, radii: Array, z: Array, r: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Derivatives of `dimer` by the distances r (n,), n at most half of `POINTS`, to some 1e-7 of their size.

    Differences rather than jvp: they need no further program, which takes seconds to compile.
    """
    ends = np.resize(np.concatenate([r + STEP, r - STEP]), POINTS)
    return tuple(
        (values[: len(r)] - values[len(r) : 2 * len(r)]) / (2 * STEP)
        for values in map(np.asarray, dimer(basis, radii, z, jnp.asarray(ends)))
    )


def falls(basis: ACEBasis, coefficients: np.ndarray, radii: np.ndarray, shortest: np.ndarray) -> dict[int, float]:
    """Pairs of elements (index into ``basis.pairs``) whose dimer energy falls below the data: by how much, eV.

    Parameters
    ----------
    shortest : (Z, Z) Å, shortest distances in the data; pairs without one are looked at within their core.
    """
    found = {}
    for k, (a, b) in enumerate(basis.pairs):
        start = shortest[a, b] if np.isfinite(shortest[a, b]) else radii[1, a, b]
        r = np.linspace(start, 0.3 * radii[0, a, b], POINTS)
        core, functions = dimer(basis, jnp.asarray(radii), jnp.array([a, b]), jnp.asarray(r))
        energy = np.asarray(core) + np.asarray(functions) @ coefficients
        fall = float(np.max(np.maximum.accumulate(energy) - energy))
        if fall > FALL:
            found[k] = fall
    return found


def collapses(basis: ACEBasis, coefficients: np.ndarray, radii: np.ndarray, near: np.ndarray) -> dict[str, float]:
    """Triplets of elements whose energy falls by more than `COLLAPSE` as they shrink: "Al-Cu-Cu" -> by how much, eV.

    Random triplets of atoms are scaled from distances about the shortest of the data, ``near`` (Z, Z) Å, to a third of
    them, where many-body terms join in. Triplets with a pair that falls by itself are left out: see `falls`.
    """
    pairs = {basis.pairs[k] for k in falls(basis, coefficients, radii, near)}
    rng = np.random.default_rng(0)
    z = rng.integers(0, basis.n_species, (TRIPLETS, 3))
    angle, stretch = np.deg2rad(rng.uniform(40, 180, TRIPLETS)), rng.uniform(1, 1.15, (TRIPLETS, 2))
    first, second = near[z[:, 0], z[:, 1]] * stretch[:, 0], near[z[:, 0], z[:, 2]] * stretch[:, 1]
    positions = np.zeros((TRIPLETS, 3, 3))
    positions[:, 1, 0] = first
    positions[:, 2, 0], positions[:, 2, 1] = second * np.cos(angle), second * np.sin(angle)
    arrays = jnp.asarray(radii), jnp.asarray(coefficients), jnp.asarray(z), jnp.asarray(positions)
    energy = np.asarray(_shrunk(basis, *arrays))
    found: dict[str, float] = {}
    for species, fall in zip(z, np.max(np.maximum.accumulate(energy, axis=1) - energy, axis=1), strict=True):
        i, j, k = sorted(species.tolist())
        if fall > COLLAPSE and not pairs & {(i, j), (i, k), (j, k)}:
            name = "-".join(basis.elements[z] for z in (i, j, k))
            found[name] = max(float(fall), found.get(name, 0.0))
    return found


@partial(jax.jit, static_argnums=0)
def _shrunk(basis: ACEBasis, radii: Array, coefficients: Array, z: Array, positions: Array) -> jax.Array:
    """Energies (n, SCALES) eV of triplets, positions (n, 3, 3) Å, without E0, from their size down to a third of it."""
    others = jnp.array([[1, 2], [0, 2], [0, 1]])

    def one(scale: jax.Array, z: jax.Array, positions: jax.Array) -> jax.Array:
        d = scale * (positions[others] - positions[:, None, :])
        arguments = basis, d, z, z[others]
        return core_energy(*arguments, radii) + coefficients @ descriptor(*arguments, radii)

    scales = jnp.linspace(1.0, 0.35, SCALES)
    along = jax.vmap(one, in_axes=(0, None, None))
    return jax.lax.map(lambda triplet: along(scales, *triplet), (z, positions))


def repulsion_rows(
    basis: ACEBasis, radii: np.ndarray, shortest: np.ndarray, errors: dict[int, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Rows (n, M) and targets (n,) of the slope of dimer energies, in units of their error, zero for other pairs.

    Parameters
    ----------
    errors : of each pair that needs them, relative to the size of the force.
    """
    rows, targets = np.zeros((len(basis.pairs), LABELS, len(basis))), np.zeros((len(basis.pairs), LABELS))
    for k, error in errors.items():
        a, b = basis.pairs[k]
        end = shortest[a, b] if np.isfinite(shortest[a, b]) else radii[1, a, b]
        r = np.linspace(radii[0, a, b], 0.97 * end, LABELS)
        core, functions = _slopes(basis, jnp.asarray(radii), jnp.array([a, b]), r)
        wanted = jax.vmap(jax.grad(partial(_zbl, float(basis.numbers[a]), float(basis.numbers[b]))))(jnp.asarray(r))
        size = error * np.abs(np.asarray(wanted))
        rows[k] = functions / size[:, None]
        targets[k] = (np.asarray(wanted) - core) / size
    return rows.reshape(-1, len(basis)), targets.reshape(-1)


def _zbl(first: float, second: float, r: jax.Array) -> jax.Array:
    return zbl(r, jnp.asarray(first), jnp.asarray(second))
