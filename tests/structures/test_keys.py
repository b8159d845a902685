"""Names under which labels are found, and values that are most likely in another unit."""

from __future__ import annotations

import io

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.io import read, write

from haljax.structures import labels, read_structures, renamed, strange, unused, with_labels
from haljax.structures.keys import spelling


def labelled(seed=0, repeat=(1, 1, 1)):
    """A rattled and sheared crystal with EMT's labels in its calculator."""
    atoms = bulk("Cu", cubic=True).repeat(repeat)
    atoms.symbols[0] = "Pd"
    rng = np.random.default_rng(seed)
    atoms.set_cell(atoms.cell @ (np.eye(3) + 0.03 * rng.normal(size=(3, 3))), scale_atoms=True)
    atoms.rattle(0.05, seed=seed)
    atoms.calc = EMT()
    return with_labels(atoms, atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress())


def plain(atoms, **names):
    """The same without a calculator, labels under these names in info and arrays."""
    known, bare = labels(atoms), atoms.copy()
    stress = known.stress[[0, 5, 4, 5, 1, 3, 4, 3, 2]]
    for kind, name in names.items():
        if kind == "forces":
            bare.arrays[name] = known.forces
        else:
            values = {"energy": known.energy, "stress": stress, "virial": -atoms.get_volume() * stress.reshape(3, 3)}
            bare.info[name] = values[kind]
    return bare


def through_a_file(atoms):
    file = io.StringIO()
    write(file, atoms, format="extxyz")
    file.seek(0)
    return read(file, format="extxyz")


@pytest.mark.parametrize(
    "names",
    [
        {"energy": "REF_energy", "forces": "REF_forces", "stress": "REF_stress"},
        {"energy": "dft_energy", "forces": "dft_force", "virial": "dft_virial"},
        {"energy": "Energy", "forces": "forces", "virial": "virials"},
        {"energy": "TotEnergy", "forces": "force", "stress": "Stress"},
        {"energy": "energy_vasp", "forces": "DFT_PBE_forces", "virial": "REF_virials"},
    ],
    ids=lambda names: names["energy"],
)
@pytest.mark.parametrize("file", [False, True], ids=["atoms", "extxyz"])
def test_usual_spellings_are_read(names, file):
    atoms = labelled()
    bare = plain(atoms, **names)
    found, true = labels(through_a_file(bare) if file else bare), labels(atoms)
    # Eight decimals in the file.
    assert found.energy == pytest.approx(true.energy, abs=1e-7)
    np.testing.assert_allclose(found.forces, true.forces, atol=1e-7)
    np.testing.assert_allclose(found.stress, true.stress, atol=1e-7)
    assert not unused([bare])


@pytest.mark.parametrize(
    "name",
    ["energy_weight", "forces_std", "mace_energy", "formation_energy", "energies", "stresses", "config_type", "charge"],
)
def test_other_names_are_no_labels(name):
    assert spelling(name) is None


def test_what_looks_like_a_label_and_is_not_read_is_named():
    bare = plain(labelled(), energy="energy", forces="mace_forces")
    bare.info["formation_energy"] = 0.1
    bare.info["energy_weight"] = 2.0
    lines = unused([bare, bare])
    assert (
        len(lines) == 2 and "'formation_energy'] of 2 structures" in lines[0] and "forces = 'mace_forces'" in lines[1]
    )
    assert not unused([bare], {"energy": "formation_energy", "forces": "mace_forces"})


def test_names_that_a_user_gives():
    atoms = labelled()
    bare = plain(atoms, energy="mace_energy", forces="f")
    bare.info["energy"], bare.info["energy_weight"] = 7.0, 3.0
    (found,) = renamed([bare], {"energy": "mace_energy", "forces": "f"})
    true = labels(atoms)
    assert labels(found).energy == true.energy and labels(found).energy_weight == 3
    np.testing.assert_array_equal(labels(found).forces, true.forces)
    assert bare.info["energy"] == 7.0  # a copy
    with pytest.raises(ValueError, match=r"no structure has 'nn', .* its energy; there are \['energy', "):
        renamed([bare], {"energy": "nn"})
    with pytest.raises(ValueError, match="keys: force is no label; there are energy, forces, stress, virial"):
        renamed([bare], {"force": "f"})
    (empty,) = renamed([Atoms("Cu")] + [bare], {"energy": "mace_energy"})[:1]  # unlabelled ones wait for labels
    assert empty == Atoms("Cu")


