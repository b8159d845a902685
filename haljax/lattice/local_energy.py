"""Sums over the neighbourhood of one cell, for all windows at once: occupations are bits, 32 windows to a word.

A cluster expansion in indicators is a sum of ``coefficient * product of bits``. The products of all terms around the
tried site are formed by AND on whole words (32 windows each); terms with equal coefficients are counted in bit fields
of 2, 4 and 8 bits, three, then up to four triples, at a time; one product with the coefficients remains for each dozen
terms. Counting costs some ten operations on words per term, and no window is ever gathered alone.

Sums are exact. Coefficients are split into a coarse and a fine integer, both so small that no partial sum in float32
exceeds 2^24: the order of summation, the batch and the device do not matter, a window alone repeats its trajectory
bit for bit, and energies summed from local differences do not drift. What rounding leaves out of a coefficient is some
2^-39 of the largest sum for five hundred terms.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil, log2
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from haljax.lattice.supercell import Supercell

Factor = tuple[int, int, int, int, int]  # (l, m, n, s, k): site (l, m, n, s) holds species k
Product = frozenset[tuple[int, int]]  # {(place in the supercell, species)}, of the cell at the origin
SIZES = (12, 6, 3)  # terms counted together; a count of 15 fills a field of four bits
WINDOWS = 32  # per word


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["table", "factors", "coarse", "fine", "constant"],
    meta_fields=["groups", "units"],
)
@dataclass(frozen=True)
class LocalSum:
    """K sums for each of T kinds of sites.

    Attributes
    ----------
    table : (T * n_cells, U) int32, rows of the bits that lie around each site.
    factors : (T, F, R) int32, columns of the table; the R products' F factors.
    coarse, fine : (T, K, G) float32 integers, coefficient of each group of terms.
    constant : (T, K, 2) float32 integers, coarse and fine.
    groups : how many groups there are of each of `SIZES`.
    units : eV of one coarse and one fine integer; powers of two.
    """

    table: jax.Array
    factors: jax.Array
    coarse: jax.Array
    fine: jax.Array
    constant: jax.Array
    groups: tuple[int, ...]
    units: tuple[float, float]


def evaluate(local: LocalSum, bits: jax.Array, site: jax.Array) -> jax.Array:
    """The K sums (K, W) eV at ``site`` () with bits (rows, W / 32) uint32. float64 where x64 is on.

    The last two rows of ``bits`` are all ones and all zeros.
    """
    kind = site // (local.table.shape[0] // local.factors.shape[0])
    rows = bits[local.table[site][local.factors[kind]]]  # (F, R, words)
    product = rows[0]
    for factor in rows[1:]:
        product = product & factor
    counts = _counts(product, local.groups).astype(jnp.float32)  # (G, W)
    products = tuple(c[kind][:, :, None] * counts[None, :, :] for c in (local.coarse, local.fine))
    # One reduction of both, into which XLA fuses the counts; two would write them out, three times as slow on a CPU.
    zero = jnp.float32(0)
    coarse, fine = jax.lax.reduce(products, (zero, zero), lambda a, b: (a[0] + b[0], a[1] + b[1]), (1,))
    dtype = jnp.result_type(float)
    constant = local.constant[kind].astype(dtype)
    coarse, fine = coarse.astype(dtype) + constant[:, :1], fine.astype(dtype) + constant[:, 1:]
    return coarse * local.units[0] + fine * local.units[1]


def _counts(products: jax.Array, groups: tuple[int, ...]) -> jax.Array:
    """Number of ones (G, W) uint8 in each group of products (R, words); groups lie along the second axis of a block."""
    words, start, nibbles = products.shape[1], 0, []
    two, four = jnp.uint32(0x55555555), jnp.uint32(0x33333333)
    for size, number in zip(SIZES, groups, strict=True):
        block = products[start : start + size * number].reshape(size // 3, 3, number, words)
        start += size * number
        halves = [_sum([(block[:, i] >> odd) & two for i in range(3)]) for odd in (0, 1)]
        nibbles.append([_sum([(triple >> (b & 2)) & four for triple in halves[b & 1]]) for b in range(4)])
    fields = [jnp.concatenate(parts) for parts in zip(*nibbles, strict=True)]  # bits b and b + 4 of each byte
    bytes_ = jnp.stack([(fields[b & 3] >> (b & 4)) & jnp.uint32(0x0F0F0F0F) for b in range(8)], axis=1)
    return _windows(bytes_)


def _sum(arrays: Sequence[jax.Array]) -> jax.Array:
    """Element by element; written out, since XLA vectorises this and not a reduction."""
    total = arrays[0]
    for array in arrays[1:]:
        total = total + array
    return total


def _windows(words: jax.Array) -> jax.Array:
    """(..., 8, words) uint32, whose bytes belong to windows -> (..., W) uint8."""
    return jax.lax.bitcast_convert_type(words, jnp.uint8).reshape(*words.shape[:-2], 8 * 4 * words.shape[-1])


def unpack(words: jax.Array) -> jax.Array:
    """(..., W / 32) uint32 -> (..., W) uint8 of 0 and 1. Window w is bit ``w // (W / 8)`` of byte ``w % (W / 8)``."""
    return _windows(jnp.stack([(words >> b) & jnp.uint32(0x01010101) for b in range(8)], axis=-2))


