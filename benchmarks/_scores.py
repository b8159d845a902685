"""Predictions with stds, and how good they are: errors, calibration, ranks."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from ase import Atoms
from scipy.stats import norm, spearmanr

ALL = "all families"


class Prediction(NamedTuple):
    """What a code predicts for a list of structures.

    Attributes
    ----------
    energies : (n,) total energies, eV.
    forces : (N, 3) of all structures, one after another, eV/Å.
    energy_std, forces_std : their stds, of the same shapes.
    """

    energies: np.ndarray
    forces: np.ndarray
    energy_std: np.ndarray
    forces_std: np.ndarray


def scores(structures: list[Atoms], prediction: Prediction) -> dict[str, float]:
    """RMSE and rms(error / std) of energies and force components.

    "energy_z" is of structures' total energies, the RMSE of energies per atom.
    """
    energy, force = errors(structures, prediction)
    atoms = np.array([len(a) for a in structures])
    return {
        "energy_rmse_meV": 1e3 * rms(energy / atoms),
        "force_rmse_eV_per_A": rms(force),
        "energy_z": rms(energy / prediction.energy_std),
        "force_z": rms(force / prediction.forces_std.ravel()),
        "energies": len(energy),
        "forces": len(force),
    }


def errors(structures: list[Atoms], prediction: Prediction) -> tuple[np.ndarray, np.ndarray]:
    """(n,) errors of total energies, eV, and (3 N,) of force components, eV/Å."""
    energies = np.array([a.get_potential_energy() for a in structures])
    forces = np.concatenate([a.get_forces() for a in structures])
    return prediction.energies - energies, (prediction.forces - forces).ravel()


def family_scores(families: dict[str, list[Atoms]], prediction: Prediction) -> dict[str, dict[str, float]]:
    """How true the stds are, family by family, and for `ALL` the rank correlation of std and absolute error.

    ``prediction`` is for the structures of all families, one after another. For each of "energy" (total, eV) and
    "force" (component, eV/Å): the fraction of errors within 3 stds, the means of the std and of the absolute error, and
    the mean continuous ranked probability score of a Gaussian.
    """
    structures = [atoms for members in families.values() for atoms in members]
    energy_error, force_error = errors(structures, prediction)
    names = np.repeat(list(families), [len(members) for members in families.values()])
    of_forces = np.repeat(names, [3 * len(atoms) for atoms in structures])
    found: dict[str, dict[str, float]] = {name: {} for name in (*families, ALL)}
    for what, family, error, std in (
        ("energy", names, energy_error, prediction.energy_std),
        ("force", of_forces, force_error, prediction.forces_std.ravel()),
    ):
        for name in families:
            here = family == name
            found[name] |= {f"{what}_{k}": v for k, v in _spread(error[here], std[here]).items()}
        found[ALL][f"{what}_rank_correlation"] = float(spearmanr(std, np.abs(error)).statistic)
    return found


def _spread(error: np.ndarray, std: np.ndarray) -> dict[str, float]:
    return {
        "within_3": float(np.mean(np.abs(error) <= 3 * std)),
        "mean_std": float(np.mean(std)),
        "mean_error": float(np.mean(np.abs(error))),
        "crps": float(np.mean(crps(error, std))),
    }


def crps(error: np.ndarray, std: np.ndarray) -> np.ndarray:
    """Continuous ranked probability score of a Gaussian; the absolute error where the std is 0.

    Gneiting and Raftery, J. Am. Stat. Assoc. 102, 359 (2007), doi:10.1198/016214506000001437, eq. 21.
    """
    z = error / np.where(std > 0, std, 1.0)
    score = std * (z * (2 * norm.cdf(z) - 1) + 2 * norm.pdf(z) - 1 / np.sqrt(np.pi))
    return np.where(std > 0, score, np.abs(error))


def rms(values: np.ndarray) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(np.square(values))))
