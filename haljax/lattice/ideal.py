"""The ideal solution: the entropy of mixing at given order parameters, everything else left free.

With d order parameters ``eta = patterns @ x / n_s`` of n_s sublattices, filled to the fractions x, what is left free
takes the values of greatest entropy. Per site and in units of k,

    -s(eta) = min { mean_k [x_k ln x_k + (1 - x_k) ln(1 - x_k)] : patterns @ x / n_s = eta }
            = max_a [ a . eta - mean_k ln(1 + exp(t_k)) ],        t = a @ patterns,   x_k = 1 / (1 + exp(-t_k)),

a Legendre transform: a, the fields that hold eta, are the gradient of -s, and its Hessian is the inverse of the
covariance ``patterns diag(x (1 - x)) patterns^T / n_s``. Where d = n_s, x is ``S eta`` itself. Where d < n_s that S,
the pseudo-inverse, takes all other order to vanish, which no bias on eta imposes: its entropy is too small, and
diverges on walls that are none.

Source: Jaynes, Phys. Rev. 106, 620 (1957), doi:10.1103/PhysRev.106.620; the steps of `fields`: Bach, Electron. J.
Statist. 4, 384 (2010), doi:10.1214/09-EJS521, Proposition 2 and lemma 1: |f'''| <= R f''.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

TINY = 1e-12  # fraction below which the entropy is continued, see `_site`
STEPS = 100


def fields(patterns: Any, eta: Any) -> jax.Array:
    """The fields a (d,), in units of kT per site, that hold the ideal solution at eta.

    Where a sublattice is emptier than 1e-12 or fuller than 1 - 1e-12, also outside the admissible domain, the
    entropy is continued smoothly: a stays finite, and -s convex. As x nears that, or 1e-5 in float32, the rounding of
    eta makes itself felt in ln x, and more in the curvature.

    Parameters
    ----------
    patterns : (d, n_s), linearly independent. eta : (d,).
    """
    return _fields(*_floating(patterns, eta))


def negentropy(patterns: Any, eta: Any) -> jax.Array:
    """-s() of the ideal solution at one eta (d,), in units of k per site; see `fields`."""
    return _negentropy(*_floating(patterns, eta))


@jax.jit
def fractions(patterns: Any, eta: Any) -> jax.Array:
    """The sublattices' fractions (n_s,) of the ideal solution at one eta (d,), in (0, 1)."""
    patterns, eta = _floating(patterns, eta)
    return jax.nn.sigmoid(_fields(patterns, eta) @ patterns)


@jax.custom_jvp
def _fields(patterns: jax.Array, eta: jax.Array) -> jax.Array:
    n_s = patterns.shape[1]
    tiny = jnp.maximum(TINY, jnp.finfo(eta.dtype).eps)
    inverse = jnp.linalg.solve(patterns @ patterns.T, patterns)
    x = jnp.clip(n_s * eta @ inverse, tiny, 1 - tiny)
    start = inverse @ jnp.log(x / (1 - x))

    def step(state: tuple) -> tuple:
        a, last, _, i = state
        x, bend = _site(a @ patterns)
        change = _solve((patterns * bend[None]) @ patterns.T / n_s, eta - patterns @ x / n_s)
        # |d ln f''| <= |dt|: a Newton step cut to ln(1 + r) always descends
        r = jnp.max(jnp.abs(change @ patterns))
        return a + change * jnp.where(r > 0, jnp.log1p(r) / r, 1.0), r, last, i + 1

    def unfinished(state: tuple) -> jax.Array:
        _, r, last, i = state
        rounding = (r < 0.01) & (r > last / 2)  # where x is tiny, eta's rounding moves t = ln x
        return (r > 0.1 * jnp.finfo(eta.dtype).eps ** 0.5) & ~rounding & (i < STEPS)

    far = jnp.asarray(jnp.inf, eta.dtype)
    return jax.lax.while_loop(unfinished, step, (start, far, far, 0))[0]


@_fields.defjvp
def _fields_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    a = _fields(*primals)
    force = jax.jvp(lambda patterns, eta: jax.grad(_legendre)(a, patterns, eta), primals, tangents)[1]
    return a, _solve(_covariance(a, primals[0]), force)


@jax.custom_jvp
def _negentropy(patterns: jax.Array, eta: jax.Array) -> jax.Array:
    return _legendre(_fields(patterns, eta), patterns, eta)


@_negentropy.defjvp
def _negentropy_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    a = _fields(*primals)
    return jax.jvp(lambda patterns, eta: _legendre(a, patterns, eta), primals, tangents)  # stationary in a


def checked(patterns: Any) -> np.ndarray:
    """The patterns (d, n_s) as an array.

    Raises
    ------
    ValueError : not a finite matrix, or rows that depend on each other.
    """
    matrix = np.asarray(patterns, float)
    if matrix.ndim != 2 or not np.isfinite(matrix).all():
        raise ValueError(f"patterns of shape {matrix.shape}: give a finite (order parameters, sublattices) matrix")
    if not len(matrix) or np.linalg.matrix_rank(matrix) < len(matrix):
        raise ValueError(f"the {len(matrix)} patterns are not linearly independent: leave out those that say the same")
    return matrix


def _floating(patterns: Any, eta: Any) -> tuple[jax.Array, jax.Array]:
    eta = jnp.asarray(eta)
    eta = eta if jnp.issubdtype(eta.dtype, jnp.floating) else eta.astype(float)
    return jnp.asarray(patterns, eta.dtype), eta


def _legendre(a: jax.Array, patterns: jax.Array, eta: jax.Array) -> jax.Array:
    t = a @ patterns
    return a @ eta - jnp.mean(jax.nn.softplus(t) + TINY**2 * (jnp.cosh(t) - 1))


def _site(t: jax.Array) -> tuple[jax.Array, jax.Array]:
    """x of t and its slope: the logistic function, and beyond its limits a sinh, so that every x has a t."""
    up = jnp.exp(t)
    down = 1 / up
    return up / (1 + up) + TINY**2 * (up - down) / 2, 1 / (1 + up) / (1 + down) + TINY**2 * (up + down) / 2


def _covariance(a: jax.Array, patterns: jax.Array) -> jax.Array:
    return (patterns * _site(a @ patterns)[1][None]) @ patterns.T / patterns.shape[1]


def _solve(matrix: jax.Array, right: jax.Array) -> jax.Array:
    ridge = 4 * jnp.finfo(matrix.dtype).eps * jnp.trace(matrix)  # beside the boundary it is singular to rounding
    return jax.scipy.linalg.solve(matrix + ridge * jnp.eye(len(right), dtype=matrix.dtype), right, assume_a="pos")
