from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, molecule

from haljax.structures import System, bucket, from_atoms, stack, to_atoms

ELEMENTS = ("Al", "Cu")


def test_buckets_are_few_and_close():
    sizes = [bucket(n) for n in range(1, 2000)]
    assert all(size >= n for n, size in enumerate(sizes, start=1))
    assert sizes == sorted(sizes) and [bucket(s) for s in sizes] == sizes
    assert all(size <= 1.25 * n + 8 for n, size in enumerate(sizes, start=1))
    assert len(set(sizes)) < 32
    assert [bucket(n) for n in (0, 1, 4, 5, 31, 33, 41)] == [4, 4, 4, 8, 32, 40, 48]


@pytest.mark.parametrize(
    "atoms",
    [
        bulk("Al", cubic=True),
        bulk("Cu") * (1, 2, 3),
        fcc111("Al", (2, 2, 3), vacuum=6.0),
        fcc111("Al", (2, 2, 3)),  # no third vector
        Atoms("AlCu", [[0, 0, 0], [2.5, 0, 0]]),
        Atoms("Cu", pbc=(0, 0, 1), cell=(0, 0, 2.5)),
    ],
)
def test_round_trip(atoms):
    atoms.translate([20.0, -3.0, 1.0])  # outside the cell, and stays there
    system = from_atoms(atoms, ELEMENTS)
    assert system.positions.shape == (bucket(len(atoms)), 3) and system.positions.dtype == np.float64
    assert np.all(system.species[len(atoms) :] == -1) and np.all(system.positions[len(atoms) :] == 0)
    assert abs(np.linalg.det(system.cell)) > 0
    back = to_atoms(system, ELEMENTS)
    np.testing.assert_array_equal(back.positions, atoms.positions)
    np.testing.assert_array_equal(back.numbers, atoms.numbers)
    np.testing.assert_array_equal(back.cell, atoms.cell)
    np.testing.assert_array_equal(back.pbc, atoms.pbc)


def test_species_follow_the_basis():
    assert from_atoms(Atoms("CuAl", [[0, 0, 0], [2, 0, 0]]), ELEMENTS, size=3).species.tolist() == [1, 0, -1]
    assert from_atoms(Atoms("CuAl", [[0, 0, 0], [2, 0, 0]]), ("Cu", "Al")).species.tolist() == [0, 1, -1, -1]


def test_stack_pads_to_the_largest():
    a, b = bulk("Al", cubic=True), bulk("Cu", cubic=True) * (1, 1, 3)
    batch = stack([from_atoms(a, ELEMENTS), from_atoms(b, ELEMENTS)])
    assert [leaf.shape for leaf in batch] == [(2, 12, 3), (2, 12), (2, 3, 3), (2, 3)]
    for r, atoms in enumerate((a, b)):
        back = to_atoms(System(*(leaf[r] for leaf in batch)), ELEMENTS)
        assert back.get_chemical_formula() == atoms.get_chemical_formula()
        np.testing.assert_array_equal(back.positions, atoms.positions)


def broken(**changes):
    atoms = bulk("Al", cubic=True)
    for name, value in changes.items():
        setattr(atoms, name, value)
    return atoms


nan_position = bulk("Al", cubic=True)
nan_position.positions[2, 1] = np.nan
flat = bulk("Al", cubic=True)
flat.cell[2] = flat.cell[0] + flat.cell[1]
nan_cell = bulk("Al", cubic=True)
nan_cell.cell[0, 0] = np.nan
twice = Atoms("AlCu", [[0.1, 0, 0], [0.1, 0, 4.0005]], cell=[4, 4, 4], pbc=True)  # one is the other's image


@pytest.mark.parametrize(
    ("atoms", "message"),
    [
        (molecule("H2O"), r"structure 7 \(H2O\): H, O is not among the basis' elements \(Al, Cu\)"),
        (Atoms(), "structure 7 .* has no atoms"),
        (nan_position, r"\(Al4\): the positions of atoms \[2\] are not finite"),
        (flat, "has no volume; set a cell"),
        (nan_cell, "has no volume; set a cell"),
        (Atoms("Al", pbc=True), "has no volume; set a cell"),
        (Atoms("Al", pbc=(1, 1, 0), cell=(3, 0, 0)), "has no volume; set a cell"),
        (twice, r"atoms 0 and 1 \(shifted by \[0, 0, -1\] cells\) are on one place"),
    ],
)
def test_errors(atoms, message):
    with pytest.raises(ValueError, match=message):
        from_atoms(atoms, ELEMENTS, index=7)


def test_size_too_small():
    with pytest.raises(ValueError, match=r"structure \(Al5\): 5 atoms exceed size 4; rerun with size >= 8"):
        from_atoms(Atoms("Al5", 3.0 * np.arange(5)[:, None] * np.ones(3)[None, :]), ELEMENTS, size=4)


@pytest.mark.parametrize("first_two", [([3.6, 0, 0], [3.6, 1e-6, 0]), ([1e-3, 0, 0], [0, 3.6, 0])])
def test_a_cell_with_next_to_no_volume_is_refused_at_once(first_two):
    """Its atoms have millions of images within a cutoff, and filled 12 GB."""
    cell = [*first_two, [0, 0, 3.6]]
    with pytest.raises(ValueError, match=r"structure 3 \(Cu\): opposite faces of its cell are .* Å apart"):
        from_atoms(Atoms("Cu", cell=cell, pbc=True), ["Cu"], index=3)
    assert from_atoms(Atoms("Cu", cell=cell, pbc=[False, False, True]), ["Cu"]).pbc.tolist() == [False, False, True]
