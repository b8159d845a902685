from __future__ import annotations

import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from tblite.ase import TBLite

from haljax.hal.reference import Reference, decode, encode


def test_a_molecule_is_labelled_with_quantum_mechanics():
    """As in examples/peg_xtb.toml, by dotted path: the label is what ASE gets from the calculator itself."""
    atoms = molecule("CH3OH")
    reference = Reference("tblite.ase.TBLite", {"method": "GFN2-xTB", "verbosity": 0})
    label = reference({"structure": encode(atoms)})
    atoms.calc = TBLite(method="GFN2-xTB", verbosity=0)
    assert label["energy"] == pytest.approx(atoms.get_potential_energy(), rel=1e-10)
    np.testing.assert_allclose(label["forces"], atoms.get_forces(), atol=1e-6)  # its own convergence
    assert "stress" not in label and label["energy"] < -200  # eV; eight electrons of carbon and oxygen alone


def test_a_structure_survives_the_journal():
    atoms = bulk("Cu") * (2, 1, 1)
    atoms.rattle(0.1, seed=0)
    atoms.info["config_type"] = "melt"
    again = decode({"structure": encode(atoms)})
    assert again == atoms and again.info["config_type"] == "melt"


def test_frames_of_the_references_own_dynamics_repeat():
    atoms = bulk("Cu", cubic=True)
    md = {"temperature_K": 300, "frames": 3, "interval": 2, "burn_in": 1, "timestep_fs": 2.0, "seed": 5}
    first, second = (Reference(EMT())({"structure": encode(atoms), "md": md})["frames"] for _ in range(2))
    assert len(first) == 3 and first == second
    for frame in first:
        labelled = decode(frame)
        labelled.calc = EMT()
        assert frame["energy"] == pytest.approx(labelled.get_potential_energy(), rel=1e-12)


def test_a_path_to_nothing():
    with pytest.raises(ValueError, match="ase.calculators.emt.MET.*cannot be loaded.*give the dotted path"):
        Reference("ase.calculators.emt.MET")
