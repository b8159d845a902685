"""The truth: a reference calculator in a worker process, and structures as plain data to send there."""

from __future__ import annotations

import copy
import socket
import threading
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ase import Atoms

WEIGHTS = ("energy_weight", "force_weight", "stress_weight")  # of `haljax.structures.labels`


def encode(atoms: Atoms) -> dict[str, Any]:
    """A structure as JSON-able data, with the weights of its labels; floats survive exactly."""
    weights = {
        where: {name: np.asarray(values[name]).tolist() for name in WEIGHTS if name in values}
        for where, values in (("info", atoms.info), ("arrays", atoms.arrays))
    }
    return {
        "numbers": atoms.numbers.tolist(),
        "positions": atoms.positions.tolist(),
        "cell": np.asarray(atoms.cell).tolist(),
        "pbc": atoms.pbc.tolist(),
        "config_type": str(atoms.info.get("config_type", "all")),
        **({"weights": weights} if any(weights.values()) else {}),
    }


def decode(data: Mapping[str, Any]) -> Atoms:
    """The structure of a journal record or payload, with the labels that stand beside it, if any."""
    from ase import Atoms

    from haljax.structures import with_labels

    s = data["structure"]
    atoms = Atoms(s["numbers"], s["positions"], cell=s["cell"], pbc=s["pbc"])
    atoms.info["config_type"] = s["config_type"]
    for name, weight in s.get("weights", {}).get("info", {}).items():
        atoms.info[name] = weight
    for name, weight in s.get("weights", {}).get("arrays", {}).items():
        atoms.set_array(name, np.asarray(weight))
    if "energy" in data:
        atoms = with_labels(atoms, data["energy"], data["forces"], data.get("stress"))
    return atoms


class Reference:
    """A callable for the oracle: {"structure": …} -> energy (eV), forces (eV/Å), stress (eV/Å^3, Voigt).

    With {"md": …} it runs molecular dynamics of the reference and returns labelled frames.

    Each process, and each thread of one, has a calculator of its own. One that starts a program (VASP, Quantum
    ESPRESSO) also has a folder of its own, lest labels computed at once write into each other's files.

    Parameters
    ----------
    calculator : an ASE calculator, or the dotted path of a calculator class or of a function that makes one.
    arguments : keyword arguments for the dotted path.
    folder : where those folders are, unless the calculator names another directory.

    Raises
    ------
    ValueError : the path leads to nothing that can be called.
    """

    def __init__(self, calculator: Any, arguments: Mapping[str, Any] | None = None, folder: str | Path = ".") -> None:
        self._source, self._arguments, self._folder = calculator, dict(arguments or {}), folder
        self._here = threading.local()
        if isinstance(calculator, str):
            _resolve(calculator)  # fail here rather than in every worker

    def __reduce__(self) -> tuple[Any, ...]:
        return Reference, (self._source, self._arguments, self._folder)

    @property
    def _calculator(self) -> Any:
        if not hasattr(self._here, "calculator"):
            source = self._source
            made = _resolve(source)(**self._arguments) if isinstance(source, str) else copy.deepcopy(source)
            if hasattr(made, "directory") and (hasattr(made, "command") or hasattr(made, "profile")):
                parent = self._folder if str(made.directory) == "." else made.directory
                made.directory = Path(parent) / f"{socket.gethostname()}-{threading.get_native_id()}"
            self._here.calculator = made
        return self._here.calculator

    def __call__(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        atoms = decode(payload)
        atoms.calc = self._calculator
        try:
            return _frames(atoms, **payload["md"]) if "md" in payload else _label(atoms)
        except BaseException:
            del self._here.calculator  # the next label is not to inherit one in a bad state
            raise


def _resolve(path: str) -> Any:
    module, _, name = path.replace(":", ".").rpartition(".")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"reference.calculator {path!r} cannot be loaded ({error}): give the dotted path of an ASE calculator, "
            "such as ase.calculators.emt.EMT, and install the package it belongs to"
        ) from error


def _label(atoms: Atoms) -> dict[str, Any]:
    from ase.calculators.calculator import PropertyNotImplementedError

    try:  # the energy that the forces are the derivative of, where electrons are smeared
        energy = atoms.get_potential_energy(force_consistent=True)
    except (PropertyNotImplementedError, NotImplementedError):
        energy = atoms.get_potential_energy()
    forces = np.asarray(atoms.get_forces())
    if forces.shape != (len(atoms), 3):
        raise ValueError(f"the calculator returned forces of shape {forces.shape} for {len(atoms)} atoms")
    label = {"energy": float(energy), "forces": forces.tolist()}
    stress = None
    if atoms.pbc.all():
        try:
            stress = atoms.get_stress(voigt=True)
        except (PropertyNotImplementedError, NotImplementedError):
            pass  # a calculator without stress: energies and forces will do
    elif atoms.pbc.any() and atoms.cell.rank == 3:  # a slab: what is there, since asking may end in any error
        stress = atoms.calc.results.get("stress")
    if stress is not None:
        label["stress"] = np.asarray(stress).tolist()
    return label


def _frames(
    atoms: Atoms, temperature_K: float, frames: int, interval: int, burn_in: int, timestep_fs: float, seed: int
) -> dict[str, Any]:
    """Labelled frames of Langevin dynamics under the reference itself."""
    from ase import units
    from ase.md.langevin import Langevin

    rng = np.random.default_rng(seed)
    width = np.sqrt(units.kB * temperature_K * atoms.get_masses())
    atoms.set_momenta(width[:, None] * rng.standard_normal((len(atoms), 3)))
    dynamics = Langevin(
        atoms,
        timestep_fs * units.fs,
        temperature_K=temperature_K,
        friction=0.02 / units.fs,
        fixcm=False,  # the ensemble is exact only so
        rng=rng,
    )
    dynamics.run(burn_in)
    found = []
    for _ in range(frames):
        dynamics.run(interval)
        found.append({"structure": encode(atoms)} | _label(atoms))
    return {"frames": found}
