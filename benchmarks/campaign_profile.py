"""Where the wall time of a HAL campaign goes, with labels that cost nothing and with labels that take long.

    python benchmarks/campaign_profile.py [--iterations 5] [--label-seconds 5] [--only free slow "slow, asynchronous"]

The example alcu_emt.toml without its test set, 8 replicas of at most 2000 steps. The seconds of the stages are those
that the campaign's journal holds; what is left is the report, the start and the reading of the journal. Labels that
take long sleep, so that they need no core; `label` is then the time that the loop waited for them, and `idle` the part
of the workers' time in which they had nothing to do, from the first request to the last label.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import tomllib
from pathlib import Path

os.environ.setdefault("JAX_ENABLE_X64", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent))

from ase.calculators.emt import EMT

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
WORKERS = 4


class Slow(EMT):
    """EMT that takes its time."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def calculate(self, *args, **kwargs) -> None:
        time.sleep(self.seconds)
        super().calculate(*args, **kwargs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=5)
    parser.add_argument("--label-seconds", type=float, default=5.0)
    parser.add_argument("--only", nargs="*", default=["free", "slow", "slow, asynchronous"])
    options = parser.parse_args()
    cases = {"free": (0.0, False), "slow": (options.label_seconds, False)}
    cases["slow, asynchronous"] = (options.label_seconds, True)
    for name in options.only:
        profile(name, *cases[name], options.iterations)


def profile(name: str, seconds: float, asynchronous: bool, iterations: int) -> None:
    from common import row

    import haljax as hx
    from haljax.campaign import read_journal

    config = tomllib.loads((EXAMPLES / "alcu_emt.toml").read_text())
    del config["test"]
    with tempfile.TemporaryDirectory() as folder:
        config |= {
            "directory": f"{folder}/run",
            "start": {"structures": str(EXAMPLES / "alcu_start.xyz")},
            "reference": {"calculator": "campaign_profile.Slow", "arguments": {"seconds": seconds}, "workers": WORKERS},
            "labels": {"per_iteration": WORKERS, "asynchronous": asynchronous, "within_tolerance": True},
            "stop": {"max_iterations": iterations},
        }
        start = time.perf_counter()
        hx.HAL(config).run()
        whole = time.perf_counter() - start
        records = list(read_journal(Path(folder) / "run" / "journal.jsonl"))
    parts: dict[str, float] = {}
    for record in records:
        if record["type"] == "iteration" and record["iteration"] > 0:
            for stage, value in record["seconds"].items():
                parts[stage] = parts.get(stage, 0.0) + value
    before = sum(next(r for r in records if r["type"] == "iteration")["seconds"].values())
    asked = [r for r in records if r["type"] == "label" and r["iteration"] > 0]
    loop = sum(parts.values())
    busy = sum(r["seconds"] for r in asked) / WORKERS
    row(
        "campaign_profile", labels=name, iterations=iterations, new_labels=len(asked), whole_s=whole,
        first_fit_s=before, loop_s=loop, report_and_start_s=whole - loop - before,
        dynamics_share=parts["dynamics"] / loop, workers_idle=1 - busy / loop if seconds else None,
        **{f"{stage}_s": value for stage, value in parts.items()},
    )  # fmt: skip


if __name__ == "__main__":
    main()
