"""How true the predicted stds are after fits to few structures, on test data of the same kind and off the data.

    python benchmarks/calibration.py [--only KIND ...] [--sizes 12 40] [--draws 5] [--off-sizes 20]
        [--peer-python PATH] [--peer-cache FILE] [--no-peer] [--pops-python PATH]

The stds are those that a user of ``hx.Calculator`` gets after ``hx.fit`` with no options. Rows "calibration": rms(error
/ std) of total energies, by structure, and of force components, for each case and size over the draws, then pooled over
all rows of a kind. Rows "calibration off the data", for alloys and the sizes of ``--off-sizes``: for each family of
structures the fraction of errors within 3 stds, the mean std over the mean absolute error, and the continuous ranked
probability score, eV and eV/Å; over all families Spearman's rank correlation between std and absolute error.

Beside haljax: ace-jax in its default, its learned noise being part of the std, and with ``--uq pops``, both at the
degree that brings its number of functions nearest to haljax's; popsregression on haljax's own design rows where
``--pops-python`` names an interpreter that has it.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_ENABLE_X64", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent))

import _small_sets as sets
import numpy as np
from _peer_rows import PeerRows
from _scores import Prediction, family_scores, rms, scores
from ase import Atoms
from common import row
from peers import pops
from small_data import DEFAULT_CASES, add_options, fit, sizes

import haljax as hx

PEER_MODES = ("default", "pops")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--off-sizes", nargs="*", type=int, default=[20], help="training sizes judged off the data")
    parser.add_argument("--pops-python", help="an interpreter that has popsregression")
    options = parser.parse_args()
    peers = None if options.no_peer else PeerRows(options.peer_cache, options.peer_python)

    pooled = defaultdict(list)  # (kind, code) -> scores of every fit
    for case in sets.chosen(options.only or DEFAULT_CASES):
        basis = hx.ace_basis(case.elements, case.cutoff, case.order, case.degree)
        degree = peers.degrees(case, len(basis))["equal size"] if peers else 0
        families = sets.off_the_data(case.kind) if case.kind in sets.ALLOYS else {}
        for size in sizes(case, options.sizes):
            same, off = defaultdict(list), defaultdict(list)  # code -> a result for each draw
            for draw in sets.draws(case, options.draws):
                train, test = sets.train_set(case, size, draw), sets.test_set(case)
                others = families if size in options.off_sizes else {}
                judged = test + [atoms for members in others.values() for atoms in members]
                model = fit(case, basis, train)
                predictions = {"haljax": predict(model, judged)}
                if options.pops_python:
                    predictions["popsregression"] = pops.predict(options.pops_python, model, train, judged)
                for code, prediction in predictions.items():
                    near, far = _split(prediction, test)
                    same[code].append(scores(test, near))
                    if others:
                        off[code].append(family_scores(others, far))
                for mode in PEER_MODES if peers else ():
                    code = f"ace-jax ({mode})"
                    if others:  # first: its fit gives the errors on the test set too
                        off[code].append(peers.off_the_data(case, size, draw, mode, degree))
                    same[code].append(_of_the_user(peers.errors(case, size, draw, mode, degree)))
            for code, found in same.items():
                pooled[case.kind, code] += found
                row("calibration", case=case.name, size=size, code=code, draws=len(found), **_pooled(found))
            for code, found in off.items():
                for family in found[0]:
                    about = {"case": case.name, "size": size, "code": code, "family": family, "draws": len(found)}
                    row("calibration off the data", **about, **_averaged([f[family] for f in found]))
    for (kind, code), found in pooled.items():
        row("calibration of all rows", kind=kind, code=code, fits=len(found), **_pooled(found))


def predict(model: hx.Model, structures: list[Atoms]) -> Prediction:
    """What a user reads from the ASE calculator."""
    calculator = hx.Calculator(model)
    energies, forces, energy_std, forces_std = [], [], [], []
    for labelled in structures:
        atoms = labelled.copy()
        atoms.calc = calculator
        energies.append(atoms.get_potential_energy())
        forces.append(atoms.get_forces())
        energy_std.append(calculator.get_property("energy_std", atoms))
        forces_std.append(calculator.get_property("forces_std", atoms))
    return Prediction(np.array(energies), np.concatenate(forces), np.array(energy_std), np.concatenate(forces_std))


def _split(prediction: Prediction, first: list[Atoms]) -> tuple[Prediction, Prediction]:
    """The predictions for the first structures and for the others."""
    counts = [len(first), sum(map(len, first))] * 2  # of structures and of atoms
    parts = [(values[:n], values[n:]) for values, n in zip(prediction, counts, strict=True)]
    return Prediction(*(a for a, _ in parts)), Prediction(*(b for _, b in parts))


def _of_the_user(peer: dict[str, Any]) -> dict[str, float]:
    """ace-jax's scores with the noise in the std, which is no part of POPS."""
    ending = "" if peer["mode"] == "pops" else "_with_noise"
    return peer | {name: peer[name + ending] for name in ("energy_z", "force_z")}


def _pooled(found: list[dict[str, float]]) -> dict[str, float]:
    """rms(error / std) over the values of all fits."""
    pooled: dict[str, float] = {}
    for z, count in (("energy_z", "energies"), ("force_z", "forces")):
        weights = np.sqrt([f[count] for f in found] / np.mean([f[count] for f in found]))
        pooled |= {z: rms(weights * [f[z] for f in found]), count: sum(f[count] for f in found)}
    return pooled


def _averaged(found: list[dict[str, float]]) -> dict[str, float | None]:
    """Means over draws; the mean std over the mean error is None where there is no error."""
    mean = {name: float(np.mean([f[name] for f in found])) for name in found[0]}
    for what in ("energy", "force"):
        if f"{what}_mean_std" in mean:
            error = mean[f"{what}_mean_error"]
            mean[f"{what}_std_over_error"] = mean[f"{what}_mean_std"] / error if error > 1e-10 else None
    return mean


if __name__ == "__main__":
    main()
