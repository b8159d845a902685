"""What to sample next: criteria propose targets, novelty thins them out, and kappa is set so that windows end there."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from haljax.free_energy.criteria import View, fill, propose
from haljax.free_energy.criteria.scoring import curvatures
from haljax.free_energy.data import Labels
from haljax.free_energy.network import Surface
from haljax.free_energy.novelty import novel
from haljax.free_energy.weighting import improvement, reweight, shares
from haljax.lattice.polytope import pull_inside, reach

if TYPE_CHECKING:
    from haljax.config import FreeEnergyConfig
    from haljax.free_energy.problem import Problem
    from haljax.lattice.order import OrderParameters

log = logging.getLogger(__name__)

CANDIDATES = 4096  # points of the domain that criteria score
BEYOND = 0.09  # of a sublattice, how far outside its range kappa may ask for it to be filled
SURPLUS = 2  # proposals for each point that novelty lets through


class NothingToChoose(RuntimeError):
    """No criterion proposes a point."""


class Choice(NamedTuple):
    """n windows: who chose them (n,), eta they aim at (n, d), K (n,), and the bias's centre kappa (n, d)."""

    criterion: Sequence[str]
    target: np.ndarray
    temperature: np.ndarray
    kappa: np.ndarray


def spread(key: jax.Array, problem: Problem, temperatures: Sequence[float], n: int) -> Choice:
    """Windows spread over the domain, for tests; their kappa are their targets."""
    target = np.asarray(fill(key, problem.order_parameters.polytope, n))
    return Choice(["test"] * n, target, np.resize(temperatures, n), target)


def choose(
    key: jax.Array,
    config: FreeEnergyConfig,
    problem: Problem,
    iteration: int,
    surface: Surface | None,
    known: Labels,
    latest: Labels,
    proposed: np.ndarray,
    weights: Mapping[str, float],
) -> Choice:
    """Windows of one iteration, the criteria's points shared out by their weights and over the temperatures.

    Parameters
    ----------
    known, latest : labels learned from so far, and those of the iteration before.
    proposed : (k, d) all targets so far.

    Raises
    ------
    NothingToChoose : the criteria propose nothing at all.
    """
    op, temperatures = problem.order_parameters, config.sampling.temperature_K
    active = {
        name: c
        for name, c in config.criteria.items()
        if c.from_iteration <= iteration and (c.to_iteration is None or iteration <= c.to_iteration)
    }
    points = shares({name: c.points for name, c in active.items()}, weights)
    names: list[str] = []
    targets, kelvins = [proposed], []
    candidates_key, *keys = jax.random.split(key, 1 + len(active) * len(temperatures))
    candidates = fill(candidates_key, op.polytope, CANDIDATES)
    wells = np.asarray(config.order_parameters.wells).reshape(-1, problem.d)
    streams = iter(keys)
    reachable, centre = problem.targets(), op.polytope.chebyshev_centre()[0]
    pool = None
    if config.choice.pool is not None:
        pool = _points(config.choice.pool, problem.d)
        inside = op.polytope.contains(pool, 1e-9)  # moved as targets are, by which it is known what was used
        pool = np.where(inside[:, None], pull_inside(reachable, centre, pool), pool)
    for name, criterion in active.items():
        for t, kelvin in enumerate(temperatures):
            stream = jax.random.split(next(streams))
            n = (points[name] + (t + iteration) % len(temperatures)) // len(temperatures)
            if not n:
                continue
            view = View(
                domain=op.polytope,
                temperature=kelvin,
                candidates=candidates,
                labels=_at(known, kelvin),
                latest=_at(latest, kelvin),
                surface=surface,
                group=op.group,
                wells=wells if len(wells) else None,
                pool=pool,
                proposed=np.concatenate(targets),
                patterns=problem.network.patterns,
                sites=len(op.sites),
            )
            surplus = SURPLUS if config.choice.novelty else 1
            found = propose(stream[0], criterion.function or name, view, n * surplus, **criterion.options)
            eta = np.asarray(pull_inside(reachable, centre, np.asarray(found.eta)))
            if config.choice.novelty and len(eta):
                bend = None
                if surface is not None:
                    bend = np.abs(np.asarray(curvatures(view, jnp.asarray(eta)))).max(axis=1)
                eta = eta[novel(stream[1], eta, np.concatenate(targets), n, curvature=bend)]
            if len(eta) < n:
                log.info("%s: %d of %d points at %g K: %s", name, len(eta), n, kelvin, found.reason or "novelty")
            names += [name] * len(eta)
            targets.append(eta)
            kelvins.append(np.full(len(eta), kelvin))
    if not names:
        raise NothingToChoose(
            f"no criterion proposes a point in iteration {iteration}; give points to one that needs no model, such as "
            "billiard, or turn off choice.novelty"
        )
    target, temperature = np.concatenate(targets[1:]), np.concatenate(kelvins)
    return Choice(names, target, temperature, _aimed(config, op, surface, iteration, target, temperature))


def _points(path: Path, d: int) -> np.ndarray:
    """Points (p, d) of a text file."""
    try:
        points = np.loadtxt(path, ndmin=2)
    except ValueError as error:
        raise ValueError(f"{path} does not hold numbers in rows of equal length: {error}") from error
    if points.shape[1] != d:
        raise ValueError(f"{path} has rows of {points.shape[1]} numbers: give {d}, one for each order parameter")
    return points


def _aimed(
    config: FreeEnergyConfig,
    op: OrderParameters,
    surface: Surface | None,
    iteration: int,
    target: np.ndarray,
    temperature: np.ndarray,
) -> np.ndarray:
    """kappa (n, d): a window ends mu / (2 phi) short of its kappa, which is made up for as far as mu is known.

    Beside the boundary, where mu diverges, only so far that no sublattice's fraction at kappa, without other order,
    leaves [0, 1] by more than `BEYOND`.
    """
    if surface is None or iteration < config.choice.target_from_iteration:
        return target
    step = np.asarray(surface.chemical_potential(target, temperature)) / (2 * np.array(config.sampling.phi))
    domain = op.polytope
    wider = domain._replace(offsets=domain.offsets + BEYOND / np.linalg.norm(op.S, axis=1).max())
    return target + np.minimum(1.0, np.asarray(reach(wider, target, step)))[:, None] * step


def judged(
    weights: Mapping[str, float],
    before: Surface | None,
    after: Surface,
    latest: Mapping[str, Labels],
) -> dict[str, float]:
    """Weights of the criteria after the labels that each brought, ``latest`` by criterion."""
    if before is None:
        return dict(weights)
    found = {
        name: float(np.mean([improvement(before, after, _at(part, T), T) for T in np.unique(part.temperature)]))
        for name, part in latest.items()
        if len(part)
    }
    return reweight(weights, found)


def _at(labels: Labels, temperature: Any) -> Labels:
    return labels.select(np.asarray(labels.temperature) == temperature)
