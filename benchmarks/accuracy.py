"""Errors and fit times beside ace-jax, on the test files of mlearn Si and Ge and of acetylacetone.

    python benchmarks/accuracy.py [--only Si] [--peer-python PATH] [--no-peer]

Both codes get the same structures, order, degree and cutoff. ace-jax runs with its defaults and with
``--noise shared``, from its command line, and its time is that of the command: start, reading, fit and its report
of errors. haljax's ``fit_s`` is the first call of ``fit`` in a process, compilation included; ``fit_compiled_s`` the
second.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("JAX_ENABLE_X64", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
from ase.io import read
from common import DATA, row
from peers import acejax

import haljax as hx

CASES = {
    "Si": (("Si",), 3, 12, 5.5, "lsq"),
    "Ge": (("Ge",), 3, 12, 5.5, "lsq"),
    "acac": (("C", "H", "O"), 2, 10, 5.0, "isolated"),
}


def data(case: str) -> tuple[list, list, list]:
    """Isolated atoms, training and test structures."""
    if case == "acac":
        isolated = read(DATA / "acac_isolated_atoms.xyz", ":")
        return isolated, read(DATA / "acac_train_300K.xyz", ":"), read(DATA / "acac_test_MD_300K.xyz", ":")
    return [], read(DATA / f"mlearn_{case}_training.xyz", ":"), read(DATA / f"mlearn_{case}_test.xyz", ":")


def errors(structures: list, energies: list, forces: list) -> dict[str, float]:
    per_atom = [(e - a.get_potential_energy()) / len(a) for a, e in zip(structures, energies, strict=True)]
    components = np.concatenate([(f - a.get_forces()).ravel() for a, f in zip(structures, forces, strict=True)])
    return {
        "energy_rmse_meV": 1e3 * float(np.sqrt(np.mean(np.square(per_atom)))),
        "force_rmse_eV_per_A": float(np.sqrt(np.mean(components**2))),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=CASES)
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--no-peer", action="store_true")
    options = parser.parse_args()
    for case in [options.only] if options.only else CASES:
        elements, order, degree, cutoff, e0 = CASES[case]
        isolated, train, test = data(case)
        basis = hx.ace_basis(elements, cutoff, order, degree)
        common = {"case": case, "order": order, "degree": degree, "cutoff": cutoff}
        start = time.perf_counter()
        model = hx.fit(basis, isolated + train, e0=e0)
        seconds = time.perf_counter() - start
        start = time.perf_counter()
        hx.fit(basis, isolated + train, e0=e0)
        again = time.perf_counter() - start
        table = hx.evaluate(model, test)["total"]
        mine = {"energy_rmse_meV": table["energy_rmse"], "force_rmse_eV_per_A": table["force_rmse"]}
        row("accuracy", code="haljax", functions=len(basis), fit_s=seconds, fit_compiled_s=again, **mine, **common)
        if options.no_peer:
            continue
        for name, extra in (("defaults", []), ("noise shared", ["--noise", "shared"])):
            predicted, theirs = acejax.fit(
                options.peer_python, train, test, elements, order, degree, cutoff, "--e0", "lsq", *extra
            )
            found = errors(test, [a.info["ace_energy"] for a in predicted], [a.arrays["ace_forces"] for a in predicted])
            row("accuracy", code=f"ace-jax ({name})", fit_s=theirs, fit_time_ratio=theirs / seconds, **found, **common)


if __name__ == "__main__":
    main()
