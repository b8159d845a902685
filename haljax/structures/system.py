"""Structures as padded arrays: ASE Atoms in, ASE Atoms out, and the few shapes that they are padded to."""

from __future__ import annotations

import re
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from haljax.structures.pairs import pairs, reciprocal

if TYPE_CHECKING:
    from ase import Atoms

Array = Any  # numpy or JAX

LEAST_HEIGHT = 0.05  # Å of a periodic cell: thinner ones have more images of an atom than memory holds


class System(NamedTuple):
    """A structure, padded to N atoms; every leaf may carry leading replica axes.

    Attributes
    ----------
    positions : (N, 3) Å; padded atoms sit at the origin. Atoms need not lie inside the cell.
    species : (N,) int32, index into the basis' tuple of elements, -1 for a padded atom.
    cell : (3, 3) Å, rows are the lattice vectors (as in ASE), invertible also where an axis is not periodic.
    pbc : (3,) bool.
    """

    positions: Array
    species: Array
    cell: Array
    pbc: Array


def bucket(n: int, step: int = 8) -> int:
    """The size >= n to which n is padded: 4, 8, ..., 32, then multiples of `step` that grow by about 1.2.

    Sizes within some 20 % share a shape, so that a campaign over many sizes compiles few programs.
    """
    if n <= 32:
        return max(4, -(-n // 4) * 4)
    size = 32
    while size < n:
        size = -(-size * 6 // (5 * step)) * step
    return size


def structure_name(atoms: Atoms, index: int | None = None) -> str:
    """How errors call a structure: "structure 7 (Al4Cu4)", in a campaign "structure 7, label start-7 (Al4Cu4)"."""
    name = "structure" if index is None else f"structure {index}"
    name += f", label {atoms.info['label']}" if "label" in atoms.info else ""
    return f"{name} ({atoms.get_chemical_formula() or 'empty'})"


def fingerprint(atoms: Atoms) -> bytes:
    """The same for structures with the same atoms at the same places, to 1e-6 Å, in the same cell."""
    lengths = np.concatenate([atoms.positions.ravel(), np.ravel(atoms.cell)])
    return (np.round(lengths, 6) + 0.0).tobytes() + np.asarray(atoms.numbers, np.int64).tobytes()


def read_structures(path: Path) -> list[Atoms]:
    """All structures of a file, of any format that ASE reads.

    Raises
    ------
    ValueError : no such file, one that cannot be read, or one that holds nothing.
    """
    from ase.io import read

    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    try:
        try:
            structures = list(read(path, ":"))
        except ValueError as error:  # ASE's extended XYZ knows stress and virial as nine numbers only
            if "special 3x3" not in str(error):
                raise
            text = _VOIGT.sub(_nine_numbers, path.read_text(encoding="utf-8"))
            structures = list(read(StringIO(text), ":", format="extxyz"))
    except Exception as error:  # ASE's readers raise what they like
        raise ValueError(f"{path} cannot be read as structures ({type(error).__name__}: {error})") from error
    if not structures:
        raise ValueError(f"{path} holds no structures")
    return structures


_VOIGT = re.compile(r"""\b(stress|virial)=(["'{[])\s*((?:[-+.\deE]+[\s,]+){5}[-+.\deE]+)\s*["'}\]]""", re.IGNORECASE)


def _nine_numbers(found: re.Match[str]) -> str:
    """A tensor of six numbers (xx, yy, zz, yz, xz, xy) in full."""
    six = re.split(r"[\s,]+", found[3])
    return f'{found[1]}="{" ".join(six[k] for k in (0, 5, 4, 5, 1, 3, 4, 3, 2))}"'


def from_atoms(atoms: Atoms, elements: Sequence[str], size: int | None = None, index: int | None = None) -> System:
    """Atoms as padded float64 numpy arrays.

    Parameters
    ----------
    atoms : any cell, any mixture of periodic axes; where an axis is neither periodic nor given, a unit vector
        orthogonal to the others stands in.
    elements : the basis' elements; species are indices into it.
    size : number of slots N, `bucket(len(atoms))` where None.
    index : of the structure in the caller's list, for the messages.

    Raises
    ------
    ValueError : no atoms, more atoms than slots, an element that the basis does not know, positions or cell
        not finite, a cell without volume or nearly so, two atoms (or images) less than 0.001 Å apart.
    """
    from ase.geometry import complete_cell

    name, n = structure_name(atoms, index), len(atoms)
    if n == 0:
        raise ValueError(f"{name} has no atoms; leave it out")
    size = bucket(n) if size is None else size
    if n > size:
        raise ValueError(f"{name}: {n} atoms exceed size {size}; rerun with size >= {bucket(n)}")
    if unknown := sorted(set(atoms.symbols) - set(elements)):
        raise ValueError(
            f"{name}: {', '.join(unknown)} is not among the basis' elements ({', '.join(elements)}); "
            "build the basis with it or leave the structure out"
        )
    if bad := np.flatnonzero(~np.isfinite(atoms.positions).all(1)).tolist():
        raise ValueError(f"{name}: the positions of atoms {bad} are not finite; leave the structure out")

    given, pbc = np.array(atoms.cell, dtype=np.float64), np.array(atoms.pbc, dtype=bool)
    cell = np.asarray(complete_cell(given)) if np.isfinite(given).all() else given
    lengths = np.linalg.norm(cell, axis=1)
    # A threshold relative to the edges; written so that NaN fails too.
    if not abs(np.linalg.det(cell)) > 1e-8 * lengths.prod() or not given[pbc].any(axis=1).all():
        raise ValueError(
            f"{name}: cell {given.tolist()} with pbc {pbc.tolist()} has no volume; set a cell with three "
            "independent vectors, or pbc=False along axes that are not periodic"
        )
    height = 1 / np.linalg.norm(reciprocal(cell), axis=1)  # between opposite faces
    if np.any(height[pbc] < LEAST_HEIGHT):
        raise ValueError(
            f"{name}: opposite faces of its cell are {height[pbc].min():.2g} Å apart: correct the cell, or leave the "
            "structure out"
        )
    i, j, shift = pairs(atoms.positions, cell, pbc, 1e-3)
    if len(i):
        raise ValueError(
            f"{name}: atoms {i[0]} and {j[0]} (shifted by {shift[0].tolist()} cells) are on one place; "
            "remove one of them or leave the structure out"
        )

    positions, species = np.zeros((size, 3)), np.full(size, -1, dtype=np.int32)
    positions[:n] = atoms.positions
    species[:n] = [elements.index(symbol) for symbol in atoms.symbols]
    return System(positions, species, cell, pbc)


def to_atoms(system: System, elements: Sequence[str]) -> Atoms:
    """The one structure in `system` (no replica axis) as ASE Atoms, without the padded slots."""
    from ase import Atoms

    positions, species, cell, pbc = (np.asarray(leaf) for leaf in system)
    real = species >= 0
    # A unit vector along an axis that is not periodic is the one that `from_atoms` put in for a missing one.
    given = pbc | ~np.isclose(np.linalg.norm(cell, axis=1), 1.0)
    symbols = [elements[s] for s in species[real]]
    return Atoms(symbols, positions[real], cell=np.where(given[:, None], cell, 0.0), pbc=pbc)


def stack(systems: Sequence[System]) -> System:
    """Single systems as one batch with a leading replica axis, padded to the largest of their sizes."""
    size = max(len(s.species) for s in systems)

    def padded(s: System) -> System:
        extra = size - len(s.species)
        positions = np.pad(s.positions, [(0, extra), (0, 0)])
        return s._replace(positions=positions, species=np.pad(s.species, (0, extra), constant_values=-1))

    return System(*(np.stack(leaves) for leaves in zip(*map(padded, systems), strict=True)))
