"""A fitted model: what it consists of, and its file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import jax.numpy as jnp
import numpy as np

from haljax.ace import ACEBasis, ace_basis
from haljax.ace.density import CHANNELS
from haljax.bayes import Posterior, Statistics
from haljax.rows import KINDS, Table
from haljax.spread import LeaveOneOut, Spread

if TYPE_CHECKING:
    from ase import Atoms

SCHEMA_VERSION = 2  # 1: no structures, core radii from the basis, E0 fixed, sigma of the posterior


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


@dataclass(frozen=True)
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
    table: Table | None = field(default=None, compare=False, repr=False)

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
            "stress_calibration": self.stress_calibration,
            "ignored": {str(i): why for i, why in self.ignored.items()},
            "doubted": {str(i): factor for i, factor in self.doubted.items()},
            "loo": [None if x != x else x for x in self.loo],  # JSON has no NaN
            "configurations": [_plain_info(atoms) for atoms in self.structures],
        }
        arrays: dict[str, Any] = {"meta": np.array(json.dumps(meta)), "active": self.active}
        arrays |= {"radii": self.radii, "near": self.near, "density": self.density}
        if self.hyperparameters is not None:
            arrays["hyperparameters"] = self.hyperparameters
        arrays |= {f"posterior_{k}": v for k, v in self.posterior._asdict().items()}
        arrays |= {f"spread_{k}": v for k, v in self.spread._asdict().items()}
        if self.compressed is not None:
            arrays |= {f"statistics_{k}": v for k, v in self.compressed._asdict().items()}
        arrays |= {f"data_{k}": v for k, v in _packed(self.basis.elements, self.structures).items()}
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
    version = meta.get("schema_version")
    if version not in (1, SCHEMA_VERSION):
        raise ValueError(
            f"{path} has schema version {version!r}, written by haljax {meta.get('haljax')}; this haljax reads "
            f"versions 1 and {SCHEMA_VERSION}: install the one that wrote it, or fit the model again"
        )
    basis = ace_basis(**meta["basis"])
    if version == 1:
        meta, arrays = _from_version_1(basis, meta, arrays)
    elif "near" not in arrays:
        arrays |= _of_other_densities(basis, arrays)
    if len(basis) != len(arrays["active"]):
        raise ValueError(
            f"{path} holds {len(arrays['active'])} coefficients, but its basis has {len(basis)} "
            "functions in this haljax: install the one that wrote it, or fit the model again"
        )

    def group(kind, prefix):
        return kind(**{name: jnp.asarray(arrays[f"{prefix}_{name}"]) for name in kind._fields})

    spread = Spread(jnp.asarray(arrays["spread_factor"]), *(arrays[f"spread_{k}"] for k in Spread._fields[1:]))
    known: dict[str, Any] = dict(zip(LeaveOneOut._fields, meta["loo"], strict=False))  # files may lack the last
    known = {name: np.nan if value is None else value for name, value in known.items()}
    loo = LeaveOneOut(**known)
    return Model(
        basis=basis,
        posterior=group(Posterior, "posterior"),
        spread=spread,
        settings=FitSettings(**meta["settings"]),
        active=arrays["active"],
        radii=arrays["radii"],
        near=arrays["near"],
        density=arrays["density"],
        structures=_unpacked(basis.elements, arrays, meta["configurations"]),
        ignored={int(i): why for i, why in meta["ignored"].items()},
        doubted={int(i): factor for i, factor in meta.get("doubted", {}).items()},
        hyperparameters=arrays.get("hyperparameters"),
        loo=loo._replace(groups=int(loo.groups)),
        n_structures=meta["n_structures"],
        energy_calibration=meta["energy_calibration"],
        force_calibration=meta["force_calibration"],
        stress_calibration=meta["stress_calibration"],
        compressed=group(Statistics, "statistics") if "statistics_R" in arrays else None,
    )


def _from_version_1(
    basis: ACEBasis, meta: dict[str, Any], arrays: dict[str, np.ndarray]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """A file of schema 1 in the terms of the present one: the same mean; its standard deviations now have the noise.

    Its core has the radii of the basis, and its E0 is exact. Since calibration factors were fitted to the model's
    standard deviation and noise together, they apply to both.
    """
    z = basis.n_species
    settings = meta["settings"]
    alpha = float(arrays["posterior_noise_precision"])
    weights = np.array([settings[f"{kind}_weight"] for kind in KINDS])
    joint = {
        "posterior_mean": np.concatenate([arrays["posterior_mean"], arrays["e0"]]),
        "posterior_factor": np.pad(arrays["posterior_factor"], ((0, z), (0, z))),
        "posterior_prior_precision": np.concatenate([arrays["posterior_prior_precision"], np.ones(z)]),
        "spread_factor": np.pad(arrays["posterior_factor"], ((0, z), (0, z))),
        "spread_precision": np.full(3, alpha),
        "spread_scale": np.ones(3),
        "spread_noise": alpha**-0.5 / np.where(weights > 0, weights, np.inf),
        "radii": np.stack(basis.core_radii),
        "near": 1.15 * basis.core_radii[1],
        "density": np.zeros((len(CHANNELS), z)),
    }
    e0 = dict(zip(basis.elements, arrays["e0"].tolist(), strict=True))
    added = {"stress_calibration": 1.0, "ignored": {}, "loo": [None] * 6 + [0], "configurations": []}
    return meta | added | {"settings": settings | {"e0": e0}}, arrays | joint | _data_arrays(())


def _of_other_densities(basis: ACEBasis, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What replaces arrays of the first files of schema 2: their functions of the density were others.

    The standard deviations go without such functions until a refit, which makes those of the present version.
    """
    joint = len(basis) + basis.n_species
    return {
        "spread_factor": arrays["spread_factor"][:joint],
        "density": np.zeros((len(CHANNELS), basis.n_species)),
        "near": 1.15 * arrays["radii"][1],
    }


