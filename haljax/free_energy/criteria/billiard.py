"""Space filling by a billiard walk."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from haljax.free_energy.criteria.scoring import generator
from haljax.free_energy.criteria.view import Proposal, View
from haljax.lattice.polytope import Polytope, reach


def billiard(key: jax.Array, view: View, n: int, *, boundary: float = 0.25) -> Proposal:
    """Points spread uniformly over the domain, a share of them over its boundary, in random order.

    Parameters
    ----------
    boundary : share, 0 to 1, of points on the boundary.
    """
    if not 0 <= boundary <= 1:
        raise ValueError(f"boundary = {boundary}: give a share between 0 and 1")
    inner, outer, order = jax.random.split(key, 3)
    on_boundary = round(boundary * n)
    points = [fill(inner, view.domain, n - on_boundary), fill_boundary(outer, view.domain, on_boundary)]
    return Proposal(generator(order).permutation(np.concatenate(points)))


def fill(key: jax.Array, domain: Polytope, n: int, *, walkers: int = 64) -> np.ndarray:
    """n points (n, d), uniform in the domain. See `walk`."""
    steps = _steps(n, walkers)
    return np.asarray(walk(key, domain, _starts(domain, walkers), steps)).reshape(-1, domain.dimension)[:n]


def fill_boundary(key: jax.Array, domain: Polytope, n: int, *, walkers: int = 64) -> np.ndarray:
    """n points (n, d), uniform over the domain's boundary. See `bounce`."""
    steps = _steps(n, walkers)
    return np.asarray(bounce(key, domain, _starts(domain, walkers), steps)).reshape(-1, domain.dimension)[:n]


def _steps(n: int, walkers: int) -> int:
    """The steps that make n points, rounded up to a power of two: few sizes, few programs."""
    return 1 << max(0, -(-n // walkers) - 1).bit_length()


def _starts(domain: Polytope, walkers: int) -> jax.Array:
    return jnp.broadcast_to(jnp.asarray(domain.chebyshev_centre()[0]), (walkers, domain.dimension))


@partial(jax.jit, static_argnames=("steps", "settle"))
def walk(key: jax.Array, domain: Polytope, start: jax.Array, steps: int, *, settle: int = 50) -> jax.Array:
    """Billiard walks from starts (W, d) inside: (steps, W, d), uniform in the domain after `settle` steps left out.

    Each step flies an exponentially distributed length in an isotropic direction and is reflected where it meets the
    boundary; one that needs more than 10 d + 50 reflections does not count, and the walk stays where it was.
    Polyak & Gryazina, IFAC Proc. Vol. 47, 6123 (2014), doi:10.3182/20140824-6-ZA-1003.02312.
    """
    W, d = start.shape
    normals = jnp.asarray(domain.normals, start.dtype)
    mean_length = _size(domain, start)

    def fly(carry):
        x, direction, left, count = carry
        ahead, plane = _nearest(domain, x, direction)
        hit = (ahead < left) & (left > 0)
        x = x + jnp.minimum(ahead, left)[:, None] * direction
        normal = normals[plane]
        turn = 2 * jnp.sum(direction * normal, axis=1, keepdims=True) * normal
        return x, jnp.where(hit[:, None], direction - turn, direction), jnp.where(hit, left - ahead, 0), count + 1

    def step(x, key):
        to_length, to_direction = jax.random.split(key)
        length = mean_length * jax.random.exponential(to_length, (W,), start.dtype)
        carry = x, _isotropic(to_direction, W, d, start.dtype), length, 0
        new, _, left, _ = jax.lax.while_loop(lambda c: jnp.any(c[2] > 0) & (c[3] < 10 * d + 50), fly, carry)
        return (x := jnp.where((left > 0)[:, None], x, new)), x

    return jax.lax.scan(step, start, jax.random.split(key, settle + steps))[1][settle:]


@partial(jax.jit, static_argnames=("steps", "settle"))
def bounce(key: jax.Array, domain: Polytope, start: jax.Array, steps: int, *, settle: int = 50) -> jax.Array:
    """Walks on the boundary from starts (W, d) inside: (steps, W, d), uniform by area after `settle` steps left out.

    From a point of a face the next is where a ray ends whose direction follows the cosine law: the running
    shake-and-bake of Boender et al., Oper. Res. 39, 945 (1991), doi:10.1287/opre.39.6.945.
    """
    W, d = start.shape
    normals = jnp.asarray(domain.normals, start.dtype)

    def land(x, direction):
        ahead, plane = _nearest(domain, x, direction)
        x = x + ahead[:, None] * direction
        # onto the plane again, which rounding has missed
        miss = jnp.asarray(domain.offsets, start.dtype)[plane] - jnp.sum(normals[plane] * x, axis=1)
        return x + miss[:, None] * normals[plane], plane

    def step(carry, key):
        x, plane = carry
        to_direction, to_radius = jax.random.split(key)
        inward = -normals[plane]
        along = _isotropic(to_direction, W, d, start.dtype)
        along = along - jnp.sum(along * inward, axis=1, keepdims=True) * inward
        length = jnp.linalg.norm(along, axis=1, keepdims=True)
        along = along / jnp.where(length > 0, length, 1)
        u = jax.random.uniform(to_radius, (W, 1), start.dtype)
        radius = u ** (1 / (d - 1)) if d > 1 else jnp.zeros_like(u)
        new = land(x, radius * along + jnp.sqrt(1 - radius**2) * inward)
        return new, new[0]

    first, rest = jax.random.split(key)
    carry = land(start, _isotropic(first, W, d, start.dtype))
    return jax.lax.scan(step, carry, jax.random.split(rest, settle + steps))[1][settle:]


def _nearest(domain: Polytope, x: jax.Array, direction: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Distance (W,) to the plane (W,) that a ray meets first."""
    slack = jnp.maximum(domain.slack(x), 0)
    rate = direction @ jnp.asarray(domain.normals, x.dtype).T
    ahead = jnp.where(rate > 0, slack / jnp.where(rate > 0, rate, 1), jnp.inf)
    plane = jnp.argmin(ahead, axis=1)
    return jnp.take_along_axis(ahead, plane[:, None], axis=1)[:, 0], plane


def _isotropic(key: jax.Array, W: int, d: int, dtype: jnp.dtype) -> jax.Array:
    gauss = jax.random.normal(key, (W, d), dtype)
    return gauss / jnp.linalg.norm(gauss, axis=1, keepdims=True)


def _size(domain: Polytope, start: jax.Array) -> jax.Array:
    """A length that crosses the domain: the longest straight way through the first start along an axis."""
    axes = jnp.concatenate([jnp.eye(start.shape[1], dtype=start.dtype), -jnp.eye(start.shape[1], dtype=start.dtype)])
    base = jnp.broadcast_to(start[:1], axes.shape)
    return 2 * jnp.max(reach(domain, base, axes))
