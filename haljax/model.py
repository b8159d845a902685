"""A fitted model: what it consists of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from haljax.ace import ACEBasis
from haljax.bayes import Posterior, Statistics
from haljax.rows import Table
from haljax.spread import LeaveOneOut, Spread

if TYPE_CHECKING:
    from ase import Atoms


@dataclass(frozen=True)
class FitSettings:
    """How data became rows and which prior was used, so that later data are treated as the fit treated its own.

    Attributes
    ----------
    energy_weight, stress_weight : weight of an energy, and of a virial component, per atom, 1/eV.
    force_weight : weight of a force component, Å/eV.
    solver : "auto", "brr" or "ard".
    smoothness : power p of the smoothness prior of "brr" and "ard"; 0 leaves all functions equally probable.
    e0 : "auto", "lsq", "isolated" or energies by element, eV.
    """

    energy_weight: float
    force_weight: float
    stress_weight: float
    solver: str
    smoothness: float
    e0: str | Mapping[str, float] = "auto"

    @property
    def weights(self) -> tuple[float, float, float]:
        return self.energy_weight, self.force_weight, self.stress_weight


def errors_in_words(energy: float, force: float) -> str:
    """An energy (eV per atom) and a force (eV/Å), those of them that are known."""
    known = [f"{1e3 * energy:.3g} meV/atom"] if energy > 0 else []
    return ", ".join(known + ([f"{force:.3g} eV/Å"] if force > 0 else []))


@dataclass(frozen=True, eq=False, repr=False)  # arrays have no one truth value: a model equals itself alone
class Model:
    """A linear ACE potential with its posterior. Made by `fit`, `refit` and `update`; immutable.

    Attributes
    ----------
    basis : the M functions.
    posterior : of the M coefficients and the energies of the Z isolated elements, eV: the mean of predictions.
    spread : the covariance and noise that standard deviations are made of.
    settings : how the data was weighted, and which prior.
    active : (M,) False for functions that ARD pruned.
    radii : (2, Z, Z) Å, inner and outer radii of the repulsive core.
    near : (Z, Z) Å, distances below which the data have no pair of atoms: there the bias fades.
    density : (channels, Z) reference densities of the functions of the density.
    structures : labelled structures that it learned from.
    ignored : index of a structure -> why the fit left it out.
    doubted : index of a structure -> the factor of its weights, where its forces fit worse than others'.
    hyperparameters : of "auto", from which a refit starts.
    loo : errors on groups of structures left out.
    n_structures : how many structures it learned from.
    energy_calibration, force_calibration, stress_calibration : factors of the predicted standard deviations, from
        `calibrate`; 1 before.
    compressed : of a model of schema 1, all that its file knows of its data.
    table : weighted rows of the structures, where they are at hand; not saved.
    """

    basis: ACEBasis
    posterior: Posterior
    spread: Spread
    settings: FitSettings
    active: np.ndarray
    radii: np.ndarray
    near: np.ndarray
    density: np.ndarray
    structures: tuple[Atoms, ...] = ()
    ignored: Mapping[int, str] = field(default_factory=dict)
    doubted: Mapping[int, float] = field(default_factory=dict)
    hyperparameters: np.ndarray | None = None
    loo: LeaveOneOut = LeaveOneOut()
    n_structures: int = 0
    energy_calibration: float = 1.0
    force_calibration: float = 1.0
    stress_calibration: float = 1.0
    compressed: Statistics | None = None
    table: Table | None = None

    @property
    def coefficients(self) -> np.ndarray:
        """(M,) mean coefficients of the basis functions, eV."""
        return np.asarray(self.posterior.mean)[: len(self.basis)]

    @property
    def e0(self) -> np.ndarray:
        """(Z,) energies of the isolated elements, eV, in the order of ``basis.elements``."""
        return np.asarray(self.posterior.mean)[len(self.basis) :]

    @property
    def choice(self) -> str:
        """What the fit chose, in one line."""
        pairs = ", ".join(
            f"{self.basis.elements[a]}-{self.basis.elements[b]} {self.radii[1][a, b]:.2f}" for a, b in self.basis.pairs
        )
        parts = [
            f"{self.settings.solver}: {self.basis.words()}",
            f"core up to {pairs} Å",
            f"noise {errors_in_words(*self.spread.noise[:2])}",
        ]
        if self.loo.groups:
            parts.append(f"leave-one-out {errors_in_words(self.loo.energy, self.loo.force)}")
        if self.doubted:
            parts.append(f"{len(self.doubted)} structures weigh less")
        if self.ignored:
            parts.append(f"{len(self.ignored)} structures left out")
        return "; ".join(parts)

    def save(self, path: str | Path) -> None:
        """Write the model to ``path`` (npz), atomically; see `haljax.model_file`."""
        from haljax.model_file import save

        save(self, path)

    def __repr__(self) -> str:
        return f"Model({self.n_structures} structures; {self.choice})"
