"""Minima of a surface over a polytope, some coordinates fixed: a batch of starts at once."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from haljax.lattice.polytope import Polytope, reach

BARRIERS = (1e-6, 1e-9, 1e-13)  # eV; the last leaves less than 1e-9 of bias on a fraction of 1e-6 at 300 K


class SurfaceLike(Protocol):
    """What criteria and phases ask of a surface: a pytree with these methods, traceable, eta (..., d), K, eV."""

    def free_energy(self, eta: Any, temperature: Any) -> jax.Array: ...
    def chemical_potential(self, eta: Any, temperature: Any) -> jax.Array: ...
    def hessian(self, eta: Any, temperature: Any) -> jax.Array: ...


class Tilted(NamedTuple):
    """``g - slope . eta``, a surface again; slope (d,) eV."""

    surface: Any
    slope: Any

    def free_energy(self, eta: Any, temperature: Any) -> jax.Array:
        return self.surface.free_energy(eta, temperature) - jnp.asarray(eta) @ self.slope

    def chemical_potential(self, eta: Any, temperature: Any) -> jax.Array:
        mu = self.surface.chemical_potential(eta, temperature)
        return mu - jnp.broadcast_to(self.slope, mu.shape)

    def hessian(self, eta: Any, temperature: Any) -> jax.Array:
        return self.surface.hessian(eta, temperature)


class Minima(NamedTuple):
    """Where m starts ended.

    Attributes
    ----------
    eta : (m, d); free_energy : (m,) eV.
    curvature : (m,) eV, smallest eigenvalue of the Hessian in the free coordinates; at a saddle it is negative.
    converged : (m,) bool: inside, and the last Newton step was below rounding.
    """

    eta: jax.Array
    free_energy: jax.Array
    curvature: jax.Array
    converged: jax.Array


@partial(jax.jit, static_argnames="fixed")
def minimise(
    surface: Any,
    domain: Polytope,
    start: jax.Array,
    temperature: Any,
    *,
    fixed: tuple[int, ...] = (),
    iterations: int = 60,
    barriers: tuple[float, ...] = BARRIERS,
) -> Minima:
    """The local minimum of g next to each start (m, d), coordinates `fixed` held.

    Newton steps on ``g - w sum log(distance to the boundary)`` with w falling, so that minima on the boundary are
    found as those inside; directions of negative curvature are followed downhill (the absolute value
    of the Hessian), steps end before the boundary and are halved until g falls. Starts ought to be strictly
    inside: no promise is made of another but that it is not called converged outside.

    Parameters
    ----------
    fixed : static. iterations : the most steps for each of `barriers`, the weights w, eV.
    """
    start = jnp.asarray(start)
    m, d = start.shape
    free = jnp.array([i for i in range(d) if i not in fixed], int)
    small = jnp.finfo(start.dtype).eps
    planes = jnp.asarray(domain.normals, start.dtype)

    def walled(value, weight, eta):
        slack = domain.slack(eta)
        inside = jnp.all(slack > 0, axis=-1)
        logs = jnp.sum(jnp.log(jnp.where(slack > 0, slack, 1)), axis=-1)
        return jnp.where(inside, value - weight * logs, jnp.inf)

    def derivatives(eta):
        """g, its gradient and its Hessian, all from one pass; the rows know nothing of each other."""

        def total(eta):
            value = surface.free_energy(eta, temperature)
            return jnp.sum(value), value

        gradient, push, value = jax.linearize(jax.grad(total, has_aux=True), eta, has_aux=True)
        along = jnp.broadcast_to(jnp.eye(d, dtype=eta.dtype)[:, None], (d, m, d))
        return value, gradient, jnp.moveaxis(jax.vmap(push)(along), 0, -1)

    def halve(carry):
        length, _, eta, value, slope, direction, weight = carry
        moved = eta + length[:, None] * direction
        new = walled(surface.free_energy(moved, temperature), weight, moved)
        fine = new <= value + 1e-4 * length * slope + 8 * small * jnp.maximum(jnp.abs(value), 1e-3)
        return jnp.where(fine, length, length / 2), fine, eta, value, slope, direction, weight

    def step(carry):
        count, weight, eta, _ = carry
        g, gradient, hessian = derivatives(eta)
        inverse = 1 / domain.slack(eta)
        gradient = (gradient + weight * inverse @ planes)[:, free]
        hessian = hessian + weight * jnp.einsum("nf,fi,fj->nij", inverse**2, planes, planes)
        value, vectors = jnp.linalg.eigh(hessian[:, free][:, :, free])
        value = jnp.maximum(jnp.abs(value), 1e-9 * jnp.max(jnp.abs(value), axis=-1, keepdims=True) + 1e-12)
        along = jnp.einsum("nji,nj->ni", vectors, gradient) / value
        direction = jnp.zeros_like(eta).at[:, free].set(-jnp.einsum("nij,nj->ni", vectors, along))
        slope = jnp.sum(gradient * direction[:, free], axis=-1)
        length = jnp.minimum(0.95 * reach(domain, eta, direction), 1.0)
        carry = length, jnp.zeros(m, bool), eta, walled(g, weight, eta), slope, direction, weight
        more = lambda c: jnp.any(~c[1] & (c[0] > 1e-9))  # a row that cannot fall, or is NaN, gives up
        length, fine, *_ = jax.lax.while_loop(more, halve, carry)
        moved = jnp.where((fine & jnp.isfinite(slope))[:, None], eta + length[:, None] * direction, eta)
        tiny = jnp.max(jnp.abs(direction), axis=-1) < small**0.6
        return count + 1, weight, moved, tiny

    if not len(free):
        value = surface.free_energy(start, temperature)
        return Minima(start, value, jnp.full(m, jnp.inf, start.dtype), jnp.isfinite(value))

    def stage(carry, weight):
        carry = 0, weight, carry[0], jnp.zeros(m, bool)
        _, _, eta, done = jax.lax.while_loop(lambda c: (c[0] < iterations) & jnp.any(~c[3]), step, carry)
        return (eta, done), None

    (eta, done), _ = jax.lax.scan(stage, (start, jnp.zeros(m, bool)), jnp.array(barriers, start.dtype))
    value, _, hessian = derivatives(eta)
    curvature = jnp.linalg.eigvalsh(hessian[:, free][:, :, free])[:, 0]
    done = done & jnp.isfinite(curvature) & jnp.all(domain.slack(eta) > 0, axis=1)
    return Minima(eta, value, curvature, done)


def distinct(points: Any, group: Any = None, tolerance: float = 1e-4) -> np.ndarray:
    """Indices of the points (m, d) that are no image under the group (G, d, d) of one before them."""
    points = np.asarray(points, float)
    group = np.eye(points.shape[1])[None] if group is None else np.asarray(group)
    kept: list[int] = []
    images = np.zeros((0, points.shape[1]))
    for i, point in enumerate(points):
        if not np.any(np.abs(images - point).max(axis=1) < tolerance):
            kept.append(i)
            images = np.concatenate([images, group @ point])
    return np.array(kept, int)
