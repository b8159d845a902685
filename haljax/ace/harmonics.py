"""Real spherical harmonics of unit vectors, as polynomials in the Cartesian components."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp


def real_harmonics(unit: jax.Array, l_max: int) -> list[jax.Array]:
    """Orthonormal real spherical harmonics, one array per degree l.

    The azimuthal part is carried by Re and Im of (x + iy)^m, so nothing is singular at the poles and
    reverse mode needs no guard. No Condon-Shortley phase: m > 0 is cos(m phi), m < 0 is sin(|m| phi).

    Args:
        unit: (..., 3) unit vectors.
        l_max: highest degree.

    Returns:
        ``l_max + 1`` arrays; the l-th has shape (..., 2 l + 1), ordered m = -l ... l.
    """
    x, y, z = unit[..., 0], unit[..., 1], unit[..., 2]
    cosine, sine = [jnp.ones_like(x)], [jnp.zeros_like(x)]
    for _ in range(l_max):
        cosine, sine = (
            cosine + [x * cosine[-1] - y * sine[-1]],
            sine + [x * sine[-1] + y * cosine[-1]],
        )
    # legendre[l, m] = N_lm P_l^m(z) / (1 - z^2)^(m/2), by the normalised three-term recursion in l.
    legendre: dict[tuple[int, int], jax.Array] = {}
    for m in range(l_max + 1):
        diagonal = math.sqrt(1 / (4 * math.pi))
        for k in range(1, m + 1):
            diagonal *= math.sqrt((2 * k + 1) / (2 * k))
        legendre[m, m] = jnp.full_like(z, diagonal * (math.sqrt(2) if m else 1.0))
        for degree in range(m + 1, l_max + 1):
            a = math.sqrt((4 * degree**2 - 1) / (degree**2 - m**2))
            term = a * z * legendre[degree - 1, m]
            if degree > m + 1:
                b = a * math.sqrt(((degree - 1) ** 2 - m**2) / (4 * (degree - 1) ** 2 - 1))
                term = term - b * legendre[degree - 2, m]
            legendre[degree, m] = term
    return [
        jnp.stack(
            [legendre[degree, -m] * sine[-m] for m in range(-degree, 0)]
            + [legendre[degree, m] * cosine[m] for m in range(degree + 1)],
            axis=-1,
        )
        for degree in range(l_max + 1)
    ]
