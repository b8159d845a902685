"""Rows of the design matrix per second, and memory, for mlearn's Si training set; beside ace-jax's assembly.

    python benchmarks/design_matrix.py [--degrees 14 20] [--copies 1 4] [--peer-python PATH] [--no-peer]

Order 3, cutoff 5.5 Å. haljax's rows have the columns of its spread besides (E0 and the density) and are
compressed block by block as they are made, which its time includes; with several copies of the set its memory should
stay. ace-jax's matrix is made whole (``stacked_design``), from lists made
beforehand, which its time does not include, and of the first structures only, since it takes many minutes for all.
Each row is measured in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("JAX_ENABLE_X64", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent))

PEER_STRUCTURES = 24


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--degrees", type=int, nargs="+", default=[14, 20])
    parser.add_argument("--copies", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--one", nargs=2, type=int, metavar=("DEGREE", "COPIES"), help="print the figures of one case")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(ours(*options.one)))
        return
    from common import row

    for degree in options.degrees:
        theirs = None if options.no_peer else peer(options.peer_python, degree)
        for copies in options.copies:
            found = json.loads(run([sys.executable, __file__, "--one", str(degree), str(copies)]))
            if theirs is not None:
                found |= {f"ace_jax_{name}": value for name, value in theirs.items()}
                found["ratio"] = found["rows_per_s"] / theirs["rows_per_s"]
            row("design_matrix", degree=degree, copies=copies, **found)


def run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return done.stdout.splitlines()[-1]


def ours(degree: int, copies: int) -> dict[str, float]:
    import resource

    import jax
    from accuracy import data

    import haljax as hx
    from haljax.bayes import accumulate, empty
    from haljax.potentials import n_features
    from haljax.rows import Weights, blocks_of, radii_from, reference_densities, shortest_distances
    from haljax.training import ENERGY_WEIGHT, FORCE_WEIGHT, STRESS_WEIGHT

    _, train, _ = data("Si")
    basis = hx.ace_basis(("Si",), 5.5, 3, degree)
    weights = Weights(ENERGY_WEIGHT, FORCE_WEIGHT, STRESS_WEIGHT)
    radii, density = radii_from(basis, shortest_distances(basis, train)), reference_densities(basis, train)
    n = copies * sum(1 + 3 * len(a) for a in train)

    def assemble() -> float:
        start = time.perf_counter()
        blocks = blocks_of(basis, radii, density, weights, train * copies)
        seen = accumulate(empty(n_features(basis)), ((b.rows, b.targets) for b in blocks), n)
        jax.block_until_ready(seen)
        return time.perf_counter() - start

    first, again = assemble(), assemble()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "functions": len(basis), "rows": n, "rows_per_s": n / again, "compile_s": first - again, "peak_MiB": memory,
    }  # fmt: skip


def peer(python: str, degree: int) -> dict[str, float]:
    from accuracy import data
    from ase.io import write
    from peers.acejax import _plain

    with tempfile.TemporaryDirectory() as folder:
        write(f"{folder}/train.xyz", [_plain(atoms) for atoms in data("Si")[1][:PEER_STRUCTURES]], format="extxyz")
        script = str(Path(__file__).parent / "peers" / "_time_ace_jax_rows.py")
        found = json.loads(run([python, script, f"{folder}/train.xyz", "3", str(degree), "5.5", "Si"]))
    n, functions = found["shape"]
    return {"rows_per_s": (n - functions) / found["again_s"], "peak_MiB": found["peak_MiB"]}


if __name__ == "__main__":
    main()
