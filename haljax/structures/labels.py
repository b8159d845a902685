"""Reference energies, forces and stresses of ASE Atoms, and their weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from haljax.structures.system import structure_name

if TYPE_CHECKING:
    from ase import Atoms


class Labels(NamedTuple):
    """What is known of one structure; a label that is missing is NaN throughout.

    Attributes
    ----------
    energy : eV.
    forces : (N, 3) eV/Å.
    stress : (6,) eV/Å^3, ASE's sign, Voigt order xx, yy, zz, yz, xz, xy.
    energy_weight, stress_weight : factors on the rows of this structure, 1 unless set.
    force_weight : (N, 3), likewise for every force component.
    """

    energy: float
    forces: np.ndarray
    stress: np.ndarray
    energy_weight: float
    force_weight: np.ndarray
    stress_weight: float


def labels(atoms: Atoms, index: int | None = None) -> Labels:
    """Read the labels that a structure carries; nothing is calculated.

    Each label comes from the results of `atoms.calc` where these belong to the present positions, cell and
    elements, else from info["energy"], arrays["forces"], info["stress"] or info["virial"] (-volume x stress). Where a
    calculator tells a free energy beside the energy (smeared electrons), it is that, since forces are its derivative.
    Stress and virial may be Voigt (6,) or full (3, 3); they are ignored unless all three axes are periodic.
    Weights: info["energy_weight"], info["force_weight"], info["stress_weight"] and, per atom,
    arrays["force_weight"] of shape (N,) or (N, 3).

    Parameters
    ----------
    index : of the structure in the caller's list, for the messages.

    Raises
    ------
    ValueError : no label at all, a label of the wrong shape or not finite, a weight negative or not finite.
    """
    from ase.calculators.calculator import compare_atoms
    from ase.stress import full_3x3_to_voigt_6_stress

    name, n = structure_name(atoms, index), len(atoms)

    def checked(what: str, value: Any, shapes: Sequence[tuple[int, ...]]) -> np.ndarray:
        value = np.asarray(value, dtype=np.float64)
        if value.shape not in shapes:
            wanted = " or ".join(map(str, shapes))
            raise ValueError(f"{name}: {what} has shape {value.shape}, not {wanted}; correct it or leave it out")
        if not np.isfinite(value).all():
            raise ValueError(f"{name}: {what} is NaN or infinite; label the structure again or leave it out")
        return value

    results = getattr(atoms.calc, "results", {})
    changes = compare_atoms(atoms.calc.atoms, atoms, tol=1e-8) if atoms.calc and results else []
    stale = not {"positions", "numbers", "cell", "pbc"}.isdisjoint(changes)
    if stale:
        results = {}

    def label(what: str, fallback: dict, shapes: Sequence[tuple[int, ...]]) -> np.ndarray | None:
        value = results.get(what) if results.get(what) is not None else fallback.get(what)
        return None if value is None else checked(what, value, shapes)

    tensor = [(6,), (3, 3)]
    energy = label("free_energy", {}, [()])
    if energy is None:
        energy = label("energy", atoms.info, [()])
    forces = label("forces", atoms.arrays, [(n, 3)])
    stress = None
    if atoms.pbc.all():
        stress = label("stress", atoms.info, tensor)
        if stress is None and (virial := label("virial", atoms.info, tensor)) is not None:
            stress = -virial / atoms.get_volume()
    if energy is None and forces is None and stress is None:
        raise ValueError(
            f"{name} has no energy, forces or stress"
            + (" (its calculator's results belong to other positions, cell or elements)" if stale else "")
            + "; attach them by with_labels, set info['energy'] and arrays['forces'], or leave it out"
        )
    if stress is not None and stress.shape == (3, 3):
        stress = full_3x3_to_voigt_6_stress(stress)

    def weight(what: str, values: dict, shapes: Sequence[tuple[int, ...]] = ((),)) -> np.ndarray:
        value = checked(what, values.get(what, 1.0), shapes)
        if (value < 0).any():
            raise ValueError(f"{name}: {what} is negative; set it to 0 to leave the label out")
        return value

    per_atom = weight("force_weight", atoms.arrays, [(n, 3), (n,), ()])
    per_atom = per_atom[:, None] if per_atom.ndim == 1 else per_atom
    return Labels(
        energy=np.nan if energy is None else float(energy),
        forces=np.full((n, 3), np.nan) if forces is None else forces,
        stress=np.full(6, np.nan) if stress is None else stress,
        energy_weight=float(weight("energy_weight", atoms.info)),
        force_weight=np.broadcast_to(weight("force_weight", atoms.info) * per_atom, (n, 3)),
        stress_weight=float(weight("stress_weight", atoms.info)),
    )


def with_labels(atoms: Atoms, energy: float | None = None, forces: Any = None, stress: Any = None) -> Atoms:
    """A copy of `atoms` with exactly these labels (units as in `Labels`) in a SinglePointCalculator."""
    from ase.calculators.singlepoint import SinglePointCalculator

    copy = atoms.copy()
    for key in ("energy", "forces", "stress", "virial"):
        copy.info.pop(key, None)
        copy.arrays.pop(key, None)
    copy.calc = SinglePointCalculator(copy, energy=energy, forces=forces, stress=stress)
    return copy
