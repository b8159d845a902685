from __future__ import annotations

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haljax.bayes import absorb, accumulate, empty

from .problems import close, regression, statistics


@pytest.mark.parametrize("n, rank", [(80, None), (12, None), (80, 9)])
def test_squared_residual_of_any_coefficients_is_kept(n, rank):
    rows, targets = regression(n, 20, rank=rank)
    stats = statistics(rows, targets)
    assert stats.n == n
    np.testing.assert_array_equal(stats.R, jnp.triu(stats.R))
    for c in jax.random.normal(jax.random.key(1), (4, 20)):
        # backward-stable QR: rounding of the order of 1e-15 times the squares summed
        np.testing.assert_allclose(
            jnp.sum((stats.R @ c - stats.z) ** 2) + stats.rss, jnp.sum((rows @ c - targets) ** 2), rtol=1e-12
        )


@pytest.mark.parametrize("n", [70, 12])
def test_blocks_equal_one_go(n):
    rows, targets = regression(n, 20)
    whole, blocks = statistics(rows, targets), empty(20)
    for i in range(0, n, 7):
        blocks = absorb(blocks, rows[i : i + 7], targets[i : i + 7])
    close(blocks.R.T @ blocks.R, whole.R.T @ whole.R, 1e-13)
    close(blocks.R.T @ blocks.z, whole.R.T @ whole.z, 1e-13)
    np.testing.assert_allclose(blocks.rss, whole.rss, rtol=1e-11, atol=1e-25)
    assert blocks.n == whole.n


def test_least_squares_of_an_ill_conditioned_design():
    # condition number 1e9: the normal equations (1e18) would have no digit left, QR keeps about 7
    rng = np.random.default_rng(0)
    u, v = (np.linalg.qr(rng.normal(size=(m, 20)))[0] for m in (100, 20))
    rows = (u * np.logspace(0, -9, 20)) @ v.T
    targets = rows @ np.ones(20)
    stats = statistics(jnp.asarray(rows), jnp.asarray(targets))
    np.testing.assert_allclose(np.linalg.solve(stats.R, stats.z), 1, atol=1e-5)
    np.testing.assert_allclose(stats.rss, 0, atol=1e-25)


def test_least_squares_and_its_residual():
    rows, targets = regression(50, 20)
    stats = statistics(rows, targets)
    c, rss = np.linalg.lstsq(rows, targets)[:2]
    np.testing.assert_allclose(np.linalg.solve(stats.R, stats.z), c, rtol=0, atol=1e-12)
    np.testing.assert_allclose(stats.rss, rss[0], rtol=1e-12)


def test_padding_is_not_counted():
    rows, targets = regression(50, 20)
    stats = statistics(rows, targets)
    padded = statistics(jnp.pad(rows, ((0, 9), (0, 0))), jnp.pad(targets, (0, 9)))
    assert padded.n == 50
    close(padded.R.T @ padded.R, stats.R.T @ stats.R, 1e-13)
    np.testing.assert_allclose(padded.rss, stats.rss, rtol=1e-12)


def test_jit_and_vmap():
    rows, targets = regression(60, 10)
    rows, targets = rows.reshape(3, 20, 10), targets.reshape(3, 20)
    batched = jax.jit(jax.vmap(absorb, (None, 0, 0)))(empty(10), rows, targets)
    for i in range(3):
        stats = absorb(empty(10), rows[i], targets[i])
        # the same algorithm, up to the order of sums
        for leaf, alone in zip(batched, stats, strict=True):
            np.testing.assert_allclose(leaf[i], alone, rtol=1e-11, atol=1e-13)


def test_without_x64_the_error_tells_the_remedy():
    program = "from haljax.bayes import empty\ntry: empty(3)\nexcept RuntimeError as error: print(error)"
    environment = os.environ | {"JAX_ENABLE_X64": "0"}
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert "JAX_ENABLE_X64=1" in run.stdout and 'jax.config.update("jax_enable_x64", True)' in run.stdout


def test_a_stream_of_blocks_says_what_its_rows_say():
    """More rows than are compressed at once, in blocks that fit into none of the parts."""
    rows, targets = map(np.asarray, regression(9001, 7))
    at = np.cumsum([0, 1, 4999, 13, 3000, 988])
    blocks = ((rows[a:b], targets[a:b]) for a, b in zip(at[:-1], at[1:], strict=True))
    stats = accumulate(empty(7), blocks, 9001)
    assert at[-1] == 9001 and int(stats.n) == 9001
    close(stats.R.T @ stats.R, rows.T @ rows, 1e-12)
    close(stats.R.T @ stats.z, rows.T @ targets, 1e-12)
    best, rss = np.linalg.lstsq(rows, targets)[:2]
    close(np.linalg.solve(stats.R, stats.z), best, 1e-12)
    np.testing.assert_allclose(stats.rss, rss[0], rtol=1e-12)
