"""Phases of a free energy: order at a composition, coexistence, spinodals, voltage, the phase diagram.

A surface is anything with the three methods of `minimise.SurfaceLike`; one that also has ``members`` and ``member(k)``
is an ensemble, and what `voltage` and `phase_diagram` report then has the members' spread as its uncertainty.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from haljax.free_energy.minimise import BARRIERS, distinct, minimise
from haljax.lattice.polytope import Polytope, extreme, pull_inside, reach

FRACTIONS = (0.4, 0.9)  # how far from the middle towards the boundary a search starts
COARSE = (1e-6, 1e-6, 1e-6)  # eV, barriers of the first search; as many as those of the last


class Path(NamedTuple):
    """The most stable order at m compositions.

    Attributes
    ----------
    composition : (m,); eta : (m, d).
    free_energy : (m,) eV; potential : (m,) eV, its slope; curvature : (m,) eV, its second derivative, the order
        following the composition.
    stability : (m,) eV, smallest eigenvalue of the whole Hessian.
    converged : (m,) bool.
    """

    composition: np.ndarray
    eta: np.ndarray
    free_energy: np.ndarray
    potential: np.ndarray
    curvature: np.ndarray
    stability: np.ndarray
    converged: np.ndarray


class Coexistence(NamedTuple):
    """Pairs of phases in equilibrium, r of them, in the order of composition.

    Attributes
    ----------
    composition : (r, 2); eta : (r, 2, d).
    potential : (r,) eV, of the composition, common to both.
    converged : (r,) bool; where False the tangent is that of the grid.
    """

    composition: np.ndarray
    eta: np.ndarray
    potential: np.ndarray
    converged: np.ndarray


class Spinodal(NamedTuple):
    """Compositions (s,) at which the free energy loses or regains stability, and eta (s, d) there."""

    composition: np.ndarray
    eta: np.ndarray


class Voltage(NamedTuple):
    """Open-circuit voltage at m compositions.

    Attributes
    ----------
    lithium : (m,) fraction of the sites; voltage : (m,) V; error : (m,) V, the members' standard deviation, NaN
        without members.
    plateau : (m,) bool: two phases coexist there.
    """

    lithium: np.ndarray
    voltage: np.ndarray
    error: np.ndarray
    plateau: np.ndarray


class PhaseDiagram(NamedTuple):
    """Two-phase regions at several temperatures, R of them in all, and stability on a grid.

    Attributes
    ----------
    temperature : (R,) K; composition : (R, 2); eta : (R, 2, d); potential : (R,) eV.
    composition_error : (R, 2), potential_error : (R,) the members' standard deviations; NaN without members.
    found : (R,) part of the members that have the region; NaN without members.
    converged : (R,) bool, see `Coexistence`.
    grid_temperature : (T,); grid_composition : (m,).
    two_phase : (T, m) part of the members that separate there; 0 or 1 without members.
    spinodals : (T,) tuple of `Spinodal`, the order relaxed.
    """

    temperature: np.ndarray
    composition: np.ndarray
    eta: np.ndarray
    potential: np.ndarray
    composition_error: np.ndarray
    potential_error: np.ndarray
    found: np.ndarray
    converged: np.ndarray
    grid_temperature: np.ndarray
    grid_composition: np.ndarray
    two_phase: np.ndarray
    spinodals: tuple[Spinodal, ...]


def seeds(
    key: jax.Array, domain: Polytope, group: Any = None, wells: Any = None, *, axis: int = 0, random: int = 8
) -> np.ndarray:
    """Directions (s, d) in which order is looked for: none, those of known wells (w, d), every axis up and down, and
    `random` isotropic ones; of images under the group (G, d, d) only one."""
    d = domain.dimension
    along = [row for i in range(d) if i != axis for row in (np.eye(d)[i], -np.eye(d)[i])]
    if wells is not None and np.size(wells):
        wells = np.asarray(wells, float)
        along = list(wells - _spine(domain, wells[:, axis], axis, group)) + along
    along += list(np.asarray(jax.random.normal(key, (random, d))))
    directions = np.array(along).reshape(-1, d)
    directions[:, axis] = 0
    length = np.linalg.norm(directions, axis=1)
    directions = directions[length > 1e-9] / length[length > 1e-9, None]
    return np.concatenate([np.zeros((1, d)), directions[distinct(directions, group)]])


def relaxed(
    surface: Any,
    domain: Polytope,
    temperature: float,
    composition: Any,
    directions: Any,
    *,
    group: Any = None,
    axis: int = 0,
) -> Path:
    """The minimum of g over all other order parameters at compositions (m,), searched from `directions` of `seeds`.

    Every composition is searched from the middle of its section of the domain and from places along every direction;
    then each minimum is offered to the neighbouring compositions.

    Parameters
    ----------
    composition : (m,), strictly between the domain's bounds; axis : which order parameter it is.

    Raises
    ------
    ValueError
        A composition at or beyond the ends of the domain, or a temperature that is not positive.
    """
    x = _compositions(domain, temperature, composition, axis)
    m, d = len(x), domain.dimension
    directions = np.asarray(directions, float)
    rise = np.argsort(x)
    spine = _spine(domain, x[rise], axis, group)
    surface.free_energy(spine[:1], temperature)  # it may refuse the temperature, and cannot once it is traced
    step = np.tile(directions[np.linalg.norm(directions, axis=1) > 0], (m, 1, 1))
    base = np.repeat(spine[:, None], step.shape[1], axis=1)
    room = reach(domain, base, step)[..., None] if step.size else np.zeros((m, 0, 1))
    starts = np.concatenate([spine[:, None]] + [base + part * room * step for part in FRACTIONS], axis=1)
    starts = np.concatenate([starts, np.repeat(starts[:, :1], -starts.shape[1] % 3, axis=1)], axis=1)

    def search(three: np.ndarray, iterations: int, barriers: tuple[float, ...]) -> tuple[np.ndarray, ...]:
        rows = jnp.asarray(three.reshape(-1, d))  # as many every time: one program
        found = minimise(surface, domain, rows, temperature, fixed=(axis,), iterations=iterations, barriers=barriers)
        return tuple(np.asarray(a).reshape(m, 3, *a.shape[1:]) for a in (found.eta, found.free_energy, found.converged))

    found = [search(starts[:, i : i + 3], 6, COARSE) for i in range(0, starts.shape[1], 3)]
    eta, value, _ = (np.concatenate(parts, axis=1) for parts in zip(*found, strict=True))
    eta = eta[np.arange(m), _first_of_least(value)]
    tries = [eta]
    for shift in (1, -1):  # what the neighbours' order leads to
        other = np.roll(eta, shift, axis=0)
        other[:, axis] = eta[:, axis]
        tries.append(pull_inside(domain, spine, other, margin=0.01))
    eta, value, converged = search(np.stack(tries, axis=1), 60, BARRIERS)
    best = np.arange(m), _first_of_least(value)
    eta = eta[best] if group is None else _one_variant(eta[best], np.asarray(group), axis)
    back = np.argsort(rise)
    return path_of(surface, eta[back], temperature, axis=axis, converged=converged[best][back])


def _first_of_least(value: np.ndarray) -> np.ndarray:
    """Index (m,) of the least of each row (m, t), the first of equals, so that a path keeps to one variant."""
    value = np.where(np.isfinite(value), value, np.inf)
    return np.argmax(value <= np.min(value, axis=1, keepdims=True) + 1e-9, axis=1)


def _one_variant(eta: np.ndarray, group: np.ndarray, axis: int) -> np.ndarray:
    """Of the equivalent images of minima (m, d) along a path those that lie nearest to their neighbours'."""
    eta = eta.copy()
    first = int(np.argmax(np.linalg.norm(np.delete(eta, axis, axis=1), axis=1)))
    images = group @ eta[first]
    eta[first] = leader = images[np.lexsort(-np.round(images, 6).T[::-1])[0]]
    for way in (range(first + 1, len(eta)), range(first - 1, -1, -1)):
        last = leader
        for i in way:
            images = group @ eta[i]
            far = np.sum((images - last) ** 2, axis=1) + 1e-6 * np.sum((images - leader) ** 2, axis=1)
            last = eta[i] = images[np.argmin(far)]
    return eta


