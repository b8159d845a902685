"""A model as an ASE calculator."""

from __future__ import annotations

import numpy as np
from ase.calculators.calculator import Calculator as ASECalculator
from ase.calculators.calculator import PropertyNotImplementedError, all_changes

from haljax.evaluation import evaluate_one, force_std_one
from haljax.model import Model
from haljax.structures import bucket, from_atoms, neighbour_list


class Calculator(ASECalculator):
    """Energy, forces and stress of a fitted model, with their posterior standard deviations.

    ``results`` hold energy and free_energy (eV), forces (eV/Å), stress (Voigt, eV/Å^3; periodic cells only)
    and energy_std (eV); ``forces_std`` (N, 3) (eV/Å) is computed when asked for:
    ``atoms.calc.get_property("forces_std", atoms)``. Standard deviations carry the model's calibration
    factors.
    """

    implemented_properties = [
        "energy", "free_energy", "forces", "stress", "energy_std", "forces_std",
    ]  # fmt: skip

    def __init__(self, model: Model, **kwargs) -> None:
        super().__init__(**kwargs)
        self.model = model
        self._capacity = 0  # grows and stays, so that a trajectory compiles once

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        assert self.atoms is not None
        model, n = self.model, len(self.atoms)
        if "stress" in properties and not self.atoms.pbc.all():
            raise PropertyNotImplementedError("stress needs a cell that is periodic along all three axes")
        system = from_atoms(self.atoms, model.basis.elements)
        found = neighbour_list(system, model.basis.cutoff)
        self._capacity = max(self._capacity, bucket(found.index.shape[1]))
        found = found.padded(len(system.species), self._capacity)
        result = evaluate_one(model, system, found)
        if not np.isfinite(result.energy) or not np.isfinite(result.forces).all():
            raise ValueError("the model's energy or forces are not finite for these positions")
        self.results = {
            "energy": float(result.energy),
            "free_energy": float(result.energy),
            "forces": result.forces[:n],
            "energy_std": float(result.sigma) * model.energy_calibration,
        }
        if self.atoms.pbc.all():
            self.results["stress"] = -result.virial / self.atoms.get_volume()
        if "forces_std" in properties:
            self.results["forces_std"] = force_std_one(model, system, found)[:n]
