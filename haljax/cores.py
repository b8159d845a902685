"""How many processor cores there are to use."""

from __future__ import annotations

import os


def cores() -> int:
    """Cores that this process may run on: on a cluster those of its job, not all of the node."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux has it
    return len(affinity(0)) if affinity else os.cpu_count() or 1