def path_of(surface: Any, eta: Any, temperature: float, *, axis: int = 0, converged: Any = True) -> Path:
    """The path of given points (m, d), e.g. of the disordered state: what is said of minima holds if they are."""
    eta = np.asarray(eta, float)
    found = _derivatives(surface, jnp.asarray(eta), temperature, axis)
    converged = np.broadcast_to(np.asarray(converged), (len(eta),))
    free_energy, potential, curvature, stability = (np.asarray(a) for a in found)
    return Path(eta[:, axis], eta, free_energy, potential, curvature, stability, converged)


@partial(jax.jit, static_argnames="axis")
def _derivatives(surface: Any, eta: jax.Array, temperature: Any, axis: int) -> tuple[jax.Array, ...]:
    """Free energy, potential, curvature and stability (m,) of `Path` at minima (m, d) over the order."""
    potential = surface.chemical_potential(eta, temperature)[:, axis]
    hessian = surface.hessian(eta, temperature)
    hessian = (hessian + jnp.swapaxes(hessian, 1, 2)) / 2
    rest = np.delete(np.arange(eta.shape[1]), axis)
    across = hessian[:, axis, rest]
    follow = jnp.linalg.solve(hessian[:, rest][:, :, rest], across[..., None])[..., 0] if len(rest) else across
    curvature = hessian[:, axis, axis] - jnp.sum(across * follow, axis=1)
    return surface.free_energy(eta, temperature), potential, curvature, jnp.linalg.eigvalsh(hessian)[:, 0]


