from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from haljax.interop.icet import from_icet, read_icet
from haljax.lattice import Supercell, energy

FCC = [[0, 2.0, 2], [2, 0, 2], [2, 2, 0]]
PAIRS = [
    [[-1, 0, 1, 0], [0, 0, 0, 0]],
    [[0, 0, 0, 0], [-1, 0, 0, 0]],
    [[0, 0, 0, 0], [-1, 1, 0, 0]],
    [[0, 0, 0, 0], [0, -1, 0, 0]],
    [[0, 0, 0, 0], [0, -1, 1, 0]],
    [[0, 0, 0, 0], [0, 0, -1, 0]],
]
# the orbits of icet 4.0's ClusterSpace(bulk("Au", a=4.0), [2.9], ["Au", "Cu", "X"]), with made-up parameters
ORBITS = [
    (np.array([[[0, 0, 0, 0]]]), [([0], [[0]]), ([1], [[0]])]),
    (np.array(PAIRS), [([0, 0], [[0, 1]]), ([0, 1], [[0, 1], [1, 0]]), ([1, 1], [[0, 1]])]),
]
PARAMETERS = np.array([0.1, -0.2, 0.3, 0.4, -0.5, 0.6])


def test_energies_that_icet_gave():
    expansion = from_icet(FCC, [[0, 0, 0]], [["Au", "Cu", "X"]], ORBITS, PARAMETERS)
    assert expansion.lattice.species == (("X", "Cu", "Au"),)  # by atomic number
    assert [found.multiplicity for found in expansion.orbits] == [1, 1, 1, 6, 12, 6]
    supercell = Supercell(((2, 1, 0), (0, 2, 1), (1, 0, 1)), 1)
    occupations = np.array([[0, 1, 2, 1, 0], [2, 2, 0, 1, 1], [1, 1, 1, 0, 2]])
    predicted = [-0.04861215932167724, -0.049999999999999975, -0.0422724133595216]  # icet 4.0's predict
    np.testing.assert_allclose(energy(expansion, supercell, occupations), predicted, atol=1e-14)


def test_parameters_that_do_not_fit():
    with pytest.raises(ValueError, match="5 parameters for 6 elements"):
        from_icet(FCC, [[0, 0, 0]], [["Au", "Cu", "X"]], ORBITS, PARAMETERS[:-1])
    missing = [ORBITS[0], (np.array(PAIRS[1:]), ORBITS[1][1])]
    with pytest.raises(ValueError, match="another symmetry"):
        from_icet(FCC, [[0, 0, 0]], [["Au", "Cu", "X"]], missing, PARAMETERS)


def test_icet_is_asked_for(tmp_path):
    if importlib.util.find_spec("icet") is None:
        with pytest.raises(ImportError, match="pip install icet"):
            read_icet(tmp_path / "a.ce")
    else:
        (tmp_path / "a.ce").write_text("no archive")
        with pytest.raises(ValueError, match="not a cluster expansion of icet"):
            read_icet(tmp_path / "a.ce")


CASES = {
    "fcc ternary": ("bulk('Au', a=4.0)", [6.0, 4.5, 3.0], ["Au", "Cu", "Ag"]),
    "fcc with vacancies": ("bulk('Al', a=4.0)", [6.0, 4.5, 4.1], ["Al", "X"]),
    "two sublattices": ("bulk('MgO', 'rocksalt', a=4.2)", [5.0, 4.3], [["Mg", "Zn", "X"], ["O", "S"]]),
    "two equivalent sites": ("bulk('Ti', 'hcp', a=2.9, c=4.6)", [5.0, 4.0], [["Ti", "W", "V", "X"]] * 2),
    "a spectator": ("bulk('GaAs', 'zincblende', a=5.6)", [6.0, 5.0], [["Ga", "Al"], ["As"]]),
}


MERGED = ("fcc ternary", "fcc with vacancies", "two equivalent sites")  # where icet lets orbits 2 and 3 be merged
CHANGES = [
    (case, change) for case in CASES for change in ("", "pruned", "merged") if change != "merged" or case in MERGED
]


@pytest.mark.peers
@pytest.mark.parametrize("case, change", CHANGES)
def test_energies_equal_icets(case, change, tmp_path):
    import icet
    from ase import Atoms
    from ase.build import bulk

    make, cutoffs, symbols = CASES[case]
    space = icet.ClusterSpace(eval(make, {"bulk": bulk}), cutoffs, symbols)
    if change == "pruned":
        space.prune_orbit_list([2])
    elif change == "merged":
        space.merge_orbits({2: [3]})
    rng = np.random.default_rng(0)
    peer = icet.ClusterExpansion(space, rng.normal(size=len(space)))
    peer.write(str(tmp_path / "a.ce"))
    expansion = read_icet(tmp_path / "a.ce")
    lattice = expansion.lattice
    for matrix in (np.diag([2, 2, 3]), np.array([[2, 1, 0], [0, 2, 0], [1, 0, 2]]), np.diag([1, 1, 2])):
        supercell = Supercell(tuple(map(tuple, matrix)), lattice.n_sites)
        sites = supercell.sites()
        occupation = rng.integers(np.array(lattice.n_species)[sites[:, 3]])
        names = [lattice.species[s][k] for s, k in zip(sites[:, 3], occupation, strict=True)]
        cell = matrix.T @ np.array(lattice.cell)
        atoms = Atoms(names, positions=lattice.cartesian(sites), cell=cell, pbc=True)
        expected = peer.predict(atoms) * lattice.n_sites
        assert float(energy(expansion, supercell, occupation)) == pytest.approx(expected, abs=1e-12)
