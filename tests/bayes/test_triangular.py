"""The factor that dynamics reads: the same covariance in fewer numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haljax.bayes import triangular_blocks


def products(blocks, features):
    """sigma^2 and Sigma D."""

    def square(d):
        return sum(jnp.sum((d[: len(b)].astype(b.dtype) @ b).astype(d.dtype) ** 2) for b in blocks)

    return square(features), jax.grad(square)(features) / 2


@pytest.mark.parametrize("shape", [(40, 40), (43, 40), (40, 43), (5, 1), (1, 5)])
@pytest.mark.parametrize("n", [1, 2, 4])
def test_blocks_have_the_covariance_of_the_factor(shape, n):
    rng = np.random.default_rng(0)
    factor, features = rng.normal(size=shape), rng.normal(size=shape[0])
    blocks = triangular_blocks(jnp.asarray(factor), n)
    square, gradient = products(blocks, jnp.asarray(features))
    np.testing.assert_allclose(square, np.sum((features @ factor) ** 2), rtol=1e-12)
    np.testing.assert_allclose(gradient, factor @ (factor.T @ features), rtol=1e-9, atol=1e-10)
    assert sum(b.shape[1] for b in blocks) == min(shape)


def test_blocks_are_smaller_than_the_factor():
    blocks = triangular_blocks(jnp.eye(400), 4)
    assert sum(b.size for b in blocks) < 0.7 * 400**2


def test_jit_equals_eager():
    factor = jnp.asarray(np.random.default_rng(1).normal(size=(50, 47)))
    for made, expected in zip(jax.jit(triangular_blocks)(factor), triangular_blocks(factor), strict=True):
        np.testing.assert_allclose(made, expected, rtol=1e-10, atol=1e-12)
