"""How boldly to explore: higher temperature, then stronger bias, then longer runs, where nothing was found."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from haljax.config import Dynamics, Ramp
from haljax.config.hal import Schedule

# Order and largest factor of one level. Measured with replicas of 1000 steps on Al-Cu (EMT, 35 labels), median over
# replicas of the largest criterion, in units of a training structure's: 0.9 as given; temperature x 1.4 1.0, x 2 2.5;
# tau_rel x 2 1.0, x 4 1.25, but there dynamics fail; n_steps x 4 1.3, at four times the cost. Temperatures rise by a
# quarter at most by default: at half as much again (1800 K) the alloy boils at zero pressure, and labels of its vapour
# cost accuracy where it is solid (test errors 0.3 meV/atom before and 0.5 after ten of them).
STEPS = {"temperature": 1.5, "tau_rel": 2.0, "n_steps": 2.0}


class Boldness(NamedTuple):
    """A level of exploration and its factors of the values in ``[dynamics]``; level 0 is the dynamics as given."""

    level: int = 0
    temperature: float = 1.0
    tau_rel: float = 1.0
    n_steps: float = 1.0

    def words(self) -> str:
        """ "tau_rel x 4, temperature x 1.41"; empty at level 0."""
        return ", ".join(f"{name} x {getattr(self, name):.3g}" for name in STEPS if getattr(self, name) != 1)


AS_GIVEN = Boldness()


def levels(dynamics: Dynamics) -> list[Boldness]:
    """All levels within ``dynamics.bolder``, each bolder than the one before."""
    found = [AS_GIVEN]
    for name, step in STEPS.items():
        most = getattr(dynamics.bolder, name)
        if most == 1 or (name == "tau_rel" and not _any(dynamics.tau_rel)):
            continue
        n = math.ceil(round(math.log(most, step), 9))
        for k in range(1, n + 1):
            found.append(found[-1]._replace(level=len(found), **{name: most ** (k / n)}))
    return found


def next_level(last: Mapping[str, Any] | None, top: int) -> int:
    """The level after the last iteration's request: one up where it found nothing, one down where at least half of the
    replicas found something, else the same."""
    if last is None:
        return 0
    level, n = level_of(last), found_by(last)
    if n == 0:
        level += 1
    elif 2 * n >= len(last["replicas"]):
        level -= 1
    return min(max(level, 0), top)


def level_of(request: Mapping[str, Any]) -> int:
    return request.get("boldness", {}).get("level", 0)


def found_by(request: Mapping[str, Any]) -> int:
    """Replicas that met the tolerance or a guard; requests of older versions have their status alone."""
    return request.get("found", sum(replica["status"] != "finished" for replica in request["replicas"]))


def emboldened(dynamics: Dynamics, boldness: Boldness) -> Dynamics:
    """The dynamics of a replica at a level. Temperatures stay below half of ``max_temperature_K``, a guard against
    models gone wrong, or where they are already."""
    if boldness.level == 0:
        return dynamics
    half = dynamics.max_temperature_K / 2
    return dynamics.model_copy(
        update={
            "tau_rel": _scaled(dynamics.tau_rel, boldness.tau_rel),
            "temperature_K": _scaled(dynamics.temperature_K, boldness.temperature, half),
            "n_steps": round(dynamics.n_steps * boldness.n_steps),
        }
    )


def _scaled(value: Schedule, factor: float, most: float = math.inf) -> Schedule:
    def one(value: float | Ramp) -> float | Ramp:
        if isinstance(value, Ramp):
            return Ramp(*(min(v * factor, max(v, most)) for v in value))
        return min(value * factor, max(value, most))

    if isinstance(value, tuple) and not isinstance(value, Ramp):
        return tuple(map(one, value))
    return one(value)


def _any(value: Schedule) -> bool:
    return any(map(_any, value)) if isinstance(value, tuple) else value != 0