def coexistence(
    surface: Any, domain: Polytope, temperature: float, path: Path, *, axis: int = 0, tolerance: float = 1e-9
) -> Coexistence:
    """Common tangents of the free energy along a path of rising composition.

    The lower convex hull of the path's points gives the pairs, to within the spacing of the path; Newton's method on
    ``mu(a) = mu(b) = (m, 0, ...)``, ``g(b) - g(a) = m (x_b - x_a)`` then makes them exact. Two-phase regions narrower
    than the spacing are found only where mu falls between neighbouring points.

    Parameters
    ----------
    tolerance : eV; g is not convex where it lies so far above its hull.
    """
    x, f = path.composition, path.free_energy
    if np.any(np.diff(x) <= 0):
        raise ValueError("the path's compositions must rise: sort them and leave out repeated ones")
    corners = lower_hull(x, f)
    pairs = []
    for i, j in zip(corners[:-1], corners[1:], strict=True):
        if j == i + 1:
            if path.potential[j] < path.potential[i] - tolerance / (x[j] - x[i]):
                pairs.append((i, j))
            continue
        inner = slice(i + 1, j)
        chord = f[i] + (f[j] - f[i]) * (x[inner] - x[i]) / (x[j] - x[i])
        if np.max(f[inner] - chord) > tolerance:
            pairs.append((i, j))
    index = np.array(pairs, int).reshape(-1, 2)
    eta, slope, done = _tangents(surface, domain, temperature, path.eta[index], axis)
    spacing = np.max(np.diff(x)) if len(x) > 1 else 0.0
    moved = np.abs(eta[..., axis] - x[index])
    at_end = (index == 0) | (index == len(x) - 1)
    done &= np.all((moved <= 2 * spacing) | at_end, axis=1) & (eta[:, 1, axis] > eta[:, 0, axis])
    done &= np.abs(eta[:, 1] - eta[:, 0]).max(axis=1, initial=0) > 1e-6
    grid_slope = (f[index[:, 1]] - f[index[:, 0]]) / (x[index[:, 1]] - x[index[:, 0]])
    eta = np.where(done[:, None, None], eta, path.eta[index])
    return Coexistence(eta[..., axis], eta, np.where(done, slope, grid_slope), done)


