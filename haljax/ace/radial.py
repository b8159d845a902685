"""Distance transforms and the discrete orthonormal radial polynomials of ACE1x.

Conventions follow ACE1.jl / ACE1x.jl (Drautz, Phys Rev B 99, 014104 (2019), doi:10.1103/PhysRevB.99.014104;
Witt et al., J Chem Phys 159, 164101 (2023), doi:10.1063/5.0158783).
"""

from __future__ import annotations

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np

N_QUADRATURE = 1000


def agnesi(s, p: int, q: int):
    """Generalised Agnesi transform x(s) = 1 / (1 + a s^q / (1 + s^(q-p))), steepest at s = 1; x = 1 for s <= 0."""
    a = (-2 * q + p * (-2 + 4 * q)) / (p + p**2 + q + q**2)
    s = jnp.maximum(s, 0.0) if isinstance(s, jax.Array) else np.maximum(s, 0.0)
    return 1 / (1 + a * s**q / (1 + s ** (q - p)))


@lru_cache
def recursion(n_max: int, p_left: int, p_right: int) -> np.ndarray:
    """Coefficients of polynomials orthonormal on 1000 midpoints of [-1, 1], with the envelope inside.

    J_1 = A_1 (t + 1)^p_left (t - 1)^p_right,  J_n = (A_n t + B_n) J_{n-1} + C_n J_{n-2}.

    Returns:
        (n_max, 3) rows (A_n, B_n, C_n); A_1 is the prefactor of J_1.
    """
    t = -1 + (2 * np.arange(N_QUADRATURE) + 1) / N_QUADRATURE
    first = (t + 1) ** p_left * (t - 1) ** p_right
    prefactor = 1 / np.sqrt(np.mean(first**2))
    values, rows = [first * prefactor], [(prefactor, 0.0, 0.0)]
    for _ in range(1, n_max):
        last, before = values[-1], values[-2] if len(values) > 1 else np.zeros_like(t)
        b, c = np.mean(t * last * last), np.mean(t * last * before)
        residual = (t - b) * last - c * before
        a = np.sqrt(np.mean(residual**2))
        values.append(residual / a)
        rows.append((1 / a, -b / a, -c / a))
    return np.array(rows)


def polynomials(t, n_max: int, p_left: int, p_right: int, rolled: bool = False):
    """J_1 ... J_n_max at ``t``, (..., n_max); zero outside [-1, 1] when the envelope is there to make it smooth.

    ``rolled``: as a loop, which compiles many times faster, and runs slower unless ``t`` is large.
    """
    xp = jnp if isinstance(t, jax.Array) else np
    table = recursion(n_max, p_left, p_right)
    a, b, c = table.T.tolist()  # plain floats: float32 stays float32
    inside = (t > -1) & (t < 1) if p_left and p_right else xp.ones_like(t, dtype=bool)
    first = xp.where(inside, a[0] * (t + 1) ** p_left * (t - 1) ** p_right, 0.0)
    if rolled:

        def step(last, row):
            value = (row[0] * t + row[1]) * last[0] + row[2] * last[1]
            return (value, last[0]), value

        _, rest = jax.lax.scan(step, (first, jnp.zeros_like(first)), jnp.asarray(table[1:], t.dtype))
        return jnp.moveaxis(jnp.concatenate([first[None], rest]), 0, -1)
    values = [first]
    for n in range(1, n_max):
        value = (a[n] * t + b[n]) * values[-1]
        values.append(value + c[n] * values[-2] if n > 1 else value)
    return xp.stack(values, axis=-1)


@lru_cache
def product_expansion(ns: tuple[int, ...], p_left: int, p_right: int) -> np.ndarray:
    """Coefficients p_k of J_{n_1} J_{n_2} ... = sum_k p_k J_k, exact by orthonormality.

    A product of nu functions carries the envelope to the power nu, so k reaches
    sum(n) - nu + 1 + (p_left + p_right)(nu - 1).
    """
    order = len(ns)
    k_max = sum(ns) - order + 1 + (p_left + p_right) * (order - 1)
    t = -1 + (2 * np.arange(N_QUADRATURE) + 1) / N_QUADRATURE
    values = polynomials(t, k_max, p_left, p_right)
    product = np.prod(values[:, np.array(ns) - 1], axis=1)
    return values.T @ product / N_QUADRATURE


def smooth_step(r, r_in, r_out):
    """0 on the side of ``r_in``, 1 on that of ``r_out`` (either may be larger); septic, three times differentiable."""
    u = jnp.clip((r - r_in) / (r_out - r_in), 0.0, 1.0)
    return u**4 * (35 - 84 * u + 70 * u**2 - 20 * u**3)
