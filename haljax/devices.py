"""What there is to compute on, and how a batch is shared out over it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any


def cores() -> int:
    """Cores that this process may run on: on a cluster those of its job, not all of the node."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux has it
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def in_threads(call: Callable[[Any], Any], items: Iterable[Any], most: int | None = None) -> Iterator[Any]:
    """``call`` of each item, in order, on all cores and devices.

    Few items are taken before their results are; at most ``most`` at a time where they are large.
    """
    import jax

    # On a CPU the threads keep all cores busy on one device, and a user's choice of a device is theirs.
    spread_out = jax.default_backend() != "cpu" and getattr(jax.config, "jax_default_device", None) is None
    devices = jax.local_devices() if spread_out else []
    workers = max(cores(), len(devices))
    ahead = min(2 * workers + 1, most or 2 * workers + 1)

    def one(k: int, item: Any) -> Any:
        with jax.default_device(devices[k % len(devices)]) if len(devices) > 1 else nullcontext():
            return call(item)

    with ThreadPoolExecutor(workers) as pool:
        waiting = []
        for k, item in enumerate(items):
            waiting.append(pool.submit(one, k, item))
            if len(waiting) >= ahead:
                yield waiting.pop(0).result()
        for future in waiting:
            yield future.result()


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