def test_two_that_differ_are_refused_by_name():
    atoms = labelled()
    atoms.info["REF_energy"] = labels(atoms).energy + 0.5
    with pytest.raises(
        ValueError, match=r"structure 2 \(Cu3Pd\) has energy and REF_energy, which differ.*--energy-key"
    ):
        labels(atoms, 2)
    assert labels(atoms, keys={"energy": "REF_energy"}).energy == atoms.info["REF_energy"]
    atoms.info["REF_energy"] = atoms.get_potential_energy()
    assert labels(atoms).energy == atoms.get_potential_energy()


@pytest.mark.parametrize("sign", [1, -1])
def test_stress_and_virial_agree_or_are_refused(sign):
    bare = plain(labelled(), energy="energy", stress="stress", virial="virial")
    bare.info["virial"] = sign * bare.info["virial"]
    if sign > 0:
        np.testing.assert_allclose(labels(bare).stress, labels(labelled()).stress, rtol=1e-12)
    else:
        with pytest.raises(ValueError, match="stress and virial contradict each other"):
            labels(bare)


@pytest.mark.parametrize("quotes", ['""', "''", "[]", "{}"])
def test_six_numbers_of_a_tensor_in_a_file(tmp_path, quotes):
    atoms, path = labelled(), tmp_path / "six.xyz"
    write(path, plain(atoms, energy="energy"), format="extxyz")
    stress = labels(atoms).stress
    six = f" {quotes[0]}{' '.join(f'{x:.12f}' for x in stress)}{quotes[1]}"
    path.write_text(path.read_text().replace(" energy=", f" stress={six.strip()} energy="))
    (found,) = read_structures(path)
    np.testing.assert_allclose(labels(found).stress, stress, atol=1e-12)
    assert labels(found).energy == pytest.approx(labels(atoms).energy, abs=1e-7)


def test_no_label_says_what_is_there():
    atoms = bulk("Cu")
    atoms.info["mace_energy"] = 1.0
    with pytest.raises(ValueError, match="it has 'mace_energy', of which you can name labels by keys"):
        labels(atoms)
    atoms.info["energy"] = "minus three"
    with pytest.raises(ValueError, match="energy is not numbers"):
        labels(atoms)


# Units


def structures():
    return [labelled(seed) for seed in range(6)]


def odd(those):
    return strange(those, list(map(labels, those)))


def changed(atoms, positions=None, cell=None, **other):
    known = labels(atoms)
    new = atoms.copy()
    if cell is not None:
        new.set_cell(cell)
    if positions is not None:
        new.positions = positions
    return with_labels(new, **({"energy": known.energy, "forces": known.forces, "stress": known.stress} | other))


def close_pair(atoms):
    positions = atoms.positions.copy()
    positions[1] = positions[0] + [0.01, 0, 0]
    return changed(atoms, positions)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a: changed(a, stress=labels(a).stress / units.GPa * 10), "stresses should be in eV/Å^3; of kBar"),
        (lambda a: changed(a, forces=labels(a).forces * 1e4), "forces should be in eV/Å"),
        (lambda a: changed(a, energy=1e9), "energies should be in eV"),
        (lambda a: changed(a, energy=labels(a).energy + 27.2 * len(a)), "eV per atom from what the others have"),
        (lambda a: changed(a, a.positions / 10, a.cell / 10), "seem to be in nm"),
        (lambda a: changed(a, a.get_scaled_positions()), "seem to be fractional coordinates"),
        (close_pair, "has atoms 0 and 1 at 0.01 Å"),
    ],
    ids=["kbar", "forces", "1e9 eV", "energy", "nm", "fractional", "close"],
)
def test_what_is_in_another_unit_is_named_with_its_structure(change, words):
    those = structures()
    those[3] = change(those[3])
    (line,) = odd(those)
    assert line.startswith("structure 3 (Cu3Pd) has ") and words in line


def test_usual_structures_are_not_strange():
    """Compressed to 40 GPa, hydrogen, an isolated atom, energies of all electrons."""
    squeezed = labelled(1)
    squeezed.set_cell(0.93 * squeezed.cell.array, scale_atoms=True)
    squeezed.calc = EMT()
    squeezed.get_stress()
    alone = with_labels(Atoms("Cu"), 3.5)
    assert not odd([*structures(), squeezed, alone])
    heavy = [changed(a, energy=labels(a).energy - 45000.0 * 3 - 137000.0) for a in structures()]
    assert not odd(heavy)
    assert not odd([with_labels(molecule(name), -10.0) for name in ("H2", "H2O", "CH4", "C6H6")])
