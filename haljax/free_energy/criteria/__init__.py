"""Criteria: where to sample next. Each is one pure function in a module of its own.

``criterion(key, view, n, **options)`` looks at a `View` and returns a `Proposal`: n targets inside the domain, or fewer
and the reason. Criteria that need a trained surface propose nothing before the first round, and say so. Of a user's own

    import jax.numpy as jnp
    from haljax.free_energy import criteria

    def steepest(key, view, n):
        '''Where the free energy is steepest.'''
        if view.surface is None:
            return criteria.Proposal(view.candidates[:0], "there is no surface yet")
        mu = view.surface.chemical_potential(view.candidates, view.temperature)
        return criteria.Proposal(view.candidates[jnp.argsort(-jnp.sum(mu**2, axis=1))[:n]])

    criteria.register("steepest", steepest)

is then found by its name; without `register`, the function itself or ``"module:steepest"`` does as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from haljax.free_energy.criteria.billiard import billiard, fill, fill_boundary
from haljax.free_energy.criteria.committee import committee
from haljax.free_energy.criteria.finding_wells import finding_wells
from haljax.free_energy.criteria.high_error import high_error
from haljax.free_energy.criteria.instabilities import instabilities
from haljax.free_energy.criteria.lowest_path import lowest_path
from haljax.free_energy.criteria.plane import mixed
from haljax.free_energy.criteria.pool import pool
from haljax.free_energy.criteria.quasirandom import latin_hypercube, sobol
from haljax.free_energy.criteria.sensitivity import sensitivity
from haljax.free_energy.criteria.setting_vertices import setting_vertices
from haljax.free_energy.criteria.setting_wells import setting_wells
from haljax.free_energy.criteria.view import Proposal, View

Criterion = Callable[..., Proposal]

CRITERIA: dict[str, Criterion] = {
    criterion.__name__: criterion
    for criterion in (
        billiard,
        mixed,
        sobol,
        latin_hypercube,
        pool,
        committee,
        high_error,
        sensitivity,
        instabilities,
        setting_wells,
        setting_vertices,
        finding_wells,
        lowest_path,
    )
}


def register(name: str, criterion: Criterion) -> None:
    """Make a criterion known by a name.

    Raises
    ------
    ValueError
        Another criterion has that name already, or the criterion cannot be called.
    """
    if not callable(criterion):
        raise ValueError(f"criterion {name!r} is not a function: give criterion(key, view, n, **options)")
    if CRITERIA.get(name, criterion) is not criterion:
        raise ValueError(f"there is a criterion {name!r} already: choose another name")
    CRITERIA[name] = criterion


def find(criterion: str | Criterion) -> Criterion:
    """The criterion of that name, of ``"module:function"``, or the function itself.

    Raises
    ------
    ValueError
        Unknown: the message lists the known ones and the nearest; or the module or its function does not exist.
    """
    import difflib
    import importlib

    if not isinstance(criterion, str):
        return criterion
    if criterion in CRITERIA:
        return CRITERIA[criterion]
    if ":" in criterion:
        module, _, name = criterion.partition(":")
        try:
            return getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise ValueError(
                f"criterion {criterion!r}: {error}; give 'module:function' of an importable one"
            ) from error
    near = difflib.get_close_matches(criterion, CRITERIA, 1, 0.5)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    raise ValueError(f"there is no criterion {criterion!r}{hint} Known are {', '.join(sorted(CRITERIA))}")


def checked(criterion: str | Criterion, options: Mapping[str, Any]) -> Criterion:
    """The criterion that `find` finds, if it takes these options.

    Raises
    ------
    ValueError
        It is unknown, or has no such option: the message lists those that it has.
    """
    import inspect

    found = find(criterion)
    parameters = inspect.signature(found).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return found
    known = [p.name for p in parameters if p.kind is not p.VAR_POSITIONAL][3:]  # after key, view, n
    if unknown := [name for name in options if name not in known]:
        has = f"it has {', '.join(known)}" if known else "it has none"
        raise ValueError(f"{_name(criterion)} has no option {unknown[0]!r}: {has}")
    return found


def _name(criterion: str | Criterion) -> str:
    return criterion if isinstance(criterion, str) else getattr(criterion, "__name__", repr(criterion))


def propose(key: jax.Array, criterion: str | Criterion, view: View, n: int, **options: Any) -> Proposal:
    """What a criterion proposes, checked: finite points (m <= n, d), drawn inside by rounding errors only.

    Raises
    ------
    ValueError
        n is not positive, the criterion or an option is unknown, or it gave something else than points of the domain.
    """
    name = _name(criterion)
    if n < 1:
        raise ValueError(f"{name}: {n} points are asked for; give a positive number")
    given = checked(criterion, options)(key, view, int(n), **options)
    if not isinstance(given, Proposal):
        raise ValueError(f"{name} returned {type(given).__name__}: a criterion returns criteria.Proposal(eta, reason)")
    eta, d = np.asarray(given.eta, float), view.domain.dimension
    if eta.ndim != 2 or eta.shape[1] != d or len(eta) > n:
        raise ValueError(f"{name} proposed an array of shape {eta.shape}: it must be (at most {n}, {d})")
    outside = np.flatnonzero(~view.domain.contains(eta, 1e-6))
    if outside.size:
        raise ValueError(f"{name} proposed {outside.size} points outside the domain or not finite, first {outside[0]}")
    reason = given.reason or ("" if len(eta) == n else f"{name} found {len(eta)} of {n} points")
    return Proposal(eta, reason)


__all__ = [
    "CRITERIA",
    "Criterion",
    "Proposal",
    "View",
    "billiard",
    "checked",
    "committee",
    "fill",
    "fill_boundary",
    "find",
    "finding_wells",
    "high_error",
    "instabilities",
    "latin_hypercube",
    "lowest_path",
    "mixed",
    "pool",
    "propose",
    "register",
    "sensitivity",
    "setting_vertices",
    "setting_wells",
    "sobol",
]
