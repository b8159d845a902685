"""What the criteria share: neighbourhoods inside the domain, scales, curvatures, the best of scored candidates."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from haljax.free_energy.criteria.view import Proposal, View
from haljax.free_energy.network import bucket
from haljax.lattice.ideal import negentropy
from haljax.lattice.polytope import Polytope, extreme, pull_inside, reach
from haljax.lattice.units import KB


def nothing(view: View, reason: str) -> Proposal:
    """No targets, and why."""
    return Proposal(np.zeros((0, view.domain.dimension)), reason)


def untrained(view: View) -> Proposal | None:
    """The empty answer of a criterion that needs a trained surface where there is none."""
    if view.surface is not None:
        return None
    return nothing(view, "needs a trained surface, and there is none before the first round")


def generator(key: jax.Array) -> np.random.Generator:
    """numpy's random numbers from a JAX key, for draws on the host, where every size would compile a program."""
    return np.random.default_rng(np.asarray(jax.random.bits(key, (4,), np.uint32)))


def candidates(view: View) -> np.ndarray:
    """The candidates (m, d) that are finite and in the domain.

    Raises
    ------
    ValueError
        There is none.
    """
    given = np.asarray(view.candidates)
    good = given[view.domain.contains(given, 1e-9)]
    if not len(good):
        raise ValueError(f"none of the {len(given)} candidates is a finite point of the domain: give others")
    return good


def perturbed(key: jax.Array, domain: Polytope, base: Any, width: Any) -> np.ndarray:
    """Points (n, d) displaced from points inside (n, d) by up to ``width / 2`` in every component, and still inside.

    `width` is one number, or one for each component (d,). A displacement that would leave the domain is cut to a
    random part of the way to the boundary: the points do not pile up on it.
    """
    random, base = generator(key), np.asarray(base)
    step = np.reshape(width, (1, -1)) * (random.random(base.shape) - 0.5)
    room = reach(domain, base, step)
    part = np.where(room < 1, np.minimum(room, 1) * random.random(len(base)), 1.0)
    return base + part[:, None] * step


def around(key: jax.Array, view: View, base: Any, n: int, repeat: int, width: float) -> np.ndarray:
    """The first n of: every base point (m, d) `repeat` times, best first, perturbed by `width`."""
    base = np.repeat(np.asarray(base), repeat, axis=0)[:n]
    inside = pull_inside(view.domain, middle(view)[None, :], base)
    return perturbed(key, view.domain, inside, width) if width else inside


def best(scores: Any, n: int) -> np.ndarray:
    """Indices of the n largest finite scores, largest first; ties in the order given."""
    scores = np.asarray(scores, float)
    order = np.argsort(-np.where(np.isfinite(scores), scores, -np.inf), kind="stable")[:n]
    return order[np.isfinite(scores[order])]


def top(key: jax.Array, view: View, points: Any, scores: Any, n: int, repeat: int, width: float, what: str) -> Proposal:
    """The neighbourhoods of the points (m, d) with the largest scores (m,); `what` names them when they are too few."""
    if repeat < 1:
        raise ValueError(f"repeat = {repeat}: give a positive number")
    if not width >= 0:
        raise ValueError(f"perturb = {width}: give a number that is not negative")
    chosen = best(scores, -(-n // repeat))
    if not len(chosen):
        return nothing(view, f"no {what}")
    eta = around(key, view, np.asarray(points)[chosen], n, repeat, width)
    return Proposal(eta, "" if len(eta) == n else f"only {len(chosen)} {what}")


def scale(view: View) -> np.ndarray:
    """(d,) eV, the spread of mu in each component: of the labels, or of predictions where labels are too few."""
    mu = np.asarray(view.labels.mu)
    if len(mu) < 2:
        mu = np.asarray(view.surface.chemical_potential(candidates(view), view.temperature))
        mu = mu[np.isfinite(mu).all(axis=1)]
    spread = mu.std(axis=0)
    return np.where(spread > 0, spread, 1.0)


def curvatures(view: View, points: Any) -> jax.Array:
    """Eigenvalues (m, d) of the predicted Hessian, ascending; see `View.patterns` for what is left out of it."""
    points, n = jnp.asarray(points), len(points)
    points = jnp.concatenate([points, jnp.repeat(points[:1], bucket(n) - n, axis=0)])  # sizes share a few programs
    hessian = view.surface.hessian(points, view.temperature)
    if view.patterns is not None:
        hessian = hessian - view.sites * KB * view.temperature * _ideal(jnp.asarray(view.patterns), points)
    return eigenvalues(hessian)[:n]


@jax.jit
def eigenvalues(hessian: jax.Array) -> jax.Array:
    """Eigenvalues (m, d), ascending, of the symmetric parts of matrices (m, d, d); NaN for those not finite."""
    return jnp.linalg.eigvalsh((hessian + jnp.swapaxes(hessian, 1, 2)) / 2)


@jax.jit
def _ideal(patterns: jax.Array, points: jax.Array) -> jax.Array:
    return jax.vmap(jax.hessian(lambda eta: negentropy(patterns, eta)))(points)


def images(view: View, points: Any) -> np.ndarray:
    """The distinct images (k, d) of points (m, d) under the group."""
    points = np.asarray(points, float)
    if view.group is not None:
        points = np.einsum("gij,mj->mgi", np.asarray(view.group), points).reshape(-1, points.shape[1])
    return points[np.sort(np.unique(np.round(points, 9) + 0.0, axis=0, return_index=True)[1])]


def middle(view: View) -> np.ndarray:
    """(d,) a centre of the domain that the whole group fixes."""
    centre = view.domain.chebyshev_centre()[0]
    return centre if view.group is None else np.mean(np.asarray(view.group) @ centre, axis=0)


def end_members(view: View) -> np.ndarray:
    """(2, d) the points of least and of largest composition; of several, their mean under the group."""
    direction = np.eye(view.domain.dimension)[0]
    ends = np.array([extreme(view.domain, -direction), extreme(view.domain, direction)])
    return ends if view.group is None else np.einsum("gij,mj->mi", np.asarray(view.group), ends) / len(view.group)


def known_wells(view: View) -> np.ndarray:
    """(k, d) every image of the known ordered states.

    Raises
    ------
    ValueError
        None was given, or one lies outside the domain.
    """
    d = view.domain.dimension
    if view.wells is None or not np.size(view.wells):
        raise ValueError("no ordered states are known: give `wells`, one eta for each kind")
    wells = np.asarray(view.wells, float)
    if wells.ndim != 2 or wells.shape[1] != d:
        raise ValueError(f"wells have shape {wells.shape}: give (states, {d})")
    outside = np.flatnonzero(~view.domain.contains(wells, 1e-6))
    if outside.size:
        raise ValueError(f"well {outside[0]}, {wells[outside[0]].tolist()}, lies outside the domain")
    return images(view, wells)
