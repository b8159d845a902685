"""Test errors after fits to few structures, beside ace-jax: alloys by EMT, Si, Ge, acetylacetone, a campaign's labels.

    python benchmarks/small_data.py [--only KIND ...] [--sizes 12 40] [--draws 5] [--grow]
        [--before ROWS.jsonl] [--peer-python PATH] [--peer-cache FILE] [--no-peer]

haljax fits with no options and with ``solver="brr"``, ace-jax in its default and with ``--noise shared``, to the same
structures and labels at the same cutoff: once at the same order and degree, once at the degree that brings its number
of functions nearest to haljax's. A fit of ace-jax takes a minute or more, so ``--peer-cache`` keeps its results and a
run that was stopped goes on from there. ``--before`` names a file with the rows of an earlier version of haljax
(``--no-peer`` is enough for it), to which ratios are printed too.

Rows with "mean_…" are ratios, haljax over the other, draw by draw: the mean over the draws and the extremes. For
ace-jax the better of its two modes counts, for energies and forces and for each draw on its own. The last rows have the
geometric mean over all rows, and how many rows are above 1.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import defaultdict
from pathlib import Path

os.environ.setdefault("JAX_ENABLE_X64", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent))

import _small_sets as sets
import numpy as np
from _peer_rows import PeerRows
from ase import Atoms
from common import row

import haljax as hx

DEFAULT_CASES = ("AlCu-2", "CuAl-2", "CuAl-3", "AgCu-2", "NiPd-3", "Si", "Ge", "acac", "campaign")
PEER_MODES = ("default", "shared")
MEASURES = ("energy_rmse_meV", "force_rmse_eV_per_A")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--grow", action="store_true", help="fit a basis of max_degree='auto' too")
    parser.add_argument("--before", type=Path, help="rows that an earlier version of haljax printed")
    options = parser.parse_args()
    before = _earlier_rows(options.before) if options.before else {}
    peers = None if options.no_peer else PeerRows(options.peer_cache, options.peer_python)

    ratios = defaultdict(list)  # what haljax is compared with -> the mean ratios of each row
    for case in sets.chosen(options.only or DEFAULT_CASES):
        basis = hx.ace_basis(case.elements, case.cutoff, case.order, case.degree)
        degrees = peers.degrees(case, len(basis)) if peers else {}
        for size in sizes(case, options.sizes):
            about = {"case": case.name, "size": size}
            pairs = defaultdict(list)
            for draw in sets.draws(case, options.draws):
                train = sets.train_set(case, size, draw)
                mine = _errors(fit(case, basis, train), case)
                brr = _errors(fit(case, basis, train, solver="brr"), case)
                for code, found in (("haljax", mine), ("haljax (brr)", brr)):
                    row("small_data", **about, draw=draw, code=code, functions=len(basis), **found)
                if options.grow:
                    grown = fit(case, hx.ace_basis(case.elements, case.cutoff, case.order, "auto"), train)
                    errors = _errors(grown, case)
                    row(
                        "small_data", **about, draw=draw, code="haljax (max_degree auto)",
                        functions=len(grown.basis), degree=grown.basis.max_degree, **errors,
                    )  # fmt: skip
                    pairs["haljax at the case's degree (max_degree auto)"].append(_ratios(errors, [mine]))
                pairs["brr"].append(_ratios(mine, [brr]))
                if (key := (case.name, size, draw)) in before:
                    pairs["before"].append(_ratios(mine, [before[key]]))
                for what, degree in degrees.items():
                    theirs = [peers.errors(case, size, draw, mode, degree) for mode in PEER_MODES]
                    for mode, found in zip(PEER_MODES, theirs, strict=True):
                        errors = {k: found[k] for k in MEASURES}
                        code = f"ace-jax ({mode}, {what})"
                        row("small_data", **about, draw=draw, code=code, functions=found["functions"], **errors)
                    pairs[f"ace-jax, {what}"].append(_ratios(mine, theirs))
            for other, values in pairs.items():
                ratios[other].append(np.mean(values, axis=0))
                row("small_data ratios", **about, over=other, draws=len(values), **_summary(np.array(values)))
    for other, means in ratios.items():
        energy, force = np.exp(np.mean(np.log(means), axis=0))
        above = np.sum(np.array(means) > 1, axis=0).tolist()
        row(
            "small_data ratios of all rows", over=other, rows=len(means), geometric_mean_energy_ratio=energy,
            geometric_mean_force_ratio=force, energy_rows_above_1=above[0], force_rows_above_1=above[1],
        )  # fmt: skip


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options by which rows are chosen and the peer is found."""
    parser.add_argument("--only", nargs="+", metavar="KIND", help="kinds or cases, such as AlCu, AlCu-3, Si, campaign")
    parser.add_argument("--sizes", nargs="+", type=int, help="training sizes; those of a case by default")
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--peer-cache", type=Path, help="JSON-lines file that keeps ace-jax's results")
    parser.add_argument("--no-peer", action="store_true")


def sizes(case: sets.Case, wanted: list[int] | None) -> list[int]:
    """The training sizes of a case that are wanted; all of them for None."""
    return [s for s in case.sizes if not wanted or s in wanted]


def fit(case: sets.Case, basis: hx.ACEBasis | hx.GrowingBasis, train: list[Atoms], **options: str) -> hx.Model:
    """haljax's fit without options, but for the energies of isolated atoms where the data has them."""
    isolated = sets.isolated_atoms(case)
    if isolated:
        options["e0"] = "isolated"
    return hx.fit(basis, isolated + train, **options)


def _errors(model: hx.Model, case: sets.Case) -> dict[str, float]:
    total = hx.evaluate(model, sets.test_set(case))["total"]
    return {"energy_rmse_meV": total["energy_rmse"], "force_rmse_eV_per_A": total["force_rmse"]}


def _ratios(mine: dict[str, float], others: list[dict[str, float]]) -> list[float]:
    """Ratios of energies and of forces, each to the better of the others."""
    return [mine[k] / min(other[k] for other in others) for k in MEASURES]


def _summary(ratios: np.ndarray) -> dict[str, float | list[float]]:
    """Mean and extremes over draws of (draws, 2) ratios."""
    found: dict[str, float | list[float]] = {}
    for name, values in zip(("energy", "force"), ratios.T, strict=True):
        found[f"mean_{name}_ratio"] = float(values.mean())
        found[f"{name}_ratio_extremes"] = [float(f"{v:.4g}") for v in (values.min(), values.max())]
    return found


def _earlier_rows(path: Path) -> dict[tuple[str, int, int], dict[str, float]]:
    """The rows of "haljax" in a file that an earlier version printed, by case, size and draw."""
    rows = [json.loads(line) for line in path.read_text().splitlines() if line.startswith("{")]
    return {(r["case"], r["size"], r["draw"]): r for r in rows if r.get("code") == "haljax"}


if __name__ == "__main__":
    main()
