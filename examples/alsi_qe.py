"""Al-Si by density functional theory: the reference of examples/alsi_qe.toml, and its start structures.

Quantum ESPRESSO's ``pw.x`` and the pseudopotentials come with Debian's packages quantum-espresso and
quantum-espresso-data. Run ``python examples/alsi_qe.py`` to make examples/alsi_start.xyz again.
"""

from pathlib import Path

import numpy as np
from ase.build import bulk
from ase.calculators.espresso import Espresso, EspressoProfile
from ase.io import write


def espresso(pseudo_dir: str = "/usr/share/espresso/pseudo", cutoff_Ry: float = 15.0) -> Espresso:
    """Settings for an example: LDA, a low cutoff and few k-points. Converge both before you trust the energies."""
    return Espresso(
        profile=EspressoProfile(command="pw.x", pseudo_dir=pseudo_dir),
        pseudopotentials={"Al": "Al.pz-vbc.UPF", "Si": "Si.pz-vbc.UPF"},
        kpts=(2, 2, 2),
        input_data={
            "control": {"tprnfor": True, "tstress": True, "disk_io": "none"},
            "system": {"ecutwfc": cutoff_Ry, "occupations": "smearing", "smearing": "mv", "degauss": 0.02},
            "electrons": {"conv_thr": 1e-8, "mixing_beta": 0.5},
        },
    )


def structures(n: int = 10, seed: int = 0) -> list:
    """Fcc cells of 2 x 2 x 1 cubes, 16 atoms of which up to three are silicon, strained and displaced."""
    rng = np.random.default_rng(seed)
    made = []
    for i in range(n):
        atoms = bulk("Al", "fcc", a=3.97, cubic=True) * (2, 2, 1)
        for site in rng.permutation(16)[: i % 4]:
            atoms[site].symbol = "Si"
        strain = np.eye(3) + 0.02 * rng.standard_normal((3, 3))
        atoms.set_cell(atoms.cell @ ((strain + strain.T) / 2), scale_atoms=True)
        atoms.positions += 0.08 * rng.standard_normal(atoms.positions.shape)
        made.append(atoms)
    return made


if __name__ == "__main__":
    write(Path(__file__).with_name("alsi_start.xyz"), structures(), format="extxyz")
