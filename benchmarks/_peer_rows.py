"""ace-jax's errors and stds on the small sets, kept in a JSON-lines file, since a fit takes a minute or more."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import _small_sets as sets
import numpy as np
from _scores import Prediction, family_scores, scores
from ase import Atoms
from peers import acejax

# "pops": its own implementation of POPS.
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
        """ace-jax's degree at the "same degree" and at the "equal size", nearest to ``functions``."""
        key = f"size {case.name} {functions}"
        if key not in self.rows:
            degree, found = acejax.nearest_degree(
                self.python, functions, case.elements, case.order, case.degree, case.cutoff
            )
            self._keep({"key": key, "degree": degree, "functions": found})
        return {"same degree": case.degree, "equal size": self.rows[key]["degree"]}

    def errors(self, case: sets.Case, size: int, draw: int, mode: str, degree: int) -> dict[str, Any]:
        """`scores` of one fit on the case's test set, and "functions", "energy_z_with_noise", "force_z_with_noise".

        The stds of "energy_z" and "force_z" are the model's alone, of the others the learned noise is a part.
        """
        key = _key(case, size, draw, mode, degree)
        if key not in self.rows:
            self._fit(case, size, draw, mode, degree, {})
        return self.rows[key]

    def off_the_data(
        self, case: sets.Case, size: int, draw: int, mode: str, degree: int
    ) -> dict[str, dict[str, float]]:
        """`family_scores` of one fit, with the noise in the std unless the mode is "pops".

        The fit gives what `errors` returns too.
        """
        key = f"off the data {_key(case, size, draw, mode, degree)}"
        if key not in self.rows:
            families = sets.off_the_data(case.kind)
            fitted = self._fit(case, size, draw, mode, degree, families)
            found = fitted.other if mode == "pops" else _with_noise(fitted.other, fitted.other_noise)
            self._keep({"key": key, "families": family_scores(families, found)})
        return self.rows[key]["families"]

    def _fit(
        self, case: sets.Case, size: int, draw: int, mode: str, degree: int, families: dict[str, list[Atoms]]
    ) -> acejax.Fitted:
        train, test = sets.train_set(case, size, draw), sets.test_set(case)
        others = [atoms for members in families.values() for atoms in members]
        fitted = acejax.fit_with_stds(
            self.python, train, test, others, case.elements, case.order, degree, case.cutoff, *MODES[mode]
        )
        key = _key(case, size, draw, mode, degree)
        if key not in self.rows:
            noisy = scores(test, _with_noise(fitted.test, fitted.noise))
            self._keep(
                {
                    "key": key, "case": case.name, "size": size, "draw": draw, "mode": mode, "degree": degree,
                    "functions": fitted.functions, **scores(test, fitted.test),
                    **{f"{k}_with_noise": noisy[k] for k in ("energy_z", "force_z")},
                }
            )  # fmt: skip
        return fitted

    def _keep(self, row: dict[str, Any]) -> None:
        self.rows[row["key"]] = row
        if self.path:
            with open(self.path, "a") as file:
                file.write(json.dumps(row) + "\n")
                file.flush()
                os.fsync(file.fileno())


def _key(case: sets.Case, size: int, draw: int, mode: str, degree: int) -> str:
    return f"{case.name} {size} {draw} {mode} {degree}"


def _with_noise(prediction: Prediction, noise: tuple[np.ndarray, np.ndarray]) -> Prediction:
    """With the stds of the noise, of energies and of forces, added in quadrature."""
    energy_std, forces_std = prediction.energy_std, prediction.forces_std
    return prediction._replace(energy_std=np.hypot(energy_std, noise[0]), forces_std=np.hypot(forces_std, noise[1]))
