"""popsregression as a peer: POPS on haljax's own design rows, in the environment named with ``--pops-python``."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import numpy as np
from _scores import Prediction
from ase import Atoms

import haljax as hx
from haljax.rows import design_rows, examples
from haljax.structures import labels


def predict(python: str, model: hx.Model, train: list[Atoms], test: list[Atoms]) -> Prediction:
    """POPS's means and stds for ``test`` after a fit to ``train``, with haljax's basis, core, E0 and weights.

    Columns are divided by haljax's smoothness prior, so that its prior of equal variances is that of ``brr``.
    """
    scale = 1 / np.asarray(model.basis.smoothness(model.settings.smoothness))
    known, wanted = _Rows(model, train), _Rows(model, test)
    targets = np.concatenate([_labels(atoms) for atoms in train]) - known.base
    weights = np.concatenate([_weights(model, atoms) for atoms in train])
    has_label = np.isfinite(targets)
    with tempfile.TemporaryDirectory() as folder:
        given, found = f"{folder}/given.npz", f"{folder}/found.npz"
        np.savez(
            given, X=(known.rows * weights[:, None] * scale)[has_label], y=(targets * weights)[has_label],
            rows=wanted.rows * scale,
        )  # fmt: skip
        command = [python, str(Path(__file__).with_name("_fit_pops.py")), given, found]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
        with np.load(found) as data:
            mean, std = wanted.base + data["mean"], data["std"]
    start = np.cumsum([0] + [7 + 3 * len(atoms) for atoms in test])[:-1]
    force_rows = np.concatenate([np.arange(s + 1, s + 1 + 3 * len(a)) for s, a in zip(start, test, strict=True)])
    return Prediction(mean[start], mean[force_rows].reshape(-1, 3), std[start], std[force_rows].reshape(-1, 3))


class _Rows:
    """Rows of energies, forces and virials of structures, and the part of each that is no function's.

    Attributes
    ----------
    rows : (r, M) derivatives of energy, eV, forces (3 N), eV/Å, and virial (6), eV, in the coefficients.
    base : (r,) what the model predicts with all coefficients at 0: core and E0.
    """

    def __init__(self, model: hx.Model, structures: list[Atoms]) -> None:
        calculator = hx.Calculator(model)
        rows, predicted = [], []
        for atoms, example in zip(structures, examples(model.basis, structures), strict=True):
            found = design_rows(model.basis, *example, model.radii)
            n = len(atoms)
            rows += [found.energy[None], found.forces[:n].reshape(3 * n, -1), found.virial]
            copy = atoms.copy()
            copy.calc = calculator
            virial = -copy.get_stress() * copy.get_volume() if copy.pbc.all() else np.full(6, np.nan)
            predicted += [[copy.get_potential_energy()], copy.get_forces().ravel(), virial]
        self.rows = np.concatenate(rows)
        self.base = np.concatenate(predicted) - self.rows @ model.coefficients


def _labels(atoms: Atoms) -> np.ndarray:
    """(1 + 3 N + 6,) energy, forces and virial; NaN where missing."""
    known = labels(atoms)
    virial = -known.stress * abs(np.linalg.det(atoms.cell.array))
    return np.concatenate([[known.energy], known.forces.ravel(), virial])


def _weights(model: hx.Model, atoms: Atoms) -> np.ndarray:
    n, settings = len(atoms), model.settings
    per_structure = [settings.energy_weight / n], [settings.stress_weight / n] * 6
    return np.concatenate([per_structure[0], np.full(3 * n, settings.force_weight), per_structure[1]])
