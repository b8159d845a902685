"""Reference energies, forces and stresses of ASE Atoms, and their weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from haljax.structures.keys import candidates, checked_keys, spelling
from haljax.structures.system import structure_name

if TYPE_CHECKING:
    from ase import Atoms


LARGEST = 1e15  # in any unit; larger ones make a fit overflow


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


def labels(atoms: Atoms, index: int | None = None, keys: Mapping[str, str] | None = None) -> Labels:
    """Read the labels that a structure carries; nothing is calculated.

    Each label comes from the results of `atoms.calc` where these belong to the present positions, cell and
    elements, and from info or, for forces, arrays, under the names energy, forces, stress and virial (-volume x stress)
    or a usual spelling of them: REF_energy, dft_forces, Energy, virials. Where a calculator tells a free energy beside
    the energy (smeared electrons), it is that, since forces are its derivative. Stress and virial may be Voigt (6,),
    full (3, 3) or (9,); they need a cell with volume that is periodic along an axis.
    Weights: info["energy_weight"], info["force_weight"], info["stress_weight"] and, per atom,
    arrays["force_weight"] of shape (N,) or (N, 3).

    Parameters
    ----------
    index : of the structure in the caller's list, for the messages.
    keys : names to read instead, such as {"energy": "xtb_energy"}; of energy, forces, stress and virial.

    Raises
    ------
    ValueError : no label at all, two of a kind that contradict each other, a label of the wrong shape or not finite, a
        weight negative or not finite.
    """
    from ase.calculators.calculator import compare_atoms

    name, n = structure_name(atoms, index), len(atoms)

    def checked(what: str, value: Any, shapes: Sequence[tuple[int, ...]]) -> np.ndarray:
        try:
            value = np.asarray(value, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name}: {what} is not numbers ({error}); correct it or leave it out") from error
        if value.shape not in shapes:
            wanted = " or ".join(map(str, shapes))
            raise ValueError(f"{name}: {what} has shape {value.shape}, not {wanted}; correct it or leave it out")
        if not np.isfinite(value).all():
            raise ValueError(f"{name}: {what} is NaN or infinite; label the structure again or leave it out")
        if np.any(np.abs(value) > LARGEST):
            raise ValueError(
                f"{name}: {what} of {np.abs(value).max():.3g} cannot be; label the structure again or leave it out"
            )
        return value

    results = getattr(atoms.calc, "results", {})
    changes = compare_atoms(atoms.calc.atoms, atoms, tol=1e-8) if atoms.calc and results else []
    stale = not {"positions", "numbers", "cell", "pbc"}.isdisjoint(changes)
    found = candidates(atoms, {} if stale else results, keys)

    def label(kind: str, shapes: Sequence[tuple[int, ...]]) -> np.ndarray | None:
        held = [(what, checked(what, value, shapes)) for what, value in found[kind]]
        if kind == "energy" and "energy" not in (keys or {}):  # beside a free energy others are of another kind
            held = [pair for pair in held if pair[0] == "free_energy"] or held
        if kind in ("stress", "virial"):
            held = [(what, _voigt(value)) for what, value in held]
        if not held:
            return None
        (first, value), *others = held
        for what, other in others:
            if not np.allclose(value, other, rtol=1e-5, atol=1e-5):
                raise ValueError(
                    f"{name} has {first} and {what}, which differ: say which one is meant, as in "
                    f"keys = {{{kind} = '{what}'}} (--{kind}-key {what}), or remove one of them"
                )
        return value

    energy, forces = label("energy", [()]), label("forces", [(n, 3)])
    stress, virial = (label(kind, [(6,), (3, 3), (9,)]) for kind in ("stress", "virial"))
    volume = abs(np.linalg.det(np.array(atoms.cell)))
    if not (volume > 0 and atoms.pbc.any()):
        stress = virial = None
    if virial is not None:
        other = -virial / volume
        if stress is not None and np.abs(stress - other).max() > 0.01 * np.abs(stress).max() + 1e-5:
            worst = int(np.argmax(np.abs(stress - other)))
            raise ValueError(
                f"{name}: stress and virial contradict each other ({stress[worst]:.4g} eV/Å^3, and {other[worst]:.4g} "
                "from -virial / volume): correct or remove one of them"
            )
        stress = other if stress is None else stress
    if energy is None and forces is None and stress is None:
        names = ", ".join(map(repr, [*atoms.info, *(k for k in atoms.arrays if k not in ("numbers", "positions"))]))
        raise ValueError(
            f"{name} has no energy, forces or stress"
            + (" (its calculator's results belong to other positions, cell or elements)" if stale else "")
            + (f"; it has {names}, of which you can name labels by keys" if names else "")
            + "; attach them by with_labels, set info['energy'] and arrays['forces'], or leave it out"
        )

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


def _voigt(value: np.ndarray) -> np.ndarray:
    from ase.stress import full_3x3_to_voigt_6_stress

    return value if value.shape == (6,) else full_3x3_to_voigt_6_stress(value.reshape(3, 3))


def renamed(structures: Sequence[Atoms], keys: Mapping[str, str] | None) -> list[Atoms]:
    """Copies with the labels of these names under the usual ones; the structures themselves where there are no names.

    Raises
    ------
    ValueError : a name that no structure has, or what `labels` refuses.
    """
    keys = checked_keys(keys)
    if not keys:
        return list(structures)
    for kind, name in keys.items():
        held = [atoms.arrays if kind == "forces" else atoms.info for atoms in structures]
        results = [getattr(atoms.calc, "results", {}) for atoms in structures]
        if not any(name in values for values in (*held, *results)):
            there = sorted({str(k) for values in held for k in values} - {"numbers", "positions"})
            raise ValueError(f"no structure has {name!r}, the name given for its {kind}; there are {there}")
    out = []
    for i, atoms in enumerate(structures):
        if not any(candidates(atoms, getattr(atoms.calc, "results", {}), keys).values()):
            out.append(atoms.copy())  # unlabelled
            continue
        known = labels(atoms, i, keys)
        out.append(
            with_labels(
                atoms,
                energy=known.energy if np.isfinite(known.energy) else None,
                forces=known.forces if np.isfinite(known.forces).all() else None,
                stress=known.stress if np.isfinite(known.stress).all() else None,
            )
        )
    return out


def with_labels(atoms: Atoms, energy: float | None = None, forces: Any = None, stress: Any = None) -> Atoms:
    """A copy of `atoms` with exactly these labels (units as in `Labels`) in a SinglePointCalculator."""
    from ase.calculators.singlepoint import SinglePointCalculator

    copy = atoms.copy()
    for values, kinds in ((copy.info, ("energy", "stress", "virial")), (copy.arrays, ("forces",))):
        for name in [name for name in values if spelling(str(name)) in kinds]:
            del values[name]
    copy.calc = SinglePointCalculator(copy, energy=energy, forces=forces, stress=stress)
    return copy
