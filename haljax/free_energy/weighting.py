"""Dynamic sampling: more points for the criteria whose points taught the surface more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from haljax.free_energy.data import Labels


def improvement(before: Any, after: Any, labels: Labels, temperature: float) -> float:
    """By how much the MSE of mu on labels fell from one surface to the next, in units of mu's variance; NaN without
    labels.

    Every component counts alike: MSE and variance are taken about zero for each, so that no scale enters.
    """
    if not len(labels):
        return float("nan")
    mu = np.asarray(labels.mu)
    size = np.mean(mu**2, axis=0)
    size = np.where(size > 0, size, 1.0)

    def mse(surface: Any) -> float:
        error = np.asarray(surface.chemical_potential(np.asarray(labels.eta), temperature)) - mu
        return float(np.mean(np.mean(error**2, axis=0) / size))

    return mse(before) - mse(after)


def reweight(
    weights: Mapping[str, float], improvements: Mapping[str, float], *, strength: float = 0.5
) -> dict[str, float]:
    """New weights of the criteria: the old ones plus `strength` times their improvement in units of the mean absolute
    improvement, clipped at zero, and scaled so that those that were judged keep their sum.

    A criterion without an improvement, or with one that is not finite, keeps its weight; if all that were judged would
    get zero, all keep theirs. Weights of 1 at the start so average 1 at all times.

    Raises
    ------
    ValueError
        A weight that is negative or not finite, an improvement of a criterion that has no weight.
    """
    for name, weight in weights.items():
        if not (np.isfinite(weight) and weight >= 0):
            raise ValueError(f"the weight of {name} is {weight}: give a finite number that is not negative")
    unknown = sorted(set(improvements) - set(weights))
    if unknown:
        raise ValueError(f"{unknown[0]} has an improvement but no weight: weights are known of {', '.join(weights)}")
    judged = [name for name in weights if np.isfinite(improvements.get(name, np.nan))]
    unit = float(np.mean([abs(improvements[name]) for name in judged])) if judged else 0.0
    if not unit > 0:
        return dict(weights)
    raised = {name: max(weights[name] + strength * improvements[name] / unit, 0.0) for name in judged}
    total = sum(raised.values())
    if total == 0:
        return dict(weights)
    share = sum(weights[name] for name in judged) / total
    return {name: raised[name] * share if name in raised else weight for name, weight in weights.items()}


def shares(counts: Mapping[str, int], weights: Mapping[str, float], *, least: int = 1) -> dict[str, int]:
    """How many points each criterion gets this round: its own count times its weight, to the same total.

    The counts are those of the configuration, every round: weights do not compound. No criterion that has a count
    gets fewer than `least`, so that it may come back; remainders go to the largest.
    """
    asked = {name: counts[name] * weights.get(name, 1.0) for name in counts if counts[name] > 0}
    total = sum(counts[name] for name in asked)
    if not any(asked.values()):
        return dict(counts)
    exact = {name: value * total / sum(asked.values()) for name, value in asked.items()}
    given = {name: max(int(part), min(least, counts[name])) for name, part in exact.items()}
    while (left := total - sum(given.values())) != 0:
        step = 1 if left > 0 else -1
        furthest = max(
            given, key=lambda name: step * (exact[name] - given[name]) if given[name] + step >= least else -1e9
        )
        given[furthest] += step
    return {name: given.get(name, 0) for name in counts}
