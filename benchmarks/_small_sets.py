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
from ase.build import bulk, fcc100, fcc110, fcc111
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


def off_the_data(kind: str, number: int = 12, seed: int = 7) -> dict[str, list[Atoms]]:
    """Families of structures unlike an alloy's training set, ``number`` in each, labelled by EMT.

    Atoms are displaced as in the training set, except for dimers and isolated atoms.
    """
    x, y, fraction = ALLOYS[kind]
    rng = np.random.default_rng(seed)
    families = {
        "surfaces": _surfaces(kind, number, rng),
        "vacancies": [_vacancy(kind, rng) for _ in range(number)],
        "interstitials": [_interstitial(kind, d, rng) for d in np.linspace(0.7, 1.8, number)],
        "compressed 15 %": [_crystal(kind, fraction, rng, volume=0.85) for _ in range(number)],
        "expanded 15 %": [_crystal(kind, fraction, rng, volume=1.15) for _ in range(number)],
        "dimers": [
            Atoms(pair, [[0, 0, 0], [d, 0, 0]])
            for pair, d in zip(number * ([x, x], [x, y], [y, y]), np.linspace(0.8, 4.0, number), strict=False)
        ],
        "isolated atoms": [Atoms([x]), Atoms([y])],
        "other compositions": [
            _crystal(kind, other, rng) for other in _without_nearest(fraction, np.linspace(0, 1, number + 1))
        ],
        "three times the temperature": [
            _crystal(kind, fraction, rng, rattle=np.sqrt(3) * RATTLE) for _ in range(number)
        ],
    }
    return {name: [labelled(atoms) for atoms in structures] for name, structures in families.items()}


def _crystal(
    kind: str, fraction: float, rng: np.random.Generator, volume: float = 1.0, rattle: float = RATTLE
) -> Atoms:
    """A random fcc alloy of 32 atoms, not strained, its volume multiplied."""
    x, y, _ = ALLOYS[kind]
    lattice = (LATTICE[x] * (1 - fraction) + LATTICE[y] * fraction) * volume ** (1 / 3)
    atoms = bulk(x, "fcc", a=lattice, cubic=True).repeat((2, 2, 2))
    return _rattled(_mixed(atoms, y, fraction, rng), rattle, rng)


def _surfaces(kind: str, number: int, rng: np.random.Generator) -> list[Atoms]:
    """(100), (110) and (111) slabs in turn, some 9 Å thick, with 10 Å of vacuum on either side."""
    x, y, fraction = ALLOYS[kind]
    lattice = LATTICE[x] * (1 - fraction) + LATTICE[y] * fraction
    makers = ((fcc100, (2, 2, 6)), (fcc110, (2, 2, 8)), (fcc111, (2, 2, 5)))
    structures = []
    for i in range(number):
        make, size = makers[i % len(makers)]
        atoms = make(x, size, a=lattice, vacuum=10.0)
        atoms.pbc = True
        structures.append(_rattled(_mixed(atoms, y, fraction, rng), RATTLE, rng))
    return structures


def _vacancy(kind: str, rng: np.random.Generator) -> Atoms:
    atoms = _crystal(kind, ALLOYS[kind][2], rng)
    del atoms[rng.integers(len(atoms))]
    return atoms


def _interstitial(kind: str, distance: float, rng: np.random.Generator) -> Atoms:
    """A crystal with one more atom, which is ``distance``, Å, from its nearest neighbour."""
    x, y, fraction = ALLOYS[kind]
    atoms = _crystal(kind, fraction, rng)
    atoms += Atoms([x if rng.random() < 0.5 else y], [[0, 0, 0]])
    added = len(atoms) - 1
    while True:
        direction = rng.normal(size=3)
        host = rng.integers(added)
        atoms.positions[added] = atoms.positions[host] + distance * direction / np.linalg.norm(direction)
        others = atoms.get_distances(added, range(added), mic=True)
        if others.argmin() == host:
            return atoms


def _mixed(atoms: Atoms, element: str, fraction: float, rng: np.random.Generator) -> Atoms:
    symbols = np.array(atoms.get_chemical_symbols())
    symbols[rng.permutation(len(atoms))[: round(fraction * len(atoms))]] = element
    atoms.set_chemical_symbols(list(symbols))
    return atoms


def _rattled(atoms: Atoms, rattle: float, rng: np.random.Generator) -> Atoms:
    atoms.positions += rng.normal(size=(len(atoms), 3)) * rattle
    return atoms


def _without_nearest(fraction: float, fractions: np.ndarray) -> np.ndarray:
    """All fractions but the one nearest to that of the training set."""
    return np.delete(fractions, np.abs(fractions - fraction).argmin())
