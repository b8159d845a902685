"""python-ace as a peer: the recursive C++ evaluator of PACE potentials (10.1038/s41524-021-00559-9).

It is not on PyPI. In an environment of Python 3.11 with ``setuptools<70``, ``wheel``, ``ninja`` and ``numpy<1.27``, and
a checkout of https://github.com/ICAMS/python-ace: ``pip install --no-build-isolation .``, after adding
``-march=native`` to the flags in its CMakeLists.txt. The interpreter is then named with ``--cpp-python``.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from ase.io import write


def times(
    python: str, atoms: Any, elements: tuple, order: int, functions: int, cutoff: float, repeats: int
) -> dict[str, float]:
    """Median wall times of energy, forces and virial, with a potential of about as many functions.

    Of its ASE calculator ("calculator_s"), and of its evaluator with a list at hand ("kernel_s").
    """
    script = Path(__file__).with_name("_time_python_ace.py")
    with tempfile.TemporaryDirectory() as folder:
        write(f"{folder}/atoms.xyz", atoms, format="extxyz")
        command = [python, script, f"{folder}/atoms.xyz", ",".join(elements), order, functions, cutoff, repeats]
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
        return json.loads(done.stdout.splitlines()[-1])
