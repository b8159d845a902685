"""A model as an ASE calculator."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator as ASECalculator
from ase.calculators.calculator import PropertyNotImplementedError, all_changes

from haljax.evaluation import evaluate_one, stds_one
from haljax.model import Model
from haljax.model_file import load
from haljax.potentials import atom_energies, parameters_of
from haljax.structures import Neighbours, System, from_atoms, neighbour_list

SKIN = 0.5  # Å by which neighbour lists reach beyond the cutoff, so that they serve for many steps


class Calculator(ASECalculator):
    """Energy, forces and stress of a fitted model, with the standard deviations that it predicts for their errors.

    ``results`` hold energy and free_energy (eV), forces (eV/Å), stress (Voigt, eV/Å^3; where the cell has a volume)
    and energy_std (eV). Computed when asked for, as by ``atoms.calc.get_property("forces_std", atoms)``, are
    ``forces_std`` (N, 3) (eV/Å), ``stress_std`` (6,) (eV/Å^3), and each atom's share ``energies`` (N,) (eV) of the
    energy.

    Each standard deviation is that of the reference's label around the prediction: model, core and noise together,
    calibrated. There is none of ``energies``: labels tell of sums alone, so that what an atom's share should be is open
    by some 0.2 to 0.8 eV wherever it sits. ``forces_std`` shows which atoms are unknown. The model's part alone, which
    biases dynamics, is ``potential(model).sigma``.

    The stress is the derivative by the strain over the volume of the cell, along axes that are not periodic too: of a
    slab in its cell the components in the plane are those of the slab's own, times the share of the cell that it fills.

    Parameters
    ----------
    model : or the path of its file.
    """

    implemented_properties = [
        "energy", "free_energy", "energies", "forces", "stress", "energy_std", "forces_std", "stress_std",
    ]  # fmt: skip

    def __init__(self, model: Model | str | Path, **kwargs) -> None:
        super().__init__(**kwargs)
        self.model = model = model if isinstance(model, Model) else load(model)
        self._parameters = model, parameters_of(model)  # on the device, for all calls
        self._made: tuple[Atoms, System, Neighbours] | None = None  # the last list, and what it was made for
        self._capacity = 0  # grows and stays, so that a trajectory compiles once

    def check_state(self, atoms, tol=1e-15) -> list[str]:
        """What differs from the last calculation: ASE's own comparison takes half as long as the energy of a few atoms.

        Any change counts, so ``tol`` does not; initial charges and magnetic moments, of which nothing depends, do not.
        """
        if self.atoms is None or self._parameters[0] is not self.model:
            return list(all_changes)
        return _changes(self.atoms, atoms)

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        assert self.atoms is not None
        model, n = self.model, len(self.atoms)
        if self._parameters[0] is not model:
            self._parameters, self._made, self._capacity = (model, parameters_of(model)), None, 0
        has_volume = self.atoms.cell.rank == 3
        if {"stress", "stress_std"} & set(properties) and not has_volume:
            raise PropertyNotImplementedError("stress needs a cell with three independent vectors")
        system, found = self._arrays(self.atoms)
        result = evaluate_one(model, system, found, self._parameters[1])
        if not np.isfinite(result.energy) or not np.isfinite(result.forces).all():
            raise ValueError("the model's energy or forces are not finite for these positions")
        self.results = {
            "energy": float(result.energy),
            "free_energy": float(result.energy),
            "forces": result.forces[:n],
            "energy_std": float(result.energy_std),
        }
        if has_volume:
            self.results["stress"] = -result.virial / self.atoms.get_volume()
        if {"forces_std", "stress_std"} & set(properties):
            stds = stds_one(model, system, found, self._parameters[1])
            self.results["forces_std"] = stds.forces[:n]
            if has_volume:
                self.results["stress_std"] = stds.virial / self.atoms.get_volume()

        if "energies" in properties:
            shares = atom_energies(model.basis, self._parameters[1], system, found)
            self.results["energies"] = np.asarray(shares)[:n]

    def _arrays(self, atoms: Atoms) -> tuple[System, Neighbours]:
        """The atoms as arrays, with the list made last while it is complete, else with a new one.

        A pair that the list lacks was cutoff + SKIN apart or more: it is not within the cutoff while the cell is the
        same and no atom has moved half of SKIN (one that was wrapped has).
        """
        if self._made is not None and _moved(self._made[0], atoms) < SKIN / 2:
            _, system, found = self._made
            positions = np.zeros(system.positions.shape)
            positions[: len(atoms)] = atoms.positions
            return system._replace(positions=positions), found
        self._made = None  # lest anything be left if the atoms are refused
        system = from_atoms(atoms, self.model.basis.elements)
        found = neighbour_list(system, self.model.basis.cutoff + SKIN)
        self._capacity = max(self._capacity, found.index.shape[1])
        found = found.padded(len(system.species), self._capacity)
        system, found = jax.tree.map(jnp.asarray, (system, found))
        self._made = atoms, system, found
        return system, found


def _changes(before: Atoms, now: Atoms) -> list[str]:
    """Which of positions, elements, cell and periodicity are not exactly the same, by ASE's names."""
    both = {
        "positions": (before.positions, now.positions),
        "numbers": (before.numbers, now.numbers),
        "cell": (before.cell.array, now.cell.array),
        "pbc": (before.pbc, now.pbc),
    }
    return [name for name, (a, b) in both.items() if not np.array_equal(a, b)]


def _moved(before: Atoms, now: Atoms) -> float:
    """How far any atom is from where it was, Å; infinite where elements, cell or periodicity are others."""
    if set(_changes(before, now)) - {"positions"}:
        return np.inf
    return np.linalg.norm(now.positions - before.positions, axis=1).max()
