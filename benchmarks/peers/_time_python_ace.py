"""Times python-ace in its own interpreter: STRUCTURE ELEMENTS ORDER FUNCTIONS CUTOFF REPEATS; see pythonace.py."""

import json
import sys
import tempfile
import time

import numpy as np
from ase.io import read
from pyace import PyACECalculator, create_multispecies_basis_config
from pyace.basis import ACEBBasisSet

# The most radial functions and the largest l by order, of which pacemaker's ladder takes the first.
RADIAL, ANGULAR = (14, 8, 6, 3), (0, 6, 5, 2)


def potential(elements: list[str], order: int, functions: int, cutoff: float, path: str) -> int:
    """Write a potential of about so many functions for all elements together; how many they are."""
    config = {
        "deltaSplineBins": 0.001,
        "elements": elements,
        "embeddings": {"ALL": {"npot": "FinnisSinclairShiftedScaled", "fs_parameters": [1, 1], "ndensity": 1}},
        "bonds": {
            "ALL": {
                "radbase": "ChebExpCos", "radparameters": [5.25], "rcut": cutoff, "dcut": 0.01,
                "NameOfCutoffFunction": "cos",
            }
        },
        "functions": {
            "number_of_functions_per_element": functions // len(elements),
            "ALL": {"nradmax_by_orders": list(RADIAL[:order]), "lmax_by_orders": list(ANGULAR[:order])},
        },
    }  # fmt: skip
    basis = ACEBBasisSet(create_multispecies_basis_config(config, func_coefs_initializer="random"))
    basis.to_ACECTildeBasisSet().save_yaml(path)
    return sum(map(len, basis.basis)) + sum(map(len, basis.basis_rank1))


def median(call, repeats: int) -> float:
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return sorted(times[1:])[repeats // 2]


atoms, elements, order, functions = read(sys.argv[1]), sys.argv[2].split(","), int(sys.argv[3]), int(sys.argv[4])
cutoff, repeats = float(sys.argv[5]), int(sys.argv[6])
with tempfile.TemporaryDirectory() as folder:
    made = potential(elements, order, functions, cutoff, f"{folder}/potential.yace")
    calculator = PyACECalculator(f"{folder}/potential.yace", recursive_evaluator=True, recursive=True)  # its fastest
atoms.calc = calculator


def call():
    atoms.positions[0, 0] += 1e-4
    atoms.get_forces()
    atoms.get_stress()


found = {"functions": made, "calculator_s": median(call, repeats)}
environment = calculator.ae  # its list of neighbours
found["kernel_s"] = median(lambda: calculator.ace.compute(environment, False), repeats)
assert np.abs(atoms.get_forces()).max() > 0
print(json.dumps(found))
