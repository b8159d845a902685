"""ace-jax's errors and error bars on the small sets, kept in a JSON-lines file, since a fit takes a minute or more."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import _small_sets as sets
import numpy as np
from ase import Atoms
from peers import acejax

MODES = {"default": (), "shared": ("--noise", "shared"), "pops": ("--uq", "pops")}


class PeerRows:
    """Results of ace-jax, computed where the file does not have them.

    Parameters
    ----------
    path : the JSON-lines file; None keeps nothing.
    python : an interpreter that has ace-jax.
    """

    def __init__(self, path: Path | None, python: str) -> None:
        self.path, self.python = path, python
        self.rows: dict[str, dict[str, Any]] = {}
        if path and path.exists():
            for line in path.read_text().splitlines():
                row = json.loads(line)
                self.rows[row["key"]] = row

    def degrees(self, case: sets.Case, functions: int) -> dict[str, int]:
        """ace-jax's degree of the "same degree" and of the "equal size", nearest to ``functions``."""
        key = f"size {case.name} {functions}"
        if key not in self.rows:
            degree, found = acejax.nearest_degree(
                self.python, functions, case.elements, case.order, case.degree, case.cutoff
            )
            self._keep({"key": key, "degree": degree, "functions": found})
        return {"same degree": case.degree, "equal size": self.rows[key]["degree"]}

    def errors(self, case: sets.Case, size: int, draw: int, mode: str, degree: int) -> dict[str, Any]:
        """Errors and calibration of one fit on the case's test set: the keys of `scores`, and "functions"."""
        key = f"{case.name} {size} {draw} {mode} {degree}"
        if key not in self.rows:
            test = sets.test_set(case)
            prediction, _, functions = acejax.fit_with_stds(
                self.python, sets.train_set(case, size, draw), test, [], case.elements, case.order, degree,
                case.cutoff, *MODES[mode],
            )  # fmt: skip
            about = {"case": case.name, "size": size, "draw": draw, "mode": mode, "degree": degree}
            self._keep({"key": key, **about, "functions": functions, **_peer_scores(test, prediction)})
        return self.rows[key]

    def _keep(self, row: dict[str, Any]) -> None:
        self.rows[row["key"]] = row
        if self.path:
            with open(self.path, "a") as file:
                file.write(json.dumps(row) + "\n")
                file.flush()
                os.fsync(file.fileno())


def scores(
    structures: list[Atoms],
    energies: np.ndarray,
    forces: np.ndarray,
    energy_std: np.ndarray | None = None,
    forces_std: np.ndarray | None = None,
) -> dict[str, float]:
    """RMSE and, with stds, rms(error / std) of predicted energies (n,), eV, and forces (N, 3), eV/Å.

    An energy's error and std are those of the whole structure, but for the RMSE, which is of an atom.
    """
    atoms = np.array([len(a) for a in structures])
    energy_error = energies - [a.get_potential_energy() for a in structures]
    force_error = forces - np.concatenate([a.get_forces() for a in structures])
    found = {
        "energy_rmse_meV": 1e3 * _rms(energy_error / atoms),
        "force_rmse_eV_per_A": _rms(force_error),
        "energies": len(energy_error),
        "forces": force_error.size,
    }
    if energy_std is not None:
        found |= {"energy_z": _rms(energy_error / energy_std), "force_z": _rms(force_error / forces_std)}
    return found


def _peer_scores(structures: list[Atoms], p: acejax.Prediction) -> dict[str, float]:
    """`scores` with the std of the model, and "…_with_noise": the noise added in quadrature."""
    found = scores(structures, p.energies, p.forces, p.energy_std, p.forces_std)
    noisy = np.hypot(p.energy_std, p.energy_noise), np.hypot(p.forces_std, p.forces_noise)
    with_noise = scores(structures, p.energies, p.forces, *noisy)
    return found | {f"{k}_with_noise": with_noise[k] for k in ("energy_z", "force_z")}


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))
