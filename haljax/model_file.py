"""The file of a model: arrays and metadata, checked as a whole when it is read, and earlier versions of it."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal
from zipfile import BadZipFile

import jax.numpy as jnp
import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from haljax import __version__
from haljax.ace import ACEBasis, ace_basis
from haljax.ace.density import CHANNELS
from haljax.bayes import Posterior, Statistics, require_x64
from haljax.campaign import write_atomic
from haljax.model import FitSettings, Model
from haljax.rows import KINDS
from haljax.spread import LeaveOneOut, Spread

if TYPE_CHECKING:
    from ase import Atoms

SCHEMA_VERSION = 2  # 1: no structures, core radii from the basis, E0 fixed, sigma of the posterior


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class _Basis(_Table):
    elements: Annotated[list[str], Field(min_length=1)]
    cutoff: Annotated[float, Field(gt=0)]
    order: Annotated[int, Field(ge=1)]
    max_degree: Annotated[int, Field(ge=1)]


Weight = Annotated[float, Field(ge=0)]
Factor = Annotated[float, Field(gt=0)]


class _Settings(_Table):
    energy_weight: Weight
    force_weight: Weight
    stress_weight: Weight
    solver: Literal["auto", "brr", "ard"]
    smoothness: float
    e0: Literal["auto", "lsq", "isolated"] | dict[str, float]


class _Meta(_Table):
    """What is not an array."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)

    schema_version: int
    haljax: str
    basis: _Basis
    settings: _Settings
    n_structures: Annotated[int, Field(ge=0)]
    energy_calibration: Factor
    force_calibration: Factor
    stress_calibration: Factor
    ignored: dict[str, str]
    doubted: dict[str, Factor] = {}
    loo: Annotated[list[float | None], Field(min_length=7, max_length=len(LeaveOneOut._fields))]
    configurations: list[dict[str, str]]


def save(model: Model, path: str | Path) -> None:
    """Write a model to ``path`` (npz), atomically."""
    meta = {
        "schema_version": SCHEMA_VERSION,
        "haljax": __version__,
        "basis": {k: getattr(model.basis, k) for k in ("elements", "cutoff", "order", "max_degree")},
        "settings": asdict(model.settings),
        "n_structures": model.n_structures,
        "energy_calibration": model.energy_calibration,
        "force_calibration": model.force_calibration,
        "stress_calibration": model.stress_calibration,
        "ignored": {str(i): why for i, why in model.ignored.items()},
        "doubted": {str(i): factor for i, factor in model.doubted.items()},
        "loo": [None if x != x else x for x in model.loo],  # JSON has no NaN
        "configurations": [_plain_info(atoms) for atoms in model.structures],
    }
    arrays: dict[str, Any] = {"meta": np.array(json.dumps(meta)), "active": model.active}
    arrays |= {"radii": model.radii, "near": model.near, "density": model.density}
    if model.hyperparameters is not None:
        arrays["hyperparameters"] = model.hyperparameters
    arrays |= {f"posterior_{k}": v for k, v in model.posterior._asdict().items()}
    arrays |= {f"spread_{k}": v for k, v in model.spread._asdict().items()}
    if model.compressed is not None:
        arrays |= {f"statistics_{k}": v for k, v in model.compressed._asdict().items()}
    arrays |= {f"data_{k}": v for k, v in _packed(model.basis.elements, model.structures).items()}
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
    require_x64()
    try:
        with np.load(path, allow_pickle=False) as data:
            raw = json.loads(str(data["meta"]))
            arrays = {k: data[k] for k in data.files if k != "meta"}
    except (KeyError, TypeError, ValueError, OSError, EOFError, BadZipFile) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f"{path} is not a haljax model ({error}); models are written by Model.save") from error
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if version not in (1, SCHEMA_VERSION) or isinstance(version, bool):
        written = raw.get("haljax") if isinstance(raw, dict) else None
        raise ValueError(
            f"{path} has schema version {version!r}, written by haljax {written}; this haljax reads "
            f"versions 1 and {SCHEMA_VERSION}: install the one that wrote it, or fit the model again"
        )
    try:
        return _model(raw, arrays)
    except _Damaged as error:
        raise ValueError(
            f"{path} cannot be used: {error}. Take a copy, install the haljax that wrote it, or fit the model again"
        ) from error


class _Damaged(Exception):
    """What is wrong with a file."""


