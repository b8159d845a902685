from __future__ import annotations

import copy
import json
import sys

import numpy as np
import pytest

from haljax.interop.smol import from_smol, read_smol
from haljax.lattice import Supercell, energy

SINUSOID = {"func_array": [[1.0, 1.0, 1.0], [-1.0, 0.5, 0.5], [0.0, -(0.75**0.5), 0.75**0.5]]}
UNITY, INVERSION = np.eye(4).tolist(), np.diag([-1.0, -1, -1, 1]).tolist()
OPERATIONS = [{"matrix": UNITY}, {"matrix": INVERSION}]
PAIR = {
    "site_bases": [SINUSOID] * 2,
    "structure_symops": OPERATIONS,
    "_bit_combos": [[[0, 0]], [[0, 1], [1, 0]], [[1, 1]]],
}
# what ClusterExpansion.as_dict of smol 0.5.7 holds for a triclinic cell with pairs up to 3.45 Å, as far as it is read
ENTRY = {
    "@class": "ClusterExpansion",
    "coefs": [-0.9, -0.322, -0.025, 0.084, 0.1, 0.116, 0.225, 0.522, 1.1],
    "cluster_subspace": {
        "@class": "ClusterSubspace",
        "structure": {
            "lattice": {"matrix": [[3.0, 0.2, 0.1], [0.3, 3.4, -0.2], [0.4, 0.1, 4.1]]},
            "sites": [
                {
                    "species": [
                        {"element": "Mn", "oxidation_state": 3.0, "spin": None, "occu": 0.3},
                        {"element": "Li", "oxidation_state": 1, "spin": None, "occu": 0.3},
                    ],
                    "abc": [0.0, 0.0, 0.0],
                    "label": "Li+:0.3, Mn3+:0.3",
                },
                {
                    "species": [{"element": "O", "oxidation_state": -2.0, "spin": None, "occu": 1.0}],
                    "abc": [0.5, 0.5, 0.5],
                    "label": "O2-",
                },
            ],
        },
        "orbits": {
            "1": [
                {
                    "sites": [[0.0, 0.0, 0.0]],
                    "site_bases": [SINUSOID],
                    "structure_symops": OPERATIONS,
                    "_bit_combos": [[[0]], [[1]]],
                }
            ],
            "2": [
                {"sites": [[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]], **PAIR},
                {"sites": [[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]], **PAIR},
            ],
        },
        "external_terms": [],
    },
}


def test_energies_that_smol_gave(tmp_path):
    (tmp_path / "a.mson").write_text(json.dumps({"ClusterExpansion": ENTRY, "Other": {"@class": "Composition"}}))
    expansion = read_smol(tmp_path / "a.mson")
    assert expansion.lattice.species == (("Li+", "Mn3+", "Va"), ("O2-",))
    supercell = Supercell(((2, 0, 0), (0, 1, 0), (1, 0, 2)), 2)
    occupations = np.array([[0, 1, 2, 1], [2, 2, 0, 1], [1, 1, 1, 0]])
    predicted = [-0.29548331637058733, -0.24761763627132927, -0.34334899646984535]  # smol 0.5.7's predict, normalised
    energies = energy(expansion, supercell, np.pad(occupations, ((0, 0), (0, 4))))
    np.testing.assert_allclose(energies, predicted, atol=1e-14)


def changed(path, value):
    entry = copy.deepcopy(ENTRY)
    at = entry
    for key in path[:-1]:
        at = at[key]
    if value is None:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return entry


SPACE = "cluster_subspace"


@pytest.mark.parametrize(
    "path, value, message",
    [
        ((SPACE, "external_terms"), [{"@class": "EwaldTerm"}], "external terms EwaldTerm"),
        ((SPACE, "@class"), "PottsSubspace", "PottsSubspace of smol is no expansion"),
        (("coefs",), ENTRY["coefs"][:-1], "8 coefficients, but the orbits have more"),
        (("coefs",), [*ENTRY["coefs"], 1.0], "10 coefficients for 9 functions"),
        ((SPACE, "orbits"), None, "another layout .KeyError: 'orbits'"),
        ((SPACE, "orbits", "2", 0, "structure_symops"), OPERATIONS[:1], None),  # half of the images are all of them
        ((SPACE, "orbits", "1", 0, "sites"), [[0.2, 0, 0]], "where the structure has no site"),
    ],
)
def test_entries_that_cannot_be_read(path, value, message):
    if message is None:
        assert from_smol(changed(path, value)) == from_smol(ENTRY)
        return
    with pytest.raises(ValueError, match=message):
        from_smol(changed(path, value))


