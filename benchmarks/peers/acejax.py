"""ace-jax as a peer: fits through its command line, calculator timings through its ASE calculator.

Install it beside haljax (``pip install ace-jax==0.4.1``) or in an environment of its own, whose interpreter is then
named with ``--peer-python``.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from _scores import Prediction
from ase.io import read, write

# Its table of bond lengths has no hydrogen, and its command line no way to give one: that of H2.
_MAIN = """
from ace_jax.basis import radial_init
from ace_jax.cli import main
radial_init.BOND_LEN.setdefault(1, 0.74)
main()
"""
# Its command line computes the stds of its test structures and writes only summaries of them. The layout "run", which
# its own study scripts use, writes the arrays.
_MAIN_WITH_ARRAYS = f"""
from ace_jax.fit import pipeline
write = pipeline.write_outputs
pipeline.write_outputs = lambda result, out, **kw: write(result, out, **dict(kw, layout=("run", "cli")))
{_MAIN}"""


def _run(python: str, *arguments: str, main: str = _MAIN) -> None:
    command = [python, "-c", main, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} failed:\n{done.stderr[-2000:]}")


def fit(
    python: str, train: list, test: list, elements: tuple, order: int, degree: int, cutoff: float, *extra: str
) -> tuple[list, float]:
    """Predictions (energies, forces) for ``test`` and the wall time of the fit, its start and compilation included.

    Labels go in as ``dft_energy`` and ``dft_forces``, since its reader takes no calculator's results.
    """
    with tempfile.TemporaryDirectory() as folder:
        for name, structures in (("train", train), ("test", test)):
            write(f"{folder}/{name}.xyz", [_plain(atoms) for atoms in structures], format="extxyz")
        keys = ["--energy-key", "dft_energy", "--force-key", "dft_forces"]
        basis = ["--elements", ",".join(elements), "--order", str(order), "--max-degree", str(degree)]
        start = time.perf_counter()
        _run(
            python, "fit", "--train", f"{folder}/train.xyz", "--test", f"{folder}/test.xyz", *basis,
            "--rcut", str(cutoff), *keys, "--out", f"{folder}/out", *extra,
        )  # fmt: skip
        seconds = time.perf_counter() - start
        (model,) = Path(f"{folder}/out").glob("*model.npz")
        _run(python, "eval", "--model", str(model), "--data", f"{folder}/test.xyz", *keys, "--out", f"{folder}/p.xyz")
        return read(f"{folder}/p.xyz", ":"), seconds


class Fitted(NamedTuple):
    """A fit's predictions with stds, and the number of its functions.

    Attributes
    ----------
    test, other : predictions; stds are those of the model alone, or what ``--uq pops`` gives. None: no structures.
    noise, other_noise : stds of the learned noise of their energies (n,), eV, and forces (N, 3), eV/Å.
    """

    functions: int
    test: Prediction
    noise: tuple[np.ndarray, np.ndarray]
    other: Prediction | None
    other_noise: tuple[np.ndarray, np.ndarray] | None


def fit_with_stds(
    python: str,
    train: list,
    test: list,
    other: list,
    elements: tuple,
    order: int,
    degree: int,
    cutoff: float,
    *extra: str,
) -> Fitted:
    """A fit with predictions for ``test`` and for ``other`` structures (may be empty).

    Stresses of training structures that have them are labels too.
    """
    with tempfile.TemporaryDirectory() as folder:
        sets = {"train": train, "test": test} | ({"ood": other} if other else {})
        files = []
        for name, structures in sets.items():
            write(f"{folder}/{name}.xyz", [_plain(atoms, stress=True) for atoms in structures], format="extxyz")
            files += [f"--{name}", f"{folder}/{name}.xyz"]
        keys = ["--energy-key", "dft_energy", "--force-key", "dft_forces", "--stress-key", "dft_stress"]
        basis = ["--elements", ",".join(elements), "--order", str(order), "--max-degree", str(degree)]
        out = Path(folder) / "out"
        _run(
            python, "fit", *files, *basis, "--rcut", str(cutoff), *keys, "--out", str(out), "--no-save-model",
            "--e0", "lsq", *extra, main=_MAIN_WITH_ARRAYS,
        )  # fmt: skip
        functions = json.loads((out / "config.json").read_text())["len_basis"]
        tested = _prediction(out / "pred_test_map.npz")
        return Fitted(functions, *tested, *(_prediction(out / "pred_ood_map.npz") if other else (None, None)))


def _prediction(path: Path) -> tuple[Prediction, tuple[np.ndarray, np.ndarray]]:
    with np.load(path) as data:
        noise = np.sqrt(data["noise_E"]), np.sqrt(data["noise_F"])[:, None] * np.ones(3)
        return Prediction(data["E_mean"], data["F_mean"], np.sqrt(data["E_var"]), np.sqrt(data["F_var"])), noise


def functions(python: str, elements: tuple, order: int, degree: int, cutoff: float) -> int:
    """The number of functions of a basis, as `fit` makes it: E0 not counted."""
    with tempfile.TemporaryDirectory() as folder:
        _run(
            python, "basis", "--elements", ",".join(elements), "--order", str(order), "--max-degree", str(degree),
            "--rcut", str(cutoff), "--out", f"{folder}/basis.npz",
        )  # fmt: skip
        with np.load(f"{folder}/basis.npz") as data:
            return len(data["gamma"])


def nearest_degree(python: str, size: int, elements: tuple, order: int, degree: int, cutoff: float) -> tuple[int, int]:
    """The degree, and its number of functions, at which ace-jax's basis has the nearest to ``size`` functions.

    ``degree`` is where the search starts.
    """
    found = {degree: functions(python, elements, order, degree, cutoff)}
    step = -1 if found[degree] > size else 1
    while step * (size - found[degree]) > 0 and degree > 1:
        degree += step
        found[degree] = functions(python, elements, order, degree, cutoff)
    best = min(found, key=lambda d: abs(found[d] - size))
    return best, found[best]


def _plain(atoms: Any, stress: bool = False) -> Any:
    copy = atoms.copy()
    copy.info = {}
    if stress and "stress" in atoms.calc.results:
        copy.info["dft_stress"] = atoms.get_stress()
    copy.info["dft_energy"] = atoms.get_potential_energy()
    copy.arrays["dft_forces"] = atoms.get_forces()
    return copy


def times(
    python: str,
    atoms: Any,
    elements: tuple,
    order: int,
    degree: int,
    cutoff: float,
    repeats: int,
    dtype: str = "float64",
) -> dict[str, dict[str, float]]:
    """Median and spread of the wall time of energy, forces and stress, with a basis of the same size.

    Of its ASE "calculator", and of its jax-md "adapter" where the cell is large enough for that.
    """
    script = Path(__file__).with_name("_time_ace_jax.py")
    with tempfile.TemporaryDirectory() as folder:
        write(f"{folder}/atoms.xyz", atoms, format="extxyz")
        _run(
            python, "basis", "--elements", ",".join(elements), "--order", str(order), "--max-degree", str(degree),
            "--rcut", str(cutoff), "--out", f"{folder}/basis.npz",
        )  # fmt: skip
        command = [python, str(script), f"{folder}/basis.npz", f"{folder}/atoms.xyz", str(repeats), dtype]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
        return json.loads(done.stdout.splitlines()[-1])
