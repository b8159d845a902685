"""Values of the basis functions and their derivatives, from neighbour vectors in the dense (N, K) layout.

Everything is a function of ``d`` (N, K, 3), the vectors to the neighbours in Å, of the centre species
``z_i`` (N,) and of the neighbour species ``z_j`` (N, K). Empty slots carry species -1 and a vector longer
than the cutoff, so they contribute nothing and have no gradient. ``radii`` (2, Z, Z) Å are the inner and outer radii
of the repulsive core (`haljax.ace.core`), an array that may be traced: other radii compile nothing anew. None stands
for ``basis.core_radii``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from haljax.ace.basis import P_ENVELOPE, ACEBasis
from haljax.ace.core import switched_zbl
from haljax.ace.harmonics import real_harmonics
from haljax.ace.radial import agnesi, polynomials, smooth_step

Array = Any  # numpy or JAX

CPU_BLOCK, DEVICE_BLOCK = 64, 16384  # atoms whose intermediate values are held at a time: cache, and memory
RECOMPUTED = 256  # atoms beyond which it pays to compute these values anew for a reverse pass

_HIGHEST = jax.lax.Precision.HIGHEST  # else a GPU may multiply float32 as TF32


def _of_pair(table: Array, z_i: jax.Array, z_j: jax.Array, dtype) -> jax.Array:
    """Look up a (Z, Z) table for every neighbour, (N, K); a constant when there is one element."""
    if table.size == 1:
        return jnp.full(z_j.shape, table[0, 0], dtype)
    return jnp.asarray(table, dtype)[jnp.maximum(z_i, 0)[:, None], jnp.maximum(z_j, 0)]


def _radii(basis: ACEBasis, radii: Array | None) -> Array:
    """The radii (2, Z, Z) of the core, those of the basis where None."""
    return basis.core_radii if radii is None else radii


def _distance(d: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.sum(d * d, axis=-1))


def _by_species(z: jax.Array, n_species: int, dtype) -> jax.Array:
    """(..., Z) indicator of the species; all zero for empty slots."""
    return (z[..., None] == jnp.arange(n_species, dtype=z.dtype).reshape((1,) * z.ndim + (-1,))).astype(dtype)


def pair_functions(
    basis: ACEBasis, r: jax.Array, z_i: jax.Array, z_j: jax.Array, rolled: bool = False, radii: Array | None = None
) -> jax.Array:
    """Radial functions of the pair terms at distances ``r`` (N, K) Å -> (N, K, max_degree).

    Discrete Legendre polynomials of the Agnesi(1, 3) distance under the envelope
    s^-2 - s_c^-2 + 2 s_c^-3 (s - s_c), s = r / r0 (ACE1x), brought to zero inside the repulsive core.
    """
    r0 = _of_pair(basis.bond_lengths, z_i, z_j, r.dtype)
    r_in, r_out = (_of_pair(radius, z_i, z_j, r.dtype) for radius in _radii(basis, radii)[:2])
    s, s_cut = r / r0, basis.cutoff / r0
    x_cut = agnesi(s_cut, 1, 3)
    t = 2 * (agnesi(s, 1, 3) - x_cut) / (1 - x_cut) - 1
    safe = jnp.maximum(s, r_in / r0 / 2)  # the envelope's pole lies where the switch is zero
    envelope = safe**-2 - s_cut**-2 + 2 * s_cut**-3 * (safe - s_cut)
    weight = jnp.where(r < basis.cutoff, envelope * smooth_step(r, r_in, r_out), 0.0)
    return polynomials(t, basis.max_degree, 0, 0, rolled) * weight[..., None]


def radial_functions(
    basis: ACEBasis, r: jax.Array, z_i: jax.Array, z_j: jax.Array, rolled: bool = False, radii: Array | None = None
) -> jax.Array:
    """Radial functions R_n of the many-body terms, (N, K, n_max); zero beyond the cutoff and inside the core."""
    r0 = _of_pair(basis.bond_lengths, z_i, z_j, r.dtype)
    r_in = _of_pair(_radii(basis, radii)[0], z_i, z_j, r.dtype)
    x_cut = agnesi((basis.cutoff - r_in) / (r0 - r_in), 2, 4)
    x = agnesi((r - r_in) / (r0 - r_in), 2, 4)
    t = 1 - 2 * (x - x_cut) / (1 - x_cut)
    return polynomials(t, basis.tables.n_of_l[0], P_ENVELOPE, P_ENVELOPE, rolled)


def density(basis: ACEBasis, radial: jax.Array, angular: list[jax.Array], one_hot: jax.Array) -> jax.Array:
    """Atomic basis A_znlm(i) = sum_j delta(z, z_j) R_n(r_ij) Y_lm(r_ij), feature-major (n_channels, N)."""
    n_atoms, n_species, n_of_l = radial.shape[0], basis.n_species, basis.tables.n_of_l
    # l = 0 needs no product. Of the others two share one, with the radial functions that the lower needs: a few
    # products for nothing, but larger matrices, which take half the time on a CPU.
    isotropic = jnp.einsum("ikz,ikn->izn", one_hot, radial, precision=_HIGHEST) * math.sqrt(1 / (4 * math.pi))
    blocks = [isotropic.reshape(n_atoms, -1)]
    for lower in range(1, len(n_of_l), 2):
        count, pair = n_of_l[lower], angular[lower : lower + 2]
        by_species = one_hot[..., :, None] * radial[..., None, :count]
        stacked = by_species.reshape(*radial.shape[:2], n_species * count)
        both = jnp.einsum("ikn,ikm->inm", stacked, jnp.concatenate(pair, axis=-1), precision=_HIGHEST)
        both = both.reshape(n_atoms, n_species, count, -1)
        start = 0
        for degree in range(lower, lower + len(pair)):
            width = 2 * degree + 1
            block = both[:, :, : n_of_l[degree], start : start + width]
            blocks.append(block.reshape(n_atoms, -1))
            start += width
    return jnp.concatenate(blocks, axis=-1).T


def monomials(basis: ACEBasis, a: jax.Array) -> list[jax.Array]:
    """Products of the atomic basis, one (n, N) array a level: the l = 0 singles, then order 2, 3, ..."""
    tables = basis.tables
    levels = [a[: basis.n_species * tables.n_of_l[0]]]
    below = a
    for parents, factors in tables.levels:
        below = below[parents] * a[factors]
        levels.append(below)
    return levels


def couple(basis: ACEBasis, sums: jax.Array) -> jax.Array:
    """Rotation invariants from monomials: (n_monomials, ...) -> (n_functions of one centre, ...)."""
    tables = basis.tables
    weights = jnp.asarray(tables.weights, sums.dtype).reshape((-1,) + (1,) * (sums.ndim - 1))
    return jax.ops.segment_sum(
        weights * sums[tables.columns],
        tables.rows,
        num_segments=len(basis._many_body),
        indices_are_sorted=True,
    )


def coupled_slope(basis: ACEBasis, a: jax.Array) -> jax.Array:
    """Derivative of one atom's invariants by its density a (n_channels,): (n_channels, n_functions)."""
    slope = jnp.zeros((len(a), len(basis._many_body)), a.dtype)
    for rows, channels, weights in basis.tables.products:
        factors = a[channels]
        for t in range(channels.shape[1]):
            others = jnp.prod(jnp.delete(factors, t, axis=1, assume_unique_indices=True), axis=1)
            slope = slope.at[channels[:, t], rows].add(jnp.asarray(weights, a.dtype) * others)
    return slope


