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

LARGEST = 1e9  # eV, eV/Å, eV/Å^3: beyond all that a label can be
SAME = 1e-6  # Å, below which positions and cells are the same

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
    except Exception as error:  # a module may raise what it likes while it is imported
        raise ValueError(
            f"reference.calculator {path!r} cannot be loaded ({type(error).__name__}: {error}): give the dotted path "
            "of an ASE calculator, such as ase.calculators.emt.EMT, and install the package it belongs to"
        ) from error


def _label(atoms: Atoms) -> dict[str, Any]:
    from ase.calculators.calculator import PropertyNotImplementedError

    given = atoms.copy()
    try:  # the energy that the forces are the derivative of, where electrons are smeared
        energy = atoms.get_potential_energy(force_consistent=True)
    except PropertyNotImplementedError:  # but no other NotImplementedError, which may tell of an element, say
        energy = atoms.get_potential_energy()
    found = {"energy": (energy, ()), "forces": (atoms.get_forces(), (len(atoms), 3))}
    stress = None
    if atoms.pbc.all():
        try:
            stress = atoms.get_stress(voigt=True)
        except (PropertyNotImplementedError, NotImplementedError):
            pass  # a calculator without stress: energies and forces will do
    elif atoms.pbc.any() and atoms.cell.rank == 3:  # a slab: what is there, since asking may end in any error
        stress = atoms.calc.results.get("stress")
    if stress is not None:
        found["stress"] = (stress, (6,))
    _same(given, atoms)
    return {what: _real(what, value, shape).tolist() for what, (value, shape) in found.items()}


def _real(what: str, value: Any, shape: tuple[int, ...]) -> np.ndarray:
    """A label as numbers; TypeError or ValueError where it is none."""
    array = np.asarray(value)
    if array.dtype.kind not in "fiu":
        raise TypeError(f"the calculator returned {what} that is not real numbers (of type {array.dtype})")
    if array.shape != shape:
        raise ValueError(f"the calculator returned {what} of shape {array.shape} instead of {shape}")
    if np.isfinite(array).all() and np.any(np.abs(array) > LARGEST):
        raise ValueError(f"the calculator returned {what} of {np.abs(array).max():.3g}, which cannot be")
    return array.astype(float)


def _same(given: Atoms, now: Atoms) -> None:
    """ValueError where a calculator has changed the atoms, so that its labels belong to others.

    One that puts atoms back into the cell has moved none.
    """
    changes = []
    if not np.array_equal(given.numbers, now.numbers):
        changes.append("other elements, or another order")
    if not np.allclose(np.array(given.cell), np.array(now.cell), rtol=0, atol=SAME):
        changes.append("another cell")
    if not changes:
        step = now.positions - given.positions
        if given.pbc.any():
            shifts = np.where(given.pbc, np.rint(given.cell.scaled_positions(step)), 0.0)
            step = step - shifts @ np.array(given.cell)
        if (largest := np.linalg.norm(step, axis=1).max()) > SAME:
            changes.append(f"atoms moved by up to {largest:.2g} Å")
    if changes:
        raise ValueError(
            f"the calculator changed the atoms that it was to label ({', '.join(changes)}): switch off its relaxation"
        )


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
    _label(atoms)  # what the dynamics begins with anyway: a calculator that moves atoms is found out here
    dynamics.run(burn_in)
    found = []
    for _ in range(frames):
        dynamics.run(interval)
        found.append({"structure": encode(atoms)} | _label(atoms))
    return {"frames": found}
