"""When to stop, and how strongly to bias: the relative force uncertainty and the relative bias strength.

Both after van der Oord et al., npj Comput Mater 9, 168 (2023), doi:10.1038/s41524-023-01104-6.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


def relative_force_error(deviations: jax.Array, forces: jax.Array, epsilon: jax.Array, real: jax.Array) -> jax.Array:
    """f_i = rms_k |F_i^k - F_i| / (|F_i| + epsilon), (N,); 0 for padded atoms.

    Parameters
    ----------
    deviations : (K, N, 3) eV/Å, of the committee's forces from the mean model's. forces : (N, 3) eV/Å.
    epsilon : () eV/Å, keeps atoms at rest from looking infinitely uncertain. real : (N,) bool.
    """
    error = jnp.sqrt(jnp.mean(jnp.sum(deviations**2, axis=-1), axis=0))
    size = jnp.sqrt(jnp.sum(forces**2, axis=-1))
    return jnp.where(real, error / (size + epsilon), 0.0)


def criterion(f: jax.Array, real: jax.Array, softmax: bool) -> jax.Array:
    """One number () of the f_i: their maximum, or the largest of their softmax (which depends on the atom count)."""
    if softmax:
        return jnp.max(jax.nn.softmax(jnp.where(real, f, -jnp.inf)))
    return jnp.max(f)


class Bias(NamedTuple):
    """Running means of the mean force norms, eV/Å: of the unbiased force and of grad sigma."""

    force: jax.Array
    gradient: jax.Array


def mean_norm(vectors: jax.Array, real: jax.Array) -> jax.Array:
    """Mean over the atoms of |v_i|, ()."""
    norms = jnp.sqrt(jnp.sum(vectors**2, axis=-1))
    return jnp.sum(jnp.where(real, norms, 0.0)) / jnp.sum(real)


def bias_strength(
    bias: Bias, sample: Bias, first: jax.Array, mixing: jax.Array, tau_rel: jax.Array, active: jax.Array
) -> tuple[Bias, jax.Array]:
    """New running means, and tau = tau_rel <|F|> / <|grad sigma|> once the burn-in is over (0 before).

    Parameters
    ----------
    sample : the present means. first : () bool, there is no history yet. mixing : () weight of the sample.
    """
    bias = jax.tree.map(lambda old, new: jnp.where(first, new, (1 - mixing) * old + mixing * new), bias, sample)
    tiny = jnp.finfo(bias.gradient.dtype).tiny
    return bias, jnp.where(active, tau_rel * bias.force / jnp.maximum(bias.gradient, tiny), 0.0)
