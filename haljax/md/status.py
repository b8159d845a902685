"""What has become of a replica, and the guards that stop one before it does harm."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Status(IntEnum):
    """Why a replica runs no further; RUNNING as long as it does."""

    RUNNING = 0
    UNCERTAIN = 1  # the relative force error exceeds the tolerance
    FINISHED = 2  # its full length
    TOO_CLOSE = 3  # two atoms
    LARGE_FORCE = 4
    TOO_HOT = 5
    HIGH_PRESSURE = 6  # or minus that
    NOT_FINITE = 7  # energy or forces
    TOO_FAST = 8  # an atom outran the neighbour list's margin in one step: the time step is too long


class Guards(NamedTuple):
    """Bounds whose crossing stops a replica.

    Attributes
    ----------
    min_distance : in the units of the distances it is compared with.
    max_force : eV/Å, largest norm of an unbiased force.
    max_temperature : instantaneous kT, eV.
    max_pressure : eV/Å^3, of either sign; no replica of a molecule has one.
    """

    min_distance: jax.Array | float
    max_force: jax.Array | float
    max_temperature: jax.Array | float
    max_pressure: jax.Array | float


def guard(
    guards: Guards,
    shortest: jax.Array,
    largest_force: jax.Array,
    kT: jax.Array,
    pressure: jax.Array,
    finite: jax.Array,
    too_fast: jax.Array,
) -> jax.Array:
    """The status () that the gravest violated guard sets, RUNNING where none is."""
    status = jnp.asarray(Status.RUNNING, jnp.int32)
    for violated, code in (
        (jnp.abs(pressure) > guards.max_pressure, Status.HIGH_PRESSURE),
        (kT > guards.max_temperature, Status.TOO_HOT),
        (largest_force > guards.max_force, Status.LARGE_FORCE),
        (shortest < guards.min_distance, Status.TOO_CLOSE),
        (too_fast, Status.TOO_FAST),
        (~finite, Status.NOT_FINITE),
    ):
        status = jnp.where(violated, jnp.int32(code), status)
    return status
