"""Which candidates to label next: a greedy batch by conditional posterior variance. No labels are needed."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from haljax.bayes.posterior import Posterior


def select(
    posterior: Posterior, features: jax.Array, n: int, noise: jax.Array | float | None = None
) -> tuple[jax.Array, jax.Array]:
    """The n items of a pool that together tell most, found greedily.

    Each item offers r rows of features (its energy's descriptor: r = 1). Picked is the item with the largest
    ``log det(I + C / noise^2)``, C the covariance of its rows' values under the posterior conditioned on all
    picks before: twice the information (nats) that its labels would bring. The gains so add up to the log
    determinant of the batch, which is at least 1 - 1/e of the best batch's (Nemhauser, Wolsey & Fisher, Math.
    Program. 14, 265 (1978), doi:10.1007/BF01588971).

    Parameters
    ----------
    features : (n_pool, r, M), finite.
    n : static; each item is picked at most once.
    noise : standard deviation of the rows' labels, in the rows' units, broadcastable to (n_pool, r). Default:
        the posterior's 1/sqrt(noise_precision), right for rows that are weighted as those of the fit.

    Returns
    -------
    indices : (n,) in the order picked; gains : (n,).

    Raises
    ------
    ValueError
        The pool is empty or has fewer than n items.
    """
    n_pool, r, _ = features.shape
    if n_pool == 0:
        raise ValueError("cannot select from an empty pool: give at least one candidate")
    if n > n_pool:
        raise ValueError(f"cannot select {n} of a pool of {n_pool}: ask for at most {n_pool}, or enlarge the pool")
    noise = 1 / jnp.sqrt(posterior.noise_precision) if noise is None else jnp.asarray(noise)
    return _greedy(features @ posterior.factor / jnp.broadcast_to(noise, (n_pool, r))[:, :, None], n)


@partial(jax.jit, static_argnums=1)
def _greedy(g: jax.Array, n: int) -> tuple[jax.Array, jax.Array]:
    """The picks (n,) and gains (n,) from whitened features g (n_pool, r, M)."""
    n_pool, r, _ = g.shape

    def pick(state, _):
        g, free = state
        gains = jnp.linalg.slogdet(jnp.eye(r)[None] + g @ jnp.swapaxes(g, 1, 2))[1]
        i = jnp.argmax(jnp.where(free, gains, -jnp.inf))
        # Condition on item i without its label: the factor shrinks along V, as in `update`.
        _, s, vt = jnp.linalg.svd(g[i], full_matrices=False)
        g = g + ((g @ vt.T) * (1 / jnp.sqrt(1 + s**2) - 1)[None, None, :]) @ vt
        return (g, free.at[i].set(False)), (i, gains[i])

    _, (indices, gains) = jax.lax.scan(pick, (g, jnp.ones(n_pool, bool)), length=n)
    return indices, gains
