"""The data of a linear model, compressed: what a least-squares problem needs to know of its design matrix.

Rows come block by block (a structure's energy, forces and stress), so memory does not grow with the data.
Blocks are absorbed by orthogonal transformations; the normal equations, which would square the condition
number, are never formed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from threadpoolctl import ThreadpoolController

from haljax.devices import in_threads
from haljax.structures import bucket

TABLES = 4  # of rows that wait at a time, each of some hundred MB for a large basis


class Statistics(NamedTuple):
    """Weighted data (Psi, y), QR-compressed: ``||Psi c - y||^2 = ||R c - z||^2 + rss`` for every c.

    Attributes
    ----------
    R : (M, M) upper triangular; where fewer rows than functions were seen the last rows are zero to rounding, and
        `seen_rows` leaves them out.
    z : (M,) the targets in R's row space.
    rss : () the squared residual that no coefficients can remove.
    n : () integer, the number of rows seen.
    """

    R: jax.Array
    z: jax.Array
    rss: jax.Array
    n: jax.Array


def require_x64() -> None:
    """Raise a RuntimeError unless jax computes in double precision: fits are ill-conditioned."""
    if jax.dtypes.canonicalize_dtype("float64") != jnp.float64:
        raise RuntimeError(
            "haljax needs float64 here, but jax's x64 mode is off: set JAX_ENABLE_X64=1 in the environment, or "
            'call jax.config.update("jax_enable_x64", True) before the first array is made'
        )


def empty(n_functions: int) -> Statistics:
    """Statistics of no data for `n_functions` basis functions; RuntimeError where x64 is off."""
    require_x64()
    return Statistics(
        R=jnp.zeros((n_functions, n_functions)),
        z=jnp.zeros(n_functions),
        rss=jnp.zeros(()),
        n=jnp.zeros((), int),
    )


def absorb(stats: Statistics, rows: jax.Array, targets: jax.Array) -> Statistics:
    """Add weighted rows (n, M) of the design matrix and their weighted targets (n,).

    The QR of ``[[R, z], [0, sqrt(rss)]]`` stacked on ``[rows | targets]`` costs 2 (n + M) M^2 operations, so
    blocks of M rows or more use it best. Rows that are zero throughout (padding to a fixed shape, weight
    zero) say nothing and are not counted in n. The rows must be finite: a NaN spoils everything absorbed
    before; the caller checks.
    """
    block = jnp.concatenate([rows, targets[:, None]], axis=1)
    seen = jnp.concatenate([stats.R, stats.z[:, None]], axis=1)
    last = jnp.zeros((1, block.shape[1])).at[0, -1].set(jnp.sqrt(stats.rss))
    return _compressed(jnp.concatenate([seen, last, block]), stats.n + count(block))


def _first(rows: jax.Array, targets: jax.Array) -> Statistics:
    """As `absorb` where nothing was seen before, in 2 n M min(n, M) operations."""
    block = jnp.concatenate([rows, targets[:, None]], axis=1)
    return _compressed(block, count(block))


def _compressed(table: jax.Array, n: jax.Array) -> Statistics:
    r = jnp.linalg.qr(table, mode="r")
    r = jnp.pad(r, ((0, table.shape[1] - len(r)), (0, 0)))  # fewer rows than functions
    return Statistics(R=r[:-1, :-1], z=r[:-1, -1], rss=r[-1, -1] ** 2, n=n)


def columns(stats: Statistics, kept: jax.Array) -> Statistics:
    """Of the functions `kept` (m,) alone, in no more than m rows; an index of none is a function that is zero."""
    table = jnp.concatenate([stats.R.at[:, kept].get(mode="fill", fill_value=0), stats.z[:, None]], axis=1)
    if len(table) <= len(kept):
        return stats._replace(R=table[:, :-1])
    fewer = _compressed(table, stats.n)
    return fewer._replace(rss=fewer.rss + stats.rss)


def accumulate(stats: Statistics, blocks: Iterable[tuple[np.ndarray, np.ndarray]], n_rows: int) -> Statistics:
    """Statistics after a stream of blocks of weighted rows (n, M) and targets (n,); on the host, not inside jit.

    Parts of one size are compressed, each on a core, and then joined in order: two programs are compiled, memory does
    not grow with the data, and the result does not depend on the number of cores. ``n_rows`` is their number or a
    bound on it.
    """
    M = len(stats.z)
    parts = -(-n_rows // max(4096, 2 * M))
    size = bucket(-(-n_rows // max(parts, 1)))
    seen = int(stats.n) > 0
    with one_blas_thread():
        for part in in_threads(lambda table: jax.device_get(_begin(*table)), _tables(blocks, size, M), most=TABLES):
            stats = jax.block_until_ready(_join(stats, part)) if seen else part
            seen = True
        return stats


def _merged(a: Statistics, b: Statistics) -> Statistics:
    """Of the rows of both."""
    found = absorb(a, b.R, b.z)
    return found._replace(rss=found.rss + b.rss, n=a.n + b.n)


def _tables(
    blocks: Iterable[tuple[np.ndarray, np.ndarray]], size: int, M: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The rows and targets of all blocks in tables of one size; the last is filled up with zeros, which say nothing."""
    rows, targets, filled = np.zeros((size, M)), np.zeros(size), 0
    for block, values in blocks:
        while len(values):
            taken = min(size - filled, len(values))
            rows[filled : filled + taken], targets[filled : filled + taken] = block[:taken], values[:taken]
            block, values, filled = block[taken:], values[taken:], filled + taken
            if filled == size:
                yield rows, targets
                rows, targets, filled = np.zeros((size, M)), np.zeros(size), 0  # new: jax may still be reading those
    if filled:
        yield rows, targets


def seen_rows(stats: Statistics) -> Statistics:
    """The same without rows of R and z that are zero to rounding, filled up to one of a few sizes; on the host.

    For `brr` and `ard`, where fewer rows than functions were seen.
    """
    M = len(stats.z)
    if int(stats.n) >= M:
        return stats
    block = np.column_stack([stats.R, stats.z])
    size = np.abs(block).max(axis=1)
    block = block[size > 1e-14 * size.max()]  # anywhere, where functions are zero in all of the data
    block = np.concatenate([block, np.zeros((max(bucket(len(block)) - len(block), 0), M + 1))])[:M]
    return stats._replace(R=jnp.asarray(block[:, :M]), z=jnp.asarray(block[:, M]))


def one_blas_thread() -> AbstractContextManager:
    """BLAS alone on one thread: beside XLA's own threads more of them only get in each other's way."""
    return _blas().limit(limits=1, user_api="blas")


@cache
def _blas() -> ThreadpoolController:
    import scipy.linalg.cython_lapack  # noqa: F401  so that the library to be limited is there

    return ThreadpoolController()


def count(block: jax.Array) -> jax.Array:
    """The number of rows of a block (n, M + 1) that are not zero throughout."""
    return jnp.sum(jnp.any(block != 0, axis=1))


_join, _begin = jax.jit(_merged), jax.jit(_first)
