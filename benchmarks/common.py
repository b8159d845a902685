"""What every benchmark shares: one JSON row a result, and where the reference data lies."""

from __future__ import annotations

import json
import os
import platform
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import haljax
from haljax.devices import cores

# The mlearn and acetylacetone files, which are not part of the package.
DATA = Path(os.environ.get("HALJAX_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


def row(benchmark: str, **values: Any) -> None:
    """Print one result with what it was measured on."""
    import jax

    device = jax.devices()[0]
    about = {
        "benchmark": benchmark,
        **{k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in values.items()},
        "date": time.strftime("%Y-%m-%d"),
        "device": device.device_kind if device.platform != "cpu" else f"{cores()} CPU cores",
        "python": platform.python_version(),
        "jax": metadata.version("jax"),
        "haljax": haljax.__version__,
    }
    print(json.dumps(about), flush=True)


def seconds(call) -> float:
    """Wall time of ``call()``."""
    import jax

    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def median_seconds(call, repeats: int = 7) -> tuple[float, float]:
    """Median and spread (max - min) of the wall time of ``call()``, compiled beforehand."""
    seconds(call)
    times = sorted(seconds(call) for _ in range(repeats))
    return times[len(times) // 2], times[-1] - times[0]


def paired_seconds(call, other, repeats: int = 25) -> tuple[float, float, tuple[float, float, float]]:
    """Median wall times of two calls made in turn, and the quartiles of the ratio of each pair.

    In turn, so that what else the machine does falls on both.
    """
    import numpy as np

    seconds(call), seconds(other)
    times = np.array([(seconds(call), seconds(other)) for _ in range(repeats)])
    mine, others = np.median(times, axis=0)
    return mine, others, tuple(np.quantile(times[:, 0] / times[:, 1], (0.25, 0.5, 0.75)).tolist())
