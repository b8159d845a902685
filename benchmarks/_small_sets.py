"""Small training sets and their test sets: alloys by EMT, mlearn Si and Ge, acetylacetone, a HAL campaign's labels.

A case is a kind of data with a basis. Draw `d` of a case at size `n` is the same on every machine: the seed is fixed
by `d` and `n`, or by `d` alone where structures are drawn from a file.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read
from common import DATA

SIZES = (6, 12, 20, 40, 100)
CAMPAIGN_SIZES = (12, 24, 47)
CAMPAIGN_FILE = Path(__file__).with_name("alcu_emt_labels.xyz")

# Lattice constants, Å, between which an alloy's is interpolated.
LATTICE = {"Al": 4.05, "Cu": 3.61, "Ag": 4.09, "Au": 4.08, "Ni": 3.52, "Pd": 3.89, "Pt": 3.92}
# First element, second element, fraction of the second.
ALLOYS = {
    "AlCu": ("Al", "Cu", 0.25),
    "CuAl": ("Cu", "Al", 0.25),
    "AgCu": ("Ag", "Cu", 0.5),
    "NiPd": ("Ni", "Pd", 0.5),
    "AuPt": ("Au", "Pt", 0.25),
    "AuCu": ("Cu", "Au", 0.25),
    "AlNi": ("Al", "Ni", 0.5),
}
STRAIN, RATTLE = 0.03, 0.15


class Case(NamedTuple):
    """A kind of data, and the basis that is fitted to it.

    Attributes
    ----------
    name : the kind and, where a kind has several bases, the correlation order.
    kind : a key of `ALLOYS`, "Si", "Ge", "acac" or "campaign".
    cutoff : Å.
    sizes : numbers of training structures.
    """

    name: str
    kind: str
    elements: tuple[str, ...]
    order: int
    degree: int
    cutoff: float
    sizes: tuple[int, ...] = SIZES


CASES = (
    *(Case(f"{k}-2", k, ALLOYS[k][:2], 2, 10, 5.0) for k in ALLOYS),
    *(Case(f"{k}-3", k, ALLOYS[k][:2], 3, 8, 5.0) for k in ALLOYS),
    Case("Si", "Si", ("Si",), 3, 10, 5.5),
    Case("Ge", "Ge", ("Ge",), 3, 10, 5.5),
    Case("acac", "acac", ("C", "H", "O"), 2, 8, 5.0),
    Case("campaign", "campaign", ("Al", "Cu"), 3, 8, 5.5, CAMPAIGN_SIZES),
)


def chosen(only: list[str] | None) -> list[Case]:
    """The cases whose name or kind is in ``only``; all of them for None."""
    names = {c.name for c in CASES} | {c.kind for c in CASES}
    if unknown := set(only or ()) - names:
        raise SystemExit(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(sorted(names))}")
    return [c for c in CASES if not only or c.name in only or c.kind in only]


def draws(case: Case, number: int) -> range:
    """The draws of a case: a campaign's first labels are one set."""
    return range(1 if case.kind == "campaign" else number)


def train_set(case: Case, size: int, draw: int) -> list[Atoms]:
    """``size`` labelled structures."""
    if case.kind in ALLOYS:
        return alloys(case.kind, size, seed=draw + 100 * size)
    if case.kind == "campaign":
        return _campaign("train")[:size]
    pool = _file({"acac": "acac_train_300K.xyz"}.get(case.kind, f"mlearn_{case.kind}_training.xyz"))
    order = np.random.default_rng(1000 + draw).permutation(len(pool))
    return [pool[i] for i in order[:size]]


@cache
def test_set(case: Case) -> list[Atoms]:
    """Labelled structures of the same kind, none of which is in a training set."""
    if case.kind in ALLOYS:
        return alloys(case.kind, 30, seed=99999)
    if case.kind == "campaign":
        return _campaign("test")
    if case.kind == "acac":
        return _file("acac_test_MD_300K.xyz")[::5]
    return _file(f"mlearn_{case.kind}_test.xyz")


def isolated_atoms(case: Case) -> list[Atoms]:
    """Isolated atoms with energies, which haljax takes E0 from; empty where there are none."""
    return _file("acac_isolated_atoms.xyz") if case.kind == "acac" else []


def alloys(kind: str, number: int, seed: int, strain: float = STRAIN, rattle: float = RATTLE) -> list[Atoms]:
    """Random fcc alloys of 32 atoms, strained and rattled, labelled by EMT.

    strain : standard deviation of each component of the deformation before it is made symmetric.
    rattle : standard deviation of each atom's displacement, Å.
    """
    x, y, fraction = ALLOYS[kind]
    rng = np.random.default_rng(seed)
    lattice = LATTICE[x] * (1 - fraction) + LATTICE[y] * fraction
    structures = []
    for _ in range(number):
        atoms = bulk(x, "fcc", a=lattice, cubic=True).repeat((2, 2, 2))
        symbols = np.array(atoms.get_chemical_symbols())
        symbols[rng.permutation(len(atoms))[: round(fraction * len(atoms))]] = y
        atoms.set_chemical_symbols(list(symbols))
        deformation = np.eye(3) + rng.normal(size=(3, 3)) * strain
        atoms.set_cell(atoms.cell @ ((deformation + deformation.T) / 2), scale_atoms=True)
        atoms.positions += rng.normal(size=(len(atoms), 3)) * rattle
        structures.append(labelled(atoms))
    return structures


def labelled(atoms: Atoms) -> Atoms:
    """The structure with EMT's energy, forces and, where it is periodic, stress."""
    atoms.calc = EMT()
    results = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
    if atoms.pbc.all():
        results["stress"] = atoms.get_stress()
    atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


def _campaign(role: str) -> list[Atoms]:
    return [atoms for atoms in read(CAMPAIGN_FILE, ":") if atoms.info["role"] == role]


@cache
def _file(name: str) -> list[Atoms]:
    return read(DATA / name, ":")