def spinodals(
    surface: Any, domain: Polytope, temperature: float, path: Path, *, axis: int = 0, relax: bool = True
) -> Spinodal:
    """Where stability is lost along a path of rising composition, by bisection between its points.

    Parameters
    ----------
    relax : True: the order follows the composition, and the curvature of `Path` changes sign. False: the order stays
        as the path has it between neighbouring points (a straight line; for the disordered state give a path of it),
        and the smallest eigenvalue of the whole Hessian changes sign. A change of sign by a jump from one kind of
        order to another is none.
    """

    def at(eta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        n = len(eta)
        points = jnp.asarray(np.concatenate([eta, np.repeat(eta[-1:], -n % 8, axis=0)]))  # few sizes, few programs
        if relax:
            points = minimise(surface, domain, points, temperature, fixed=(axis,)).eta
        _, _, curvature, stability = _derivatives(surface, points, temperature, axis)
        return np.asarray(points)[:n], np.asarray(curvature if relax else stability)[:n]

    values = path.curvature if relax else path.stability
    left = np.flatnonzero(np.sign(values[:-1]) * np.sign(values[1:]) < 0)
    low, high = path.eta[left], path.eta[left + 1]
    sign = np.sign(values[left])
    size = np.minimum(np.abs(values[left]), np.abs(values[left + 1]))
    for _ in range(50 if len(left) else 0):
        eta, value = at((low + high) / 2)
        same = (np.sign(value) == sign)[:, None]
        low, high = np.where(same, eta, low), np.where(same, high, eta)
    eta, value = at((low + high) / 2) if len(left) else (low, size)
    crossing = np.abs(value) < 1e-3 * size + 1e-9
    return Spinodal(eta[crossing, axis], eta[crossing])


def voltage(
    surface: Any,
    domain: Polytope,
    temperature: float,
    composition: Any,
    directions: Any,
    *,
    group: Any = None,
    axis: int = 0,
    vacancies: bool = True,
    sites: int = 1,
    constant: float = 0.0,
) -> Voltage:
    """V(x) = -mu_Li / e + constant at rising compositions (m,), flat where two phases coexist.

    Parameters
    ----------
    composition, directions, group, axis : as for `relaxed`.
    vacancies : whether the composition counts vacancies, so that ``mu_Li = -mu``; else it counts lithium.
    sites : counted sites per primitive cell, to which g refers.
    constant : V, the potential of lithium in the reference electrode less what g's own reference takes off.
    """
    sign = (1 if vacancies else -1) / sites

    def one(part: Any) -> tuple[np.ndarray, np.ndarray]:
        path = relaxed(part, domain, temperature, composition, directions, group=group, axis=axis)
        pairs = coexistence(part, domain, temperature, path, axis=axis)
        inside = _inside(path.composition, pairs)
        mu = path.potential.copy()
        for region, slope in zip(inside, pairs.potential, strict=True):
            mu[region] = slope
        return sign * mu + constant, np.any(inside, axis=0)

    mean, plateau = one(surface)
    members = [one(part)[0] for part in members_of(surface)]
    error = np.std(members, axis=0) if members else np.full(mean.shape, np.nan)
    x = np.asarray(composition, float)
    return Voltage(1 - x if vacancies else x, mean, error, plateau)


def phase_diagram(
    surface: Any,
    domain: Polytope,
    temperatures: Any,
    composition: Any,
    directions: Any,
    *,
    group: Any = None,
    axis: int = 0,
) -> PhaseDiagram:
    """Coexistence and spinodals at temperatures (T,) K along rising compositions (m,); other arguments as `relaxed`.

    A member's region is the one that overlaps most in composition with that of the mean surface.
    """
    temperatures, x = np.asarray(temperatures, float).reshape(-1), np.asarray(composition, float)
    regions: dict[str, list] = {name: [] for name in PhaseDiagram._fields[:8]}
    two_phase, spinodal = [], []
    for T in temperatures:
        path = relaxed(surface, domain, T, x, directions, group=group, axis=axis)
        pairs = coexistence(surface, domain, T, path, axis=axis)
        spinodal.append(spinodals(surface, domain, T, path, axis=axis))
        others = []
        for part in members_of(surface):
            own = relaxed(part, domain, T, x, directions, group=group, axis=axis)
            others.append(coexistence(part, domain, T, own, axis=axis))
        two_phase.append(np.mean([_inside(x, p).any(axis=0) for p in others or [pairs]], axis=0))
        for r, (a, b) in enumerate(pairs.composition):
            matched = [m for p in others if (m := _match(p, a, b)) is not None]
            ends = np.std([c for c, _ in matched], axis=0) if matched else np.full(2, np.nan)
            slope = np.std([s for _, s in matched]) if matched else np.nan
            found = len(matched) / len(others) if others else np.nan
            row = T, pairs.composition[r], pairs.eta[r], pairs.potential[r], ends, slope, found, pairs.converged[r]
            for name, value in zip(regions, row, strict=True):
                regions[name].append(value)
    shapes = dict(composition=(2,), eta=(2, domain.dimension), composition_error=(2,))
    arrays = {name: np.array(rows).reshape((-1, *shapes.get(name, ()))) for name, rows in regions.items()}
    arrays["converged"] = arrays["converged"].astype(bool)
    stable = np.array(two_phase).reshape(len(temperatures), len(x))
    return PhaseDiagram(
        **arrays, grid_temperature=temperatures, grid_composition=x, two_phase=stable, spinodals=tuple(spinodal)
    )


def members_of(surface: Any) -> list[Any]:
    """The members of an ensemble as surfaces; none for a surface that is not one, or of one member."""
    count = getattr(surface, "members", 1)
    return [surface.member(k) for k in range(count)] if count > 1 else []


def lower_hull(x: Any, f: Any) -> np.ndarray:
    """Indices of the corners of the lower convex hull of points (x, f), x rising (Andrew's monotone chain)."""
    x, f = np.asarray(x, float), np.asarray(f, float)
    corners: list[int] = []
    for i in np.flatnonzero(np.isfinite(f)):
        while len(corners) > 1:
            a, b = corners[-2:]
            if (f[b] - f[a]) * (x[i] - x[a]) < (f[i] - f[a]) * (x[b] - x[a]):
                break
            corners.pop()
        corners.append(int(i))
    return np.array(corners, int)


def _compositions(domain: Polytope, temperature: float, composition: Any, axis: int) -> np.ndarray:
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature} K: give a positive number of kelvin")
    x = np.asarray(composition, float).reshape(-1)
    lower, upper = (float(bound[axis]) for bound in domain.bounding_box())
    if not np.all((x > lower) & (x < upper)):
        raise ValueError(
            f"compositions must lie strictly between {lower:g} and {upper:g}: {x.min()} to {x.max()} given"
        )
    return x


