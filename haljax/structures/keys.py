"""Under which names a structure holds its labels, and which labels look wrong: in another unit, or not used."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from haljax.structures.pairs import pairs
from haljax.structures.system import structure_name

if TYPE_CHECKING:
    from ase import Atoms

    from haljax.structures.labels import Labels

KINDS = ("energy", "forces", "stress", "virial")
_WORDS = {
    "energy": "energy",
    "force": "forces",
    "forces": "forces",
    "stress": "stress",
    "virial": "virial",
    "virials": "virial",
}
# Words beside these that leave no doubt that a label of a reference is meant.
_OF_REFERENCE = frozenset(
    """ref reference dft qm true target label labels total tot potential free ab initio abinitio pbe pbesol scan r2scan
    lda vasp qe pw espresso cp2k castep gpaw orca siesta abinit aims fhi psi4 gaussian turbomole dftb xtb ccsd mp2
    """.split()
)
# Words with which it is no label at all.
_OTHERS = frozenset(
    "weight weights std stds sigma error errors unit units uncertainty kinetic type key per max min constant".split()
)

# Beyond these a label or a position is most likely in another unit.
LARGE_STRESS = 1.0  # eV/Å^3, 160 GPa
LARGE_FORCE = 1e3  # eV/Å
LARGE_ENERGY = 1e6  # eV per atom: more than all electrons of the heaviest atoms have
STRANGE_ENERGY = 20.0  # eV per atom from what the other structures have
CLOSE = 0.4  # of the sum of the covalent radii


def spelling(name: str) -> str | None:
    """Which of `KINDS` a name in ``info`` or ``arrays`` stands for without doubt; None otherwise."""
    words = _words(name)
    kinds = [_WORDS[word] for word in words if word in _WORDS]
    return kinds[0] if len(kinds) == 1 and set(words) - set(_WORDS) <= _OF_REFERENCE else None


def _words(name: str) -> list[str]:
    """REF_energy, dftEnergy, "DFT forces" in lower-case words."""
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    return [word for word in re.split(r"[^0-9A-Za-z]+", apart.lower()) if word]


def _looks_like_a_label(name: str) -> bool:
    words = set(_words(name))
    return bool(words & set(_WORDS)) and not words & _OTHERS


def checked_keys(keys: Mapping[str, str] | None) -> dict[str, str]:
    """Names of labels that a user gave; ValueError where one is of no known kind."""
    keys = dict(keys or {})
    if unknown := sorted(set(keys) - set(KINDS)):
        raise ValueError(f"keys: {', '.join(unknown)} is no label; there are {', '.join(KINDS)}")
    if bad := [kind for kind, name in keys.items() if not isinstance(name, str) or not name]:
        raise ValueError(f"keys: give the name of {', '.join(bad)} in info or arrays, such as 'REF_{bad[0]}'")
    return keys


def candidates(
    atoms: Atoms, results: Mapping[str, Any], keys: Mapping[str, str] | None = None
) -> dict[str, list[tuple[str, Any]]]:
    """Names and values of every kind of label that a structure holds.

    Parameters
    ----------
    results : of its calculator, where they belong to the present positions.
    keys : kind of label -> its name; for these kinds no other name counts.
    """
    keys = keys or {}
    found: dict[str, list[tuple[str, Any]]] = {}
    for kind in KINDS:
        own = atoms.arrays if kind == "forces" else atoms.info
        found[kind] = [
            (name, value)
            for values in (results, own)
            for name, value in values.items()
            if value is not None and (name == keys[kind] if kind in keys else spelling(str(name)) == kind)
        ]
    return found


def unused(structures: Sequence[Atoms], keys: Mapping[str, str] | None = None) -> list[str]:
    """What looks like a label of these structures and is none that is read: a line for each name."""
    count: dict[tuple[str, str], int] = {}
    for atoms in structures:
        for where, values in (("info", atoms.info), ("arrays", atoms.arrays)):
            for name in map(str, values):
                read = {"info": ("energy", "stress", "virial"), "arrays": ("forces",)}[where]
                if _looks_like_a_label(name) and spelling(name) not in read and name not in (keys or {}).values():
                    count[where, name] = count.get((where, name), 0) + 1
    return [
        f"{where}[{name!r}] of {n} structures looks like a label and is not read: if it is one, say of what, as in "
        f"keys = {{{_words_to_kind(name)} = {name!r}}}"
        for (where, name), n in count.items()
    ]


def _words_to_kind(name: str) -> str:
    return next(_WORDS[word] for word in _words(name) if word in _WORDS)


def strange(structures: Sequence[Atoms], known: Sequence[Labels], index: Sequence[int] | None = None) -> list[str]:
    """What is most likely in another unit, a line for each kind of fault, with the first structure that has it.

    Parameters
    ----------
    known : the labels of each. index : of each in the caller's list.
    """

    faults: dict[str, list[tuple[int, str]]] = {}

    def found(what: str, i: int, detail: str) -> None:
        faults.setdefault(what, []).append((i, detail))

    for i, (atoms, label) in enumerate(zip(structures, known, strict=True)):
        if np.isfinite(label.stress).all() and (largest := np.abs(label.stress).max()) > LARGE_STRESS:
            found(
                "stresses should be in eV/Å^3; of kBar divide by 1602.18, of GPa by 160.218", i,
                f"has a stress of {largest:.3g}, which would be {160.218 * largest:.3g} GPa",
            )  # fmt: skip
        if np.isfinite(label.forces).all() and (largest := np.abs(label.forces).max()) > LARGE_FORCE:
            found("forces should be in eV/Å; those of Hartree/Bohr times 51.422", i, f"has a force of {largest:.3g}")
        if abs(label.energy) > LARGE_ENERGY * len(atoms):
            found("energies should be in eV, of the whole structure", i, f"has an energy of {label.energy:.6g}")
        if close := _close(atoms):
            found(*(close[0], i, close[1]))
    for i, off in _strange_energies(structures, [label.energy for label in known]):
        found(
            "energies should all be in eV, of the whole structure, by one method", i,
            f"has an energy {off:.3g} eV per atom from what the others have",
        )  # fmt: skip
    lines = []
    for advice, those in faults.items():
        i, detail = those[0]
        more = f" ({len(those) - 1} others too)" if len(those) > 1 else ""
        lines.append(f"{structure_name(structures[i], i if index is None else index[i])} {detail}{more}: {advice}")
    return lines


def _close(atoms: Atoms) -> tuple[str, str] | None:
    """Advice and detail where atoms are closer than any bond."""
    from ase.data import covalent_radii
    from ase.geometry import complete_cell

    radii = covalent_radii[atoms.numbers]
    cell, pbc = np.asarray(complete_cell(np.array(atoms.cell))), np.array(atoms.pbc)

    def nearest(positions: np.ndarray, cell: np.ndarray, reach: float) -> tuple[np.ndarray, tuple[int, int, float]]:
        """Of each atom the least distance over the sum of the radii, up to ``reach``; the closest pair."""
        i, j, shift = pairs(positions, cell, pbc, float(2 * reach * radii.max()))
        least = np.full(len(atoms), np.inf)
        if not len(i):
            return least, (0, 0, np.inf)
        d = np.linalg.norm(positions[j] - positions[i] + shift @ cell, axis=1)
        ratio = d / (radii[i] + radii[j])
        np.minimum.at(least, i, ratio)
        k = int(np.argmin(ratio))
        return least, (int(i[k]), int(j[k]), float(d[k]))

    least, (a, b, d) = nearest(atoms.positions, cell, CLOSE)
    if not least.min() < CLOSE:
        return None
    detail = f"has atoms {a} and {b} at {d:.2g} Å"

    def plausible(positions: np.ndarray, cell: np.ndarray) -> bool:
        ratio = nearest(positions, cell, 2.0)[0]
        return bool(ratio.min() > 0.55 and np.median(ratio) < 2)

    if np.median(least) < CLOSE:  # not one pair but most of the atoms
        if plausible(10 * atoms.positions, 10 * cell):
            return "lengths should be in Å; these seem to be in nm", detail
        inside = np.all((atoms.positions > -1) & (atoms.positions < 2))
        if inside and pbc.any() and plausible(atoms.positions @ cell, cell):
            return "positions should be in Å; these seem to be fractional coordinates", detail
    return "no bond is as short: look for a mistake in the positions or the cell", detail


def _strange_energies(structures: Sequence[Atoms], energies: Sequence[float]) -> list[tuple[int, float]]:
    """Structures whose energy per atom is far from what their composition has in the others: index, eV per atom."""
    n = np.array([len(atoms) for atoms in structures])
    each = np.asarray(energies) / n
    here = np.flatnonzero(np.isfinite(each) & (np.abs(each) < LARGE_ENERGY))
    if len(here) < 4:
        return []
    elements = sorted({int(z) for atoms in structures for z in atoms.numbers})
    share = np.array([[np.mean(structures[i].numbers == z) for z in elements] for i in here.tolist()])
    good = np.ones(len(here), bool)
    for _ in range(3):  # one that is far off pulls the others with it
        rest = each[here] - share @ np.linalg.lstsq(share[good], each[here][good], rcond=1e-8)[0]
        off = np.abs(rest - np.median(rest[good]))
        good = off <= max(STRANGE_ENERGY, 30 * float(np.median(off)))
        if good.sum() < 3:
            return []
    return [(i, x) for i, x, fine in zip(here.tolist(), rest.tolist(), good, strict=True) if not fine]
