"""Energies of isolated atoms: those among the data, and the prior of the others."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from haljax.structures import Neighbours, labels

if TYPE_CHECKING:
    from ase import Atoms

log = logging.getLogger(__name__)

E0_COMMON, E0_OWN = 4.0, 0.4  # eV, prior standard deviations of what all E0 have in common, and of each
E0_KNOWN = 1e-6  # eV, of an E0 that is given


def isolated(atoms: Atoms, neighbours: Neighbours) -> bool:
    """A single atom with no image of itself in reach; the primitive cell of a crystal is none."""
    return len(atoms) == 1 and bool(np.all(neighbours.index < 0))


def isolated_energies(structures: Sequence[Atoms], alone: Sequence[int]) -> dict[str, float]:
    """Energies of the isolated atoms by element, eV; ValueError where two of an element contradict each other."""
    found: dict[str, tuple[float, int]] = {}
    for i in alone:
        element, energy = structures[i].symbols[0], labels(structures[i], index=i).energy
        if not np.isfinite(energy):
            continue
        known, first = found.setdefault(element, (energy, i))
        if abs(energy - known) > 1e-3:
            raise ValueError(
                f"structures {first} and {i} are both isolated atoms of {element}, with energies {known:g} and "
                f"{energy:g} eV: remove one of them, or give e0 as a mapping"
            )
    return {element: energy for element, (energy, _) in found.items()}


def prior_of_e0(
    elements: Sequence[str], e0: str | Mapping[str, float], structures: list[Atoms], alone: list[int], used: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Centre (Z,) and factor of the covariance (Z, Z) of the prior of E0, eV."""
    if isinstance(e0, Mapping):
        if missing := [e for e in elements if e not in e0]:
            raise ValueError(f"e0 lacks {', '.join(missing)}: give an energy in eV for every element")
        if bad := [e for e in elements if not np.isfinite(e0[e])]:
            raise ValueError(f"e0 of {', '.join(bad)} is NaN or infinite: give it in eV")
        return np.array([float(e0[e]) for e in elements]), E0_KNOWN * np.eye(len(elements))
    if e0 not in ("auto", "lsq", "isolated"):
        raise ValueError(f"e0 must be 'auto', 'lsq', 'isolated' or a mapping from element to eV, not {e0!r}")
    known = {} if e0 == "lsq" else isolated_energies(structures, alone)
    if e0 == "isolated" and (missing := [e for e in elements if e not in known]):
        raise ValueError(
            f"e0='isolated' needs the energy of a single atom of {', '.join(missing)}, alone within the "
            "cutoff, among the training structures; add it, or use e0='auto' or a mapping"
        )
    counts = np.array([[np.sum(structures[i].symbols == e) for e in elements] for i in used], float)
    n_atoms = counts.sum(axis=1)
    found = [labels(structures[i]) for i in used]
    energies = np.array([label.energy if label.energy_weight > 0 else np.nan for label in found]) / n_atoms
    if not np.isfinite(energies).any() and len(known) < len(elements):
        raise ValueError("e0 needs energies, but no structure has one; give e0 as a mapping")
    absent = [e for e, column in zip(elements, counts.T, strict=True) if not column.any() and e not in known]
    if absent:
        log.warning(
            "no structure has %s: its energies are unknown, with error bars of some %g eV an atom",
            ", ".join(absent),
            E0_COMMON,
        )
    fixed = np.array([e in known for e in elements])
    centre = np.array([known.get(e, 0.0) for e in elements])
    if not fixed.all():
        # Least squares per atom; medians would do for outliers, but compositions may be many.
        here = np.isfinite(energies)
        share = counts[here] / n_atoms[here, None]
        rest = energies[here] - share @ centre
        good = np.abs(rest - np.median(rest)) <= 100 * np.median(np.abs(rest - np.median(rest))) + 100.0
        centre[~fixed] = np.linalg.lstsq(share[good][:, ~fixed], rest[good], rcond=1e-8)[0]
    own = E0_OWN + 0.25 * np.abs(centre)
    factor = np.linalg.cholesky(np.diag(own**2) + E0_COMMON**2 * np.ones((len(own), len(own))))
    factor[fixed] = 0
    factor[:, fixed] = 0
    factor[fixed, fixed] = E0_KNOWN
    if fixed.any() and not fixed.all():
        free = np.ix_(~fixed, ~fixed)
        covariance = np.diag(own[~fixed] ** 2) + E0_COMMON**2 * np.ones((np.sum(~fixed),) * 2)
        factor[free] = np.linalg.cholesky(covariance)
    return centre, factor
