from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.calculators.calculator import FileIOCalculator
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


@pytest.mark.parametrize("calculator", ["ase.calculators.emt.EMT", EMT()])
def test_threads_have_a_calculator_each(calculator):
    """Shared by eight threads, one calculator gave most structures the energy of another."""
    structures = _rattled(40)
    with ThreadPoolExecutor(8) as threads:
        labels = list(threads.map(Reference(calculator), [{"structure": encode(atoms)} for atoms in structures]))
    for atoms, label in zip(structures, labels, strict=True):
        atoms.calc = EMT()
        assert label["energy"] == pytest.approx(atoms.get_potential_energy(), rel=1e-12)


class ByFile(FileIOCalculator):
    """A program that reads a file and writes one, as DFT codes do: the energy is the sum of the coordinates."""

    implemented_properties = ["energy", "forces"]

    def __init__(self, **settings):
        super().__init__(command="sleep 0.02; cp input output", **settings)

    def write_input(self, atoms, properties=None, system_changes=None):
        super().write_input(atoms, properties, system_changes)
        np.savetxt(f"{self.directory}/input", atoms.positions)

    def read_results(self):
        positions = np.loadtxt(f"{self.directory}/output")
        self.results = {"energy": positions.sum(), "forces": np.zeros_like(positions)}


def test_labels_at_once_do_not_share_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    structures = _rattled(16)
    reference = Reference(ByFile(), folder=tmp_path / "reference")
    with ThreadPoolExecutor(4) as threads:
        labels = list(threads.map(reference, [{"structure": encode(atoms)} for atoms in structures]))
    for atoms, label in zip(structures, labels, strict=True):
        assert label["energy"] == pytest.approx(atoms.positions.sum(), rel=1e-12)
    assert [path.name for path in tmp_path.iterdir()] == ["reference"]
    Reference(ByFile(directory="mine"))({"structure": encode(structures[0])})
    assert len(list((tmp_path / "mine").glob("*/output"))) == 1


class Misbehaving(EMT):
    """EMT that does something to the atoms, or to its results, before it returns."""

    def __init__(self, change):
        super().__init__()
        self.change = change

    def calculate(self, atoms=None, properties=("energy",), system_changes=()):
        super().calculate(atoms, properties, system_changes)
        self.change(atoms, self.results)


def moves(atoms, results):
    atoms.positions[0] += [0.01, 0, 0]


def strains(atoms, results):
    atoms.set_cell(1.001 * atoms.cell.array, scale_atoms=True)


def renames(atoms, results):
    atoms.symbols[0] = "Ag"


def sorts(atoms, results):
    atoms.positions = atoms.positions[::-1].copy()


def wraps(atoms, results):
    atoms.wrap()


def puts(what, value):
    def change(atoms, results):
        results[what] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (moves, "atoms moved by up to 0.0. Å.: switch off its relaxation"),
        (sorts, "atoms moved by up to"),
        (strains, "another cell"),
        (renames, "other elements, or another order"),
        (puts("forces", [["1", "2", "3"]] * 8), "forces that is not real numbers"),
        (puts("forces", np.ones((8, 3), complex)), "forces that is not real numbers"),
        (puts("forces", None), "forces that is not real numbers"),
        (puts("free_energy", "low"), "energy that is not real numbers"),
        (puts("free_energy", 1e300), "energy of 1e[+]300, which cannot be"),
        (puts("forces", np.full((8, 3), 1e300)), "forces of 1e[+]300"),
        (puts("forces", np.ones((7, 3))), r"forces of shape \(7, 3\) instead of \(8, 3\)"),
        (puts("stress", np.full(6, 1e12)), "stress of 1e[+]12"),
    ],
)
def test_false_labels_are_refused(change, message):
    """A calculator that relaxes returns the labels of another structure; what is no number poisons a journal."""
    payload = {"structure": encode(_rattled(1)[0])}
    with pytest.raises((ValueError, TypeError), match=message):
        Reference(Misbehaving(change))(payload)
    md = {"temperature_K": 300, "frames": 1, "interval": 1, "burn_in": 1, "timestep_fs": 1.0, "seed": 5}
    with pytest.raises((ValueError, TypeError), match=message):
        Reference(Misbehaving(change))(payload | {"md": md})


def test_a_calculator_may_put_atoms_back_into_the_cell():
    atoms = _rattled(1)[0]
    atoms.positions += [5.0, -9.0, 3.0]
    label = Reference(Misbehaving(wraps))({"structure": encode(atoms)})
    atoms.calc = EMT()
    np.testing.assert_allclose(label["forces"], atoms.get_forces(), atol=1e-10)


def test_the_calculators_own_error_is_told():
    atoms = bulk("Si")
    with pytest.raises(NotImplementedError, match="No EMT-potential for Si"):
        Reference("ase.calculators.emt.EMT")({"structure": encode(atoms)})


def test_a_module_that_fails_on_import(tmp_path, monkeypatch):
    (tmp_path / "broken_reference.py").write_text("raise RuntimeError('no licence')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"'broken_reference.make' cannot be loaded \(RuntimeError: no licence\)"):
        Reference("broken_reference.make")


def test_a_slab_keeps_its_stress():
    atoms = fcc111("Cu", (1, 1, 3), vacuum=5.0)
    label = Reference("ase.calculators.emt.EMT")({"structure": encode(atoms)})
    atoms.calc = EMT()
    np.testing.assert_allclose(label["stress"], atoms.get_stress(), atol=1e-12)
    assert "stress" not in Reference("ase.calculators.emt.EMT")({"structure": encode(Atoms("Cu"))})


def _rattled(n):
    structures = [bulk("Cu", cubic=True) * (2, 1, 1) for _ in range(n)]
    for i, atoms in enumerate(structures):
        atoms.rattle(0.1, seed=i)
    return structures


def test_a_path_to_nothing():
    with pytest.raises(ValueError, match="ase.calculators.emt.MET.*cannot be loaded.*give the dotted path"):
        Reference("ase.calculators.emt.MET")
