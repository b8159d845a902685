"""A fitted model: what it consists of, and its file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import jax.numpy as jnp
import numpy as np

from haljax.ace import ACEBasis, ace_basis
from haljax.bayes import Posterior, Statistics, accumulate

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class FitSettings:
    """How data became rows, so that an update weighs new data as the fit did.

    Attributes
    ----------
    energy_weight, stress_weight : weight of an energy, and of a virial component, per atom, 1/eV.
    force_weight : weight of a force component, Å/eV.
    solver : "brr" or "ard".
    smoothness : power p of the smoothness prior; 0 leaves all functions equally probable.
    """

    energy_weight: float
    force_weight: float
    stress_weight: float
    solver: str
    smoothness: float


@dataclass(frozen=True)
class Model:
    """A linear ACE potential with its posterior. Made by `fit` and `update`; immutable.

    Attributes
    ----------
    basis : the functions.
    e0 : (Z,) one-body energies, eV, in the order of ``basis.elements``.
    posterior : of the M coefficients.
    compressed : the QR-compressed data up to the last fit.
    active : (M,) False for functions that ARD pruned.
    settings : how the data was weighted.
    n_structures : how many structures it learned from.
    energy_calibration, force_calibration : factors that bring the posterior's sigma to the errors seen on
        held-out labels; 1 before `calibrate`.
    pending : weighted rows (n, M) and targets (n,) of the updates since, of no more rows than some M.
    """

    basis: ACEBasis
    e0: np.ndarray
    posterior: Posterior
    compressed: Statistics
    active: np.ndarray
    settings: FitSettings
    n_structures: int
    energy_calibration: float = 1.0
    force_calibration: float = 1.0
    pending: tuple[tuple[np.ndarray, np.ndarray], ...] = ()

    @cached_property
    def statistics(self) -> Statistics:
        """All data QR-compressed, from which hyperparameters can be learned again; found when it is asked for."""
        return accumulate(self.compressed, self.pending, self.n_pending)

    @property
    def n_pending(self) -> int:
        return sum(len(targets) for _, targets in self.pending)

    def save(self, path: str | Path) -> None:
        """Write the model to ``path`` (npz), atomically."""
        import io

        from haljax import __version__
        from haljax.campaign import write_atomic

        meta = {
            "schema_version": SCHEMA_VERSION,
            "haljax": __version__,
            "basis": {k: getattr(self.basis, k) for k in ("elements", "cutoff", "order", "max_degree")},
            "settings": asdict(self.settings),
            "n_structures": self.n_structures,
            "energy_calibration": self.energy_calibration,
            "force_calibration": self.force_calibration,
        }
        arrays: dict[str, Any] = {"meta": np.array(json.dumps(meta)), "e0": self.e0, "active": self.active}
        arrays |= {f"posterior_{k}": v for k, v in self.posterior._asdict().items()}
        arrays |= {f"statistics_{k}": v for k, v in self.statistics._asdict().items()}
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        write_atomic(path, buffer.getvalue())


def load(path: str | Path) -> Model:
    """Read a model that `Model.save` wrote.

    Raises
    ------
    FileNotFoundError : no such file.
    ValueError : not a haljax model, or one of a schema version that this haljax does not know.
    """
    from haljax.bayes import require_x64

    require_x64()
    try:
        with np.load(path, allow_pickle=False) as data:
            meta = json.loads(str(data["meta"]))
            arrays = {k: data[k] for k in data.files}
    except (KeyError, TypeError, ValueError, OSError, EOFError, BadZipFile) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f"{path} is not a haljax model ({error}); models are written by Model.save") from error
    if meta.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(
            f"{path} has schema version {meta.get('schema_version')!r}, written by haljax "
            f"{meta.get('haljax')}; this haljax reads version {SCHEMA_VERSION}: install the one that wrote "
            "it, or fit the model again"
        )
    basis = ace_basis(**meta["basis"])
    if len(basis) != len(arrays["posterior_mean"]):
        raise ValueError(
            f"{path} holds {len(arrays['posterior_mean'])} coefficients, but its basis has {len(basis)} "
            "functions in this haljax: install the one that wrote it, or fit the model again"
        )

    def group(kind, prefix):
        return kind(**{name: jnp.asarray(arrays[f"{prefix}_{name}"]) for name in kind._fields})

    return Model(
        basis=basis,
        e0=arrays["e0"],
        posterior=group(Posterior, "posterior"),
        compressed=group(Statistics, "statistics"),
        active=arrays["active"],
        settings=FitSettings(**meta["settings"]),
        n_structures=meta["n_structures"],
        energy_calibration=meta["energy_calibration"],
        force_calibration=meta["force_calibration"],
    )