def descriptor(basis: ACEBasis, d: jax.Array, z_i: jax.Array, z_j: jax.Array, radii: Array | None = None) -> jax.Array:
    """Basis functions summed over the atoms of a structure, D (M,), so that E = c . D.

    A large structure is taken in blocks of atoms, whose intermediate values are computed anew for a reverse pass: they
    stay in cache, and memory does not grow with them.
    """
    blocks = in_blocks((d, z_i, z_j), ([2 * basis.cutoff, 0, 0], -1, -1), whole=RECOMPUTED)
    if len(blocks[0]) == 1:
        return _descriptor(basis, d, z_i, z_j, radii)
    one = jax.checkpoint(lambda block: _descriptor(basis, block[0], block[1], block[2], radii))
    start = jnp.zeros(len(basis), d.dtype)
    return jax.lax.scan(lambda total, block: (total + one(block), None), start, blocks)[0]


def energy_and_features(
    basis: ACEBasis,
    coefficients: jax.Array,
    d: jax.Array,
    z_i: jax.Array,
    z_j: jax.Array,
    radii: Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Repulsive core and ``coefficients`` (M,) . D in eV, and D (M,), of so few atoms that they need no blocks."""
    # Else XLA forms vectors, distances and radial functions, and slopes by them, anew in each of the many loops that
    # begin with one: twice the time.
    held = jax.lax.optimization_barrier
    d = held(d)
    features = _descriptor(basis, d, z_i, z_j, radii, held)
    return jnp.dot(coefficients, features, precision=_HIGHEST) + core_energy(basis, d, z_i, z_j, radii), features


def in_blocks(arrays: tuple[jax.Array, ...], fills: tuple[Any, ...], whole: int = 0) -> tuple[jax.Array, ...]:
    """Arrays (N, ...) in n blocks of equal size, (n, B, ...) each, filled up with ``fills``.

    Up to so many atoms are left ``whole``.
    """
    n_atoms, most = len(arrays[0]), CPU_BLOCK if jax.default_backend() == "cpu" else DEVICE_BLOCK
    n = 1 if n_atoms <= max(whole, most) else -(-n_atoms // most)
    size = -(-n_atoms // n)

    def split(a: jax.Array, fill: Any) -> jax.Array:
        rows = jnp.broadcast_to(jnp.asarray(fill, a.dtype), (n * size - n_atoms, *a.shape[1:]))
        return jnp.concatenate([a, rows]).reshape(n, size, *a.shape[1:])

    return tuple(map(split, arrays, fills))


def _descriptor(
    basis: ACEBasis,
    d: jax.Array,
    z_i: jax.Array,
    z_j: jax.Array,
    radii: Array | None,
    held: Callable[..., Any] = lambda values: values,
) -> jax.Array:
    """As `descriptor`, of one block; what is used more than once as ``held``."""
    tables, dtype = basis.tables, d.dtype
    r = held(_distance(d))
    centre, neighbour = _by_species(z_i, basis.n_species, dtype), _by_species(z_j, basis.n_species, dtype)
    pair = _pair_sums(basis, pair_functions(basis, r, z_i, z_j, radii=radii), centre, neighbour)
    if not tables.levels:
        return pair
    radial, unit = held(radial_functions(basis, r, z_i, z_j, radii=radii)), held(d / r[..., None])
    a = density(basis, radial, real_harmonics(unit, tables.l_max), neighbour)
    sums = jnp.concatenate([jnp.matmul(level, centre, precision=_HIGHEST) for level in monomials(basis, a)])
    return jnp.concatenate([pair, couple(basis, sums).T.reshape(-1)])


def _pair_sums(basis: ACEBasis, functions: jax.Array, centre: jax.Array, neighbour: jax.Array) -> jax.Array:
    """Half the sum over ordered neighbours, one block an unordered element pair."""
    in_block = jnp.stack(  # (N, K, blocks)
        [sum(centre[:, None, x] * neighbour[..., y] for x, y in {(a, b), (b, a)}) for a, b in basis.pairs],
        axis=-1,
    )
    return 0.5 * jnp.einsum("ikb,ikn->bn", in_block, functions, precision=_HIGHEST).reshape(-1)


def core_energy(basis: ACEBasis, d: jax.Array, z_i: jax.Array, z_j: jax.Array, radii: Array | None = None) -> jax.Array:
    """Energy of the fixed repulsive core, eV."""
    dtype = d.dtype
    numbers = jnp.asarray(basis.numbers, dtype)
    r_in, r_out = (_of_pair(radius, z_i, z_j, dtype) for radius in _radii(basis, radii)[:2])
    energy = switched_zbl(
        _distance(d), numbers[jnp.maximum(z_i, 0)][:, None], numbers[jnp.maximum(z_j, 0)], r_in, r_out
    )
    return 0.5 * jnp.sum(jnp.where(z_j >= 0, energy, 0.0))


def closeness(basis: ACEBasis, d: jax.Array, z_i: jax.Array, z_j: jax.Array, radii: Array | None = None) -> jax.Array:
    """How far atoms have come closer than in the data, (): 0 where no pair has.

    Each pair adds a smooth step from 0 at the distance ``radii[2]``, below which the data have none, to 1 at four
    fifths of it or at the core's outer radius. Without such distances 1.15 outer radii stand for them.
    """
    radii = _radii(basis, radii)
    outer = _of_pair(radii[1], z_i, z_j, d.dtype)
    near = _of_pair(radii[2], z_i, z_j, d.dtype) if len(radii) > 2 else 1.15 * outer
    steps = jnp.where(z_j >= 0, smooth_step(_distance(d), near, jnp.maximum(outer, 0.8 * near)), 0.0)
    return 0.5 * jnp.sum(steps)


def descriptor_gradient(
    basis: ACEBasis,
    d: jax.Array,
    z_i: jax.Array,
    z_j: jax.Array,
    index: jax.Array,
    radii: Array | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Descriptor with its derivatives, the rows of a design matrix.

    A neighbour enters the density of one atom alone. So the chain rule is closed atom by atom: the derivative of the
    invariants by the density, times that of the density along every neighbour vector; no reverse pass per function.

    Args:
        index: (N, K) index of each neighbour, -1 where empty.

    Returns:
        D (M,); dD/dR (N, 3, M) in 1/Å; the strain derivative dD/d(strain) (3, 3, M), row index the
        component that is displaced, column index the component it is proportional to.
    """
    tables, dtype, n_species = basis.tables, d.dtype, basis.n_species
    n_atoms, capacity = z_j.shape
    index = jnp.maximum(index, 0)  # empty slots add zeros to atom 0
    number = jnp.arange(n_atoms)
    centre = _by_species(z_i, n_species, dtype)
    neighbour = _by_species(jnp.where(z_i[:, None] >= 0, z_j, -1), n_species, dtype)
    in_block = jnp.stack(  # (N, K, blocks)
        [sum(centre[:, None, x] * neighbour[..., y] for x, y in {(a, b), (b, a)}) for a, b in basis.pairs],
        axis=-1,
    )

    # Radial and angular functions of all neighbours at once, and their derivatives by the neighbour's vector.
    r = _distance(d)
    unit = d / r[..., None]

    def along_bond(functions):
        return jax.jvp(lambda r: functions(basis, r, z_i, z_j, True, radii), (r,), (jnp.ones_like(r),))

    pair, pair_slope = (0.5 * part for part in along_bond(pair_functions))  # half: both directions of a pair are listed
    radial, radial_slope = along_bond(radial_functions)
    angular, push = jax.linearize(lambda unit: real_harmonics(unit, tables.l_max), unit)
    across = jnp.eye(3, dtype=dtype)[:, None, None, :] - jnp.moveaxis(unit, -1, 0)[..., None] * unit[None]
    angular_slope = jax.vmap(push, out_axes=2)(across / r[None, ..., None])
    a = density(basis, radial, angular, neighbour)
    n_channels, n_functions = len(a), len(basis._many_body)

    def tangents(i):
        """Derivatives of the density and of the pair sums of centre i by every neighbour's vector, (K, 3, ...)."""
        parts = []
        for degree, count in enumerate(tables.n_of_l):
            along = radial_slope[i][:, None, :count] * unit[i][:, :, None]
            part = (
                along[..., None] * angular[degree][i][:, None, None, :]
                + radial[i][:, None, :count, None] * angular_slope[degree][i][:, :, None, :]
            )
            parts.append(part[:, :, None] * neighbour[i][:, None, :, None, None])
        along = pair_slope[i][:, None, :] * unit[i][:, :, None]
        parts.append(along[:, :, None] * in_block[i][:, None, :, None])
        return jnp.concatenate([part.reshape(capacity, 3, -1) for part in parts], axis=-1)

    def add(i, totals):
        """What centre i adds: rows 0 ... N - 1 to the atoms' derivatives, the last three to those by the strain."""
        many, pairs = totals
        moved, j = tangents(i), index[i]
        if n_atoms <= capacity:  # a small cell: images of an atom are summed before the product
            atoms = (number[:, None] == j[None, :]).astype(dtype) - (number == i).astype(dtype)[:, None]
            moved = jnp.einsum("tk,kac->tac", jnp.concatenate([atoms, d[i].T]), moved, precision=_HIGHEST)
            places: Any = slice(None)
        else:
            places = jnp.concatenate([j, i[None], n_atoms + jnp.arange(3, dtype=j.dtype)])
            whole = jnp.concatenate([jnp.full((1, capacity), -1, dtype), d[i].T])
            moved = jnp.concatenate([moved, jnp.einsum("tk,kac->tac", whole, moved, precision=_HIGHEST)])
        product = jnp.matmul(moved[..., :n_channels], coupled_slope(basis, a[:, i]), precision=_HIGHEST)
        return many.at[z_i[i], places].add(product), pairs.at[places].add(moved[..., n_channels:])

    start = (
        jnp.zeros((n_species, n_atoms + 3, 3, n_functions), dtype),
        jnp.zeros((n_atoms + 3, 3, len(basis.pairs) * basis.max_degree), dtype),
    )
    last = jnp.max(jnp.where(z_i >= 0, number + 1, 0))  # atoms padded at the end cost nothing
    many, pairs = jax.lax.fori_loop(0, last, add, start)
    slopes = jnp.concatenate([pairs, *many], axis=-1)  # (N + 3, 3, M)
    sums = jnp.concatenate([jnp.matmul(level, centre, precision=_HIGHEST) for level in monomials(basis, a)])
    pair = jnp.einsum("nkb,nkp->bp", in_block, pair, precision=_HIGHEST)
    value = jnp.concatenate([pair.reshape(-1), couple(basis, sums).T.reshape(-1)])
    return value, slopes[:n_atoms], jnp.swapaxes(slopes[n_atoms:], 0, 1)