def _plain_info(atoms: Atoms) -> dict[str, str]:
    return {k: str(atoms.info[k]) for k in ("config_type", "group") if k in atoms.info}


def _data_arrays(elements: Sequence[str]) -> dict[str, np.ndarray]:
    return {f"data_{k}": v for k, v in _packed(elements, ()).items()}


def _packed(elements: Sequence[str], structures: Sequence[Atoms]) -> dict[str, np.ndarray]:
    """Structures and labels as arrays, atoms of all structures one after another."""
    from haljax.structures import from_atoms, labels

    systems = [from_atoms(atoms, elements, len(atoms)) for atoms in structures]
    known = [labels(atoms) for atoms in structures]
    given = np.array([np.any(np.array(atoms.cell), axis=1) for atoms in structures]).reshape(-1, 3)

    def joined(parts: list, *shape: int) -> np.ndarray:
        return np.concatenate(parts) if parts else np.zeros((0, *shape))

    return {
        "sizes": np.array([len(atoms) for atoms in structures], int),
        "positions": joined([s.positions for s in systems], 3),
        "species": joined([s.species for s in systems]).astype(np.int32),
        "cell": np.array([np.array(atoms.cell) for atoms in structures]).reshape(-1, 3, 3) * given[:, :, None],
        "pbc": np.array([s.pbc for s in systems], bool).reshape(-1, 3),
        "energy": np.array([l.energy for l in known]),
        "forces": joined([l.forces for l in known], 3),
        "stress": np.array([l.stress for l in known]).reshape(-1, 6),
        "energy_weight": np.array([l.energy_weight for l in known]),
        "force_weight": joined([l.force_weight for l in known], 3),
        "stress_weight": np.array([l.stress_weight for l in known]),
    }


def _unpacked(elements: Sequence[str], arrays: Mapping[str, np.ndarray], infos: Sequence[Mapping[str, str]]) -> tuple:
    from ase import Atoms

    from haljax.structures import with_labels

    data = {k.removeprefix("data_"): v for k, v in arrays.items() if k.startswith("data_")}
    ends = np.cumsum(data["sizes"])
    found = []
    for i, (size, end) in enumerate(zip(data["sizes"], ends, strict=True)):
        own = slice(end - size, end)
        atoms = Atoms(
            [elements[z] for z in data["species"][own]],
            data["positions"][own],
            cell=data["cell"][i],
            pbc=data["pbc"][i],
            info=dict(infos[i]),
        )
        known: dict[str, Any] = {
            "energy": data["energy"][i] if np.isfinite(data["energy"][i]) else None,
            "forces": data["forces"][own] if np.isfinite(data["forces"][own]).all() else None,
            "stress": data["stress"][i] if np.isfinite(data["stress"][i]).all() else None,
        }
        atoms = with_labels(atoms, **known)
        if data["energy_weight"][i] != 1:
            atoms.info["energy_weight"] = float(data["energy_weight"][i])
        if data["stress_weight"][i] != 1:
            atoms.info["stress_weight"] = float(data["stress_weight"][i])
        if np.any(data["force_weight"][own] != 1):
            atoms.arrays["force_weight"] = np.array(data["force_weight"][own])
        found.append(atoms)
    return tuple(found)