def test_an_order_of_species_that_cannot_be_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "pymatgen.core.periodic_table", None)  # as where it is not installed
    with pytest.raises(ValueError, match="pip install pymatgen"):
        from_smol(changed((SPACE, "structure", "sites", 0, "label"), "cations"))


@pytest.mark.parametrize("content, message", [("not json", "is not JSON"), ('{"a": 1}', "holds no cluster expansion")])
def test_other_files(tmp_path, content, message):
    (tmp_path / "a.mson").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_smol(tmp_path / "a.mson")


THIRD = 1 / 3
PRIMITIVES = {
    "fcc ternary": (
        [[0, 2, 2], [2, 0, 2], [2, 2, 0]],
        [{"Au": THIRD, "Cu": THIRD, "Ag": THIRD}],
        [[0, 0, 0]],
        {2: 4.2, 3: 3},
    ),
    "two sublattices": (
        3 * np.eye(3),
        [{"Li+": 0.5, "Mn3+": 0.2}, {"Cl-": 0.5, "Br-": 0.5}],
        [[0, 0, 0], [0.5, 0.5, 0.5]],
        {2: 4.5, 3: 3.1},
    ),
    "spectators": (
        [[2.83, 0, 0], [1.415, 2.83 * 0.75**0.5, 0], [0, 0, 4.7]],
        [{"Li+": 0.4}, {"Co3+": 0.5, "Ni3+": 0.2, "Mn4+": 0.3}, {"O2-": 1}, {"O2-": 1}],
        [[0, 0, 0], [THIRD, THIRD, 0.5], [2 * THIRD, 2 * THIRD, 0.25], [2 * THIRD, 2 * THIRD, 0.75]],
        {2: 5.0, 3: 3.8},
    ),
}


@pytest.mark.peers
@pytest.mark.parametrize("basis", ["sinusoid", "indicator", "polynomial", "legendre", "chebyshev"])
@pytest.mark.parametrize("case", PRIMITIVES)
@pytest.mark.filterwarnings("ignore")
def test_energies_equal_smols(case, basis, tmp_path):
    from pymatgen.core import Structure
    from smol import cofe
    from smol.io import save_work

    cell, species, positions, cutoffs = PRIMITIVES[case]
    primitive = Structure(cell, species, positions)
    space = cofe.ClusterSubspace.from_cutoffs(primitive, cutoffs, basis=basis, orthonormal=basis == "polynomial")
    rng = np.random.default_rng(0)
    peer = cofe.ClusterExpansion(space, rng.normal(size=len(space)))
    save_work(str(tmp_path / "a.mson"), peer)
    expansion = read_smol(tmp_path / "a.mson")
    lattice = expansion.lattice
    for matrix in (np.diag([2, 2, 3]), np.array([[2, 1, 0], [0, 2, 0], [1, 0, 2]]), np.diag([1, 1, 2])):
        supercell = Supercell(tuple(map(tuple, matrix)), lattice.n_sites)
        sites = supercell.sites()
        occupation = rng.integers(np.array(lattice.n_species)[sites[:, 3]])
        names = [lattice.species[s][k] for s, k in zip(sites[:, 3], occupation, strict=True)]
        keep = [i for i, name in enumerate(names) if name != "Va"]
        structure = Structure(
            matrix.T @ np.array(lattice.cell),
            [names[i] for i in keep],
            lattice.cartesian(sites)[keep],
            coords_are_cartesian=True,
        )
        expected = peer.predict(structure, scmatrix=matrix.T, normalized=True)
        assert float(energy(expansion, supercell, occupation)) == pytest.approx(expected, abs=1e-12)
