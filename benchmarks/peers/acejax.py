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
from typing import Any

from ase.io import read, write

# Its table of bond lengths has no hydrogen, and its command line no way to give one: that of H2.
_MAIN = """
from ace_jax.basis import radial_init
from ace_jax.cli import main
radial_init.BOND_LEN.setdefault(1, 0.74)
main()
"""


def _run(python: str, *arguments: str) -> None:
    command = [python, "-c", _MAIN, *arguments]
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


def _plain(atoms: Any) -> Any:
    copy = atoms.copy()
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