def pack(windows: jax.Array) -> jax.Array:
    """(..., W) of 0 and 1 -> (..., W / 32) uint32; the inverse of `unpack`. W is a multiple of 32."""
    *leading, W = windows.shape
    bytes_ = windows.astype(jnp.uint8).reshape(*leading, 8, W // WINDOWS, 4)
    words = jax.lax.bitcast_convert_type(bytes_, jnp.uint32)
    packed = words[..., 0, :]
    for b in range(1, 8):
        packed = packed | (words[..., b, :] << b)
    return packed


# ---------------------------------------------------------------------------------------------- from terms to sums


def products_of_fields(
    terms: Sequence[Any], supercell: Supercell, s: int, n_species: int
) -> list[dict[Product, float]]:
    """For species k = 1 .. of basis site s in the cell at the origin: what the energy gains when it stands there
    rather than species 0, as a polynomial in the other sites' indicators.

    Exact in any supercell: where the images of a cluster fall together, each instance counts once and ``p^2 = p``.
    """
    origin = int(supercell.index((0, 0, 0, s)))
    fields: list[dict[Product, float]] = [defaultdict(float) for _ in range(1, n_species)]
    for coefficient, factors in terms:
        seen = set()
        for l, m, n, basis, k in factors:
            cell = int(supercell.index((-l, -m, -n, 0)))
            if basis != s or k >= n_species or (cell, k) in seen:
                continue
            seen.add((cell, k))
            product = _product([(a - l, b - m, c - n, t, q) for a, b, c, t, q in factors], supercell)
            if product is not None:
                fields[k - 1][product - {(origin, k)}] += coefficient
    return fields


def products_of_energy(terms: Sequence[Any], supercell: Supercell) -> dict[Product, float]:
    """The energy of the cell at the origin as a polynomial in indicators."""
    energy: dict[Product, float] = defaultdict(float)
    for coefficient, factors in terms:
        product = _product(factors, supercell)
        if product is not None:
            energy[product] += coefficient
    return energy


def _product(factors: Sequence[Factor], supercell: Supercell) -> Product | None:
    """The factors modulo the supercell, each once; None where one site would hold two species."""
    if not factors:
        return frozenset()
    places = supercell.index(np.array(factors)[:, :4]).tolist()
    product = frozenset(zip(places, (f[4] for f in factors), strict=True))
    return product if len({place for place, _ in product}) == len(product) else None


def in_units(terms: Sequence[Any]) -> tuple[list[tuple[float, Any]], tuple[float, float]]:
    """Terms with coefficients rounded to multiples of the fine unit, and the units (coarse, fine) eV.

    The smallest powers of two with which no partial sum over a site's surroundings exceeds 2^24 in either. Rounded
    before terms are merged, so that the sums for flips and for energies agree to the last bit.
    """
    largest = sum(abs(c) * max(len(factors), 1) for c, factors in terms)
    number = sum(max(len(factors), 1) for _, factors in terms)
    coarse = 2.0 ** ceil(log2(max(largest, 1e-30) / (2**24 - number)))  # rounding adds half a unit a term
    fine = coarse * 2.0 ** ceil(log2(max(number, 1) / 2**25))
    return [(fine * round(c / fine), factors) for c, factors in terms], (coarse, fine)


def _integers(coefficient: float, units: tuple[float, float]) -> tuple[int, int]:
    coarse = round(coefficient / units[0])
    return coarse, round((coefficient - coarse * units[0]) / units[1])


def check_range(terms: Sequence[Any], supercell: Supercell) -> None:
    """ValueError where two sites of one cluster are the same site of the supercell."""
    for _, factors in terms:
        if len(factors) > 1:
            sites = np.unique(np.array(factors)[:, :4], axis=0)
            if len(np.unique(supercell.index(sites))) < len(sites):
                raise ValueError(
                    f"The cluster {[tuple(site) for site in sites.tolist()]} meets its own periodic image in the "
                    f"supercell {supercell.matrix}: a site would interact with itself. Take a larger supercell, or "
                    "pass aliasing=True where a small cell with folded interactions is what you want."
                )


def local_sum(
    polynomials: Sequence[Sequence[Mapping[Product, float]]],
    supercell: Supercell,
    first_row: Mapping[int, int],
    planes: int,
    n_rows: int,
    units: tuple[float, float],
) -> LocalSum:
    """The sums for ``polynomials[kind][k]``, whose coefficients are multiples of the fine unit (`in_units`).

    ``first_row`` is the first row of each basis site that has bits; site ``cell`` has ``planes`` rows from
    ``first_row[s] + cell * planes``. Of ``n_rows`` rows the last two are all ones and all zeros.
    """
    n_cells, T, K = supercell.n_cells, len(polynomials), len(polynomials[0])
    sites = supercell.sites()
    grouped, constant = [], np.zeros((T, K, 2))
    for t, kind in enumerate(polynomials):
        by_coefficient: dict[tuple[int, int, int], list[Product]] = defaultdict(list)
        for k, polynomial in enumerate(kind):
            for product, coefficient in polynomial.items():
                if product:
                    by_coefficient[k, *_integers(coefficient, units)].append(product)
                else:
                    constant[t, k] += _integers(coefficient, units)
        grouped.append(_group(by_coefficient))
    number = [max(len(groups[i]) for groups in grouped) for i in range(len(SIZES))]
    if not any(number):
        number[-1] = 1  # an ideal solution: one empty group
    F = max((len(p) for groups in grouped for size in groups for _, ps in size for p in ps), default=1)

    columns = [sorted({f for size in groups for _, ps in size for p in ps for f in p}) for groups in grouped]
    U = max(map(len, columns))
    table = np.full((T, n_cells, U + 2), n_rows - 2)
    table[:, :, U + 1] = n_rows - 1
    coefficients = np.zeros((T, K, sum(number), 2))
    factors = np.full((T, F, sum(n * size for n, size in zip(number, SIZES, strict=True))), U)
    for t, (groups, column) in enumerate(zip(grouped, columns, strict=True)):
        place = {f: i for i, f in enumerate(column)}
        for i, (site, k) in enumerate(column):
            s = int(sites[site, 3])
            around = supercell.neighbours(sites[site])[:, 0] - s * n_cells
            table[t, :, i] = first_row[s] + around * planes + k - 1
        start = 0
        for size, n, group in zip(SIZES, number, groups, strict=True):
            block = np.full((F, size, n), U)  # all ones; the products that are missing have a factor of zero
            block[0] = U + 1
            for g, ((k, *integers), products) in enumerate(group):
                coefficients[t, k, sum(number[: SIZES.index(size)]) + g] = integers
                for i, product in enumerate(products):
                    block[: len(product), i, g] = [place[f] for f in sorted(product)]
            factors[t, :, start : start + size * n] = block.reshape(F, -1)
            start += size * n
    return LocalSum(
        jnp.asarray(table.reshape(T * n_cells, U + 2), jnp.int32),
        jnp.asarray(factors, jnp.int32),
        jnp.asarray(coefficients[..., 0], jnp.float32),
        jnp.asarray(coefficients[..., 1], jnp.float32),
        jnp.asarray(constant, jnp.float32),
        tuple(number),
        units,
    )


def _group(
    by_coefficient: Mapping[tuple[int, int, int], list[Product]],
) -> tuple[list[tuple[tuple[int, int, int], list[Product]]], ...]:
    """Products with one coefficient cut into as few groups as hold them: dozens, and one smaller for the rest."""
    groups: tuple[list, ...] = tuple([] for _ in SIZES)
    for key, products in by_coefficient.items():
        products = sorted(products, key=sorted)
        for start in range(0, len(products), SIZES[0]):
            part = products[start : start + SIZES[0]]
            groups[max(i for i, size in enumerate(SIZES) if size >= len(part))].append((key, part))
    return groups
