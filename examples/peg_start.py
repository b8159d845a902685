"""Start structures of examples/peg_xtb.toml: PEG oligomers HO(CH2CH2O)nH, n = 2 to 4, in several conformations.

Run ``python examples/peg_start.py`` to make examples/peg_start.xyz again.
"""

from pathlib import Path

import numpy as np
from ase import Atoms
from ase.io import write

CC, CO, OH, CH, TETRAHEDRAL = 1.52, 1.43, 0.97, 1.10, np.deg2rad(109.5)


def place(a: np.ndarray, b: np.ndarray, c: np.ndarray, length: float, angle: float, dihedral: float) -> np.ndarray:
    """The point bonded to c with the given bond length, angle b-c-x and dihedral a-b-c-x."""
    axis = (c - b) / np.linalg.norm(c - b)
    normal = np.cross(b - a, axis)
    normal /= np.linalg.norm(normal)
    return c + length * (
        -np.cos(angle) * axis + np.sin(angle) * (np.cos(dihedral) * np.cross(normal, axis) + np.sin(dihedral) * normal)
    )


def oligomer(n: int, rng: np.random.Generator) -> Atoms:
    """HO(CH2CH2O)nH with backbone dihedrals near trans or gauche, drawn until no two atoms are close."""
    backbone = "O" + "CCO" * n
    while True:
        points = [np.zeros(3), np.array([CO, 0.0, 0.0])]
        points.append(place(np.array([0.0, 1.0, 0.0]), points[0], points[1], CC, TETRAHEDRAL, np.pi))
        for i in range(3, len(backbone)):
            length = CC if backbone[i - 1 : i + 1] == "CC" else CO
            turn = np.deg2rad(rng.choice([180.0, 180.0, 70.0, -70.0]) + rng.normal(0, 8))
            points.append(place(*points[i - 3 : i], length, TETRAHEDRAL, turn))
        symbols, positions = list(backbone), list(points)
        for i, symbol in enumerate(backbone):
            if symbol == "C":
                before, after = (points[j] - points[i] for j in (i - 1, i + 1))
                inward = before / np.linalg.norm(before) + after / np.linalg.norm(after)
                inward /= np.linalg.norm(inward)
                side = np.cross(before, after)
                side /= np.linalg.norm(side)
                for sign in (1, -1):
                    direction = -np.cos(TETRAHEDRAL / 2) * inward + sign * np.sin(TETRAHEDRAL / 2) * side
                    symbols.append("H")
                    positions.append(points[i] + CH * direction)
        for a, b, c in ((points[2], points[1], points[0]), (points[-3], points[-2], points[-1])):
            symbols.append("H")
            positions.append(place(a, b, c, OH, TETRAHEDRAL, np.deg2rad(rng.uniform(-180, 180))))
        atoms = Atoms(symbols, positions, info={"config_type": f"PEG{n}"})
        distances = atoms.get_all_distances() + 10 * np.eye(len(atoms))
        if np.sum(distances < 1.6) // 2 == len(atoms) - 1:  # its bonds, and nothing else that close
            atoms.positions += 0.03 * rng.standard_normal(atoms.positions.shape)
            return atoms


def structures(seed: int = 0) -> list[Atoms]:
    """Six conformations of each of the three oligomers."""
    rng = np.random.default_rng(seed)
    return [oligomer(n, rng) for n in (2, 3, 4) for _ in range(6)]


if __name__ == "__main__":
    write(Path(__file__).with_name("peg_start.xyz"), structures(), format="extxyz")