def _model(raw: dict[str, Any], arrays: dict[str, np.ndarray]) -> Model:
    try:
        basis = ace_basis(**_Basis.model_validate(raw.get("basis")).model_dump())
        if "active" in arrays and arrays["active"].shape != (len(basis),):
            held = arrays["active"].size
            raise _Damaged(f"it holds {held} coefficients, but its basis has {len(basis)} functions in this haljax")
        if raw["schema_version"] == 1:
            raw, arrays = _from_version_1(basis, raw, arrays)
        elif "near" not in arrays and "density" in arrays and len(arrays["density"]) < len(CHANNELS):
            arrays = arrays | _of_other_densities(basis, arrays)
        meta = _Meta.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "its description"
        raise _Damaged(f"{where}: {first['msg']}") from error
    except KeyError as error:
        raise _Damaged(f"{error} is missing") from error
    except (ValueError, TypeError) as error:
        raise _Damaged(str(error)) from error
    _check_arrays(basis, arrays, len(meta.configurations))

    def group(kind, prefix):
        return kind(**{name: jnp.asarray(arrays[f"{prefix}_{name}"]) for name in kind._fields})

    spread = Spread(jnp.asarray(arrays["spread_factor"]), *(arrays[f"spread_{k}"] for k in Spread._fields[1:]))
    known: dict[str, Any] = dict(zip(LeaveOneOut._fields, meta.loo, strict=False))  # files may lack the last
    known = {name: np.nan if value is None else value for name, value in known.items()}
    loo = LeaveOneOut(**known)
    return Model(
        basis=basis,
        posterior=group(Posterior, "posterior"),
        spread=spread,
        settings=FitSettings(**meta.settings.model_dump()),
        active=arrays["active"],
        radii=arrays["radii"],
        near=arrays["near"],
        density=arrays["density"],
        structures=_unpacked(basis.elements, arrays, meta.configurations),
        ignored={int(i): why for i, why in meta.ignored.items()},
        doubted={int(i): factor for i, factor in meta.doubted.items()},
        hyperparameters=arrays.get("hyperparameters"),
        loo=loo._replace(groups=int(loo.groups)),
        n_structures=meta.n_structures,
        energy_calibration=meta.energy_calibration,
        force_calibration=meta.force_calibration,
        stress_calibration=meta.stress_calibration,
        compressed=group(Statistics, "statistics") if "statistics_R" in arrays else None,
    )


def _check_arrays(basis: ACEBasis, arrays: Mapping[str, np.ndarray], n_structures: int) -> None:
    """Raise `_Damaged` unless all arrays are there, of the right shapes, and numbers."""
    M, z = len(basis), basis.n_species
    sizes = arrays.get("data_sizes", np.zeros(0, int))
    if sizes.shape != (n_structures,) or sizes.dtype.kind not in "iu" or np.any(sizes < 1):
        raise _Damaged(f"data_sizes should be the sizes of {n_structures} structures")
    S, N = n_structures, int(sizes.sum())
    rows, joint = len(arrays.get("spread_factor", ())), M + z
    shapes: dict[str, tuple[int, ...]] = {
        "active": (M,), "radii": (2, z, z), "near": (z, z), "density": (len(CHANNELS), z),
        "posterior_mean": (joint,), "posterior_factor": (joint, joint), "posterior_noise_precision": (),
        "posterior_prior_precision": (joint,), "posterior_log_evidence": (),
        "spread_factor": (rows, rows), "spread_precision": (3,), "spread_scale": (3,), "spread_noise": (3,),
        "data_sizes": (S,), "data_positions": (N, 3), "data_species": (N,), "data_cell": (S, 3, 3), "data_pbc": (S, 3),
        "data_energy": (S,), "data_forces": (N, 3), "data_stress": (S, 6),
        "data_energy_weight": (S,), "data_force_weight": (N, 3), "data_stress_weight": (S,),
    }  # fmt: skip
    if "statistics_R" in arrays:
        shapes |= {"statistics_R": (M, M), "statistics_z": (M,), "statistics_rss": (), "statistics_n": ()}
    if "hyperparameters" in arrays:
        shapes["hyperparameters"] = (arrays["hyperparameters"].size,)
    for name, shape in shapes.items():
        if name not in arrays:
            raise _Damaged(f"{name} is missing")
        array = arrays[name]
        # The rows and columns of the spread's factor differ in files whose functions of the density were others.
        own = array.shape[:1] + shape[1:] if name == "spread_factor" else array.shape
        if own != shape or (name == "spread_factor" and not (array.ndim == 2 and rows >= joint)):
            raise _Damaged(f"{name} has shape {array.shape} instead of {shape}")
        if array.dtype.kind not in ("b" if name in ("active", "data_pbc") else "iuf"):
            raise _Damaged(f"{name} should be numbers, not {array.dtype}")
        missing_allowed = name in ("data_energy", "data_forces", "data_stress")  # NaN: there was no such label
        infinite_allowed = name in ("posterior_prior_precision", "posterior_log_evidence")
        if np.isnan(array).any() and not missing_allowed:
            raise _Damaged(f"{name} has NaN in it")
        if np.isinf(array).any() and not infinite_allowed:
            raise _Damaged(f"{name} is infinite")
    species = arrays["data_species"]
    if len(species) and not (0 <= species.min() and species.max() < z):
        raise _Damaged("data_species names elements that the basis lacks")
    if np.any(arrays["radii"] < 0) or np.any(arrays["spread_noise"] < 0) or not arrays["posterior_noise_precision"] > 0:
        raise _Damaged("a radius or a noise is negative")


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