def _spine(domain: Polytope, x: np.ndarray, axis: int, group: Any) -> np.ndarray:
    """Points (m, d) of composition x (m,) well inside: on the straight ways from the domain's centre to its ends."""
    unit = np.eye(domain.dimension)[axis]
    knots = np.array([extreme(domain, -unit), domain.chebyshev_centre()[0], extreme(domain, unit)])
    if group is not None:
        knots = np.einsum("gij,mj->mi", np.asarray(group), knots) / len(group)
    return np.stack([np.interp(x, knots[:, axis], knots[:, i]) for i in range(domain.dimension)], axis=-1)


def _tangents(
    surface: Any, domain: Polytope, temperature: float, eta: np.ndarray, axis: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Newton's method on the common tangents of r pairs eta (r, 2, d): eta, slope (r,), converged (r,)."""
    r, _, d = eta.shape
    unit = np.eye(d)[axis]

    def residual(eta: np.ndarray, slope: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        flat = jnp.asarray(eta.reshape(-1, d))
        mu = np.asarray(surface.chemical_potential(flat, temperature)).reshape(r, 2, d)
        g = np.asarray(surface.free_energy(flat, temperature)).reshape(r, 2)
        gap = g[:, 1] - g[:, 0] - slope * (eta[:, 1, axis] - eta[:, 0, axis])
        tilt = (mu - slope[:, None, None] * unit[None, None]).reshape(r, 2 * d)
        return np.concatenate([tilt, gap[:, None]], axis=1), mu

    if not r:
        return eta, np.zeros(0), np.zeros(0, bool)
    slope = np.zeros(r)
    done = np.zeros(r, bool)
    for count in range(100):
        value, mu = residual(eta, slope)
        if count == 0:
            slope = mu[:, :, axis].mean(axis=1)
            value, mu = residual(eta, slope)
        flat = jnp.asarray(eta.reshape(-1, d))
        hessian = np.asarray(surface.hessian(flat, temperature)).reshape(r, 2, d, d)
        jacobian = np.zeros((r, 2 * d + 1, 2 * d + 1))
        jacobian[:, :d, :d], jacobian[:, d : 2 * d, d : 2 * d] = hessian[:, 0], hessian[:, 1]
        jacobian[:, :d, -1] = jacobian[:, d : 2 * d, -1] = -unit
        jacobian[:, -1, :d] = slope[:, None] * unit - mu[:, 0]
        jacobian[:, -1, d : 2 * d] = mu[:, 1] - slope[:, None] * unit
        jacobian[:, -1, -1] = eta[:, 0, axis] - eta[:, 1, axis]
        usable = np.isfinite(jacobian).all(axis=(1, 2)) & np.isfinite(value).all(axis=1)
        jacobian[~usable], value = np.eye(2 * d + 1), np.where(usable[:, None], value, 0)
        change = (
            -np.linalg.lstsq(jacobian[0], value[0], rcond=None)[0][None]
            if r == 1
            else -np.stack([np.linalg.lstsq(j, v, rcond=None)[0] for j, v in zip(jacobian, value, strict=True)])
        )
        step = change[:, : 2 * d].reshape(r, 2, d)
        room = np.asarray(reach(domain, jnp.asarray(eta), jnp.asarray(step)))
        part = np.minimum(0.9 * room.min(axis=1), 1.0)
        eta = eta + part[:, None, None] * step
        slope = slope + part * change[:, -1]
        done = usable & (np.abs(step).max(axis=(1, 2)) < 1e-12) & (part == 1)
        if done.all():
            break
    value, _ = residual(eta, slope)
    return eta, slope, done | (np.abs(value).max(axis=1) < 1e-9)


def _inside(x: np.ndarray, pairs: Coexistence) -> np.ndarray:
    """(r, m) whether compositions lie in the two-phase regions."""
    return (x[None] > pairs.composition[:, :1]) & (x[None] < pairs.composition[:, 1:])


def _match(pairs: Coexistence, a: float, b: float) -> tuple[np.ndarray, float] | None:
    """Ends and potential of the pair that overlaps most with (a, b), None if none does."""
    overlap = np.minimum(pairs.composition[:, 1], b) - np.maximum(pairs.composition[:, 0], a)
    if not len(overlap) or not np.max(overlap) > 0:
        return None
    best = int(np.argmax(overlap))
    return pairs.composition[best], float(pairs.potential[best])
