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
        "device": device.device_kind if device.platform != "cpu" else f"{os.cpu_count()} CPU cores",
        "python": platform.python_version(),
        "jax": metadata.version("jax"),
        "haljax": haljax.__version__,
    }
    print(json.dumps(about), flush=True)


def median_seconds(call, repeats: int = 7) -> tuple[float, float]:
    """Median and spread (max - min) of the wall time of ``call()``, compiled beforehand."""
    import jax

    jax.block_until_ready(call())
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - start)
    times.sort()
    return times[len(times) // 2], times[-1] - times[0]
