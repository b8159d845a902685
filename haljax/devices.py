"""What there is to compute on, and how a batch is shared out over it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any


def cores() -> int:
    """Cores that this process may run on: on a cluster those of its job, not all of the node."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux has it
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def spread(devices: int, function: Callable, arguments: Any, results: Any) -> Callable:
    """`function` on so many devices of JAX at once, each with its share of a batch; no word passes between them.

    Parameters
    ----------
    arguments, results : `PartitionSpec` of each argument and result (a prefix of its tree), with the axis "batch".
    """
    if devices == 1:
        return function
    import jax

    kind = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((devices,), ("batch",), axis_types=kind, devices=jax.local_devices()[:devices])
    return jax.shard_map(function, mesh=mesh, in_specs=arguments, out_specs=results, check_vma=False)
