"""Energy, forces and virial, in microseconds per atom, beside ace-jax and python-ace's C++.

    python benchmarks/ace_kernel.py [--case NAME] [--atoms 32 256] [--cores 1] [--dtype float64] [--peer-python PATH]
        [--cpp-python PATH]

The same structure, order, degree and cutoff on the same cores; random coefficients, since time does not depend on them.
``kernel`` is a compiled function of positions with a list at hand, what jax-md dynamics calls; ``calculator`` is a call
of the ASE calculator for new positions, which for haljax gives sigma too. ace-jax's kernel is its jax-md adapter.
python-ace, left out where no interpreter is named (see peers/pythonace.py), has a PACE basis of the same order with as
many functions, which have smaller l; it knows float64 only. Before any timing energies, forces and virial of haljax are
checked against finite differences.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import time
from pathlib import Path

os.environ.setdefault("JAX_ENABLE_X64", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np

CASES = {
    "Si order 3 degree 10": (("Si",), 3, 10, 5.5),
    "Si order 3 degree 14": (("Si",), 3, 14, 5.5),
    "Al-Cu order 2 degree 14": (("Al", "Cu"), 2, 14, 5.0),
    "Al-Cu order 3 degree 10": (("Al", "Cu"), 3, 10, 5.0),
    "C-H-O order 2 degree 10": (("C", "H", "O"), 2, 10, 4.5),
    "Si order 4 degree 10": (("Si",), 4, 10, 5.5),
}
# Silicon's cells of 8 atoms; 8192 on request, which others have published.
SIZES = {32: (2, 2, 1), 256: (4, 4, 2), 2048: (8, 8, 4), 8192: (16, 16, 4), 16384: (16, 16, 8)}


def crystal(elements: tuple[str, ...], n: int):
    """At least n atoms of a rattled crystal: silicon's, or fcc with the elements at random."""
    from ase.build import bulk

    rng = np.random.default_rng(0)
    if elements == ("Si",):
        cell, repeat = bulk("Si", cubic=True), SIZES[n]
    else:
        a = 3.9 if "Al" in elements else 3.2
        cell, repeat = bulk("Al", "fcc", a=a, cubic=True), (round((n / 4) ** (1 / 3)),) * 3
    atoms = cell * repeat
    atoms.symbols = rng.choice(elements, len(atoms))
    atoms.rattle(0.05, seed=1)
    return atoms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES)
    parser.add_argument("--atoms", type=int, nargs="*", choices=SIZES, default=(32, 256, 2048, 16384))
    parser.add_argument("--cores", type=int, default=1)
    parser.add_argument("--dtype", choices=("float64", "float32"), default="float64")
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--cpp-python")
    options = parser.parse_args()
    # Before XLA counts its threads; the peer's process inherits it.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])
    from common import row
    from peers import acejax, pythonace

    for name in [options.case] if options.case else CASES:
        elements, order, degree, cutoff = CASES[name]
        for n in options.atoms:
            atoms = crystal(elements, n)
            repeats = max(3, min(300, 30000 // n))
            result = ours(elements, order, degree, cutoff, atoms, repeats, options.dtype)
            if not options.no_peer:
                theirs = acejax.times(
                    options.peer_python, atoms, elements, order, degree, cutoff, repeats, options.dtype
                )
                for what, found in theirs.items():
                    mine = result["calculator_us" if what == "calculator" else "kernel_us"]
                    result[f"ace_jax_{what}_us"] = 1e6 * found["median_s"] / len(atoms)
                    result[f"{what}_ratio"] = result[f"ace_jax_{what}_us"] / mine
            if options.cpp_python:
                theirs = pythonace.times(
                    options.cpp_python, atoms, elements, order, result["functions"], cutoff, repeats
                )
                result["cpp_functions"] = theirs["functions"]
                for what in ("kernel", "calculator"):
                    result[f"cpp_{what}_us"] = 1e6 * theirs[f"{what}_s"] / len(atoms)
                    result[f"cpp_{what}_ratio"] = result[f"cpp_{what}_us"] / result[f"{what}_us"]
            row("ace_kernel", case=name, atoms=len(atoms), dtype=options.dtype, cores=options.cores, **result)


def ours(elements, order, degree, cutoff, atoms, repeats: int, dtype: str) -> dict[str, float]:
    """Microseconds per atom of energy, forces and virial; what compiling took; the process's largest memory so far."""
    import jax
    import jax.numpy as jnp
    from common import median_seconds
    from refit import labelled
    from step_cost import calculator_seconds, model_like

    import haljax as hx
    from haljax.potentials import Parameters, total_energy
    from haljax.structures import from_atoms, neighbour_list

    basis = hx.ace_basis(elements, cutoff, order, degree)
    rng = np.random.default_rng(0)
    mean = jnp.asarray(rng.normal(size=len(basis)) / len(basis), dtype)
    params = Parameters(jnp.zeros(basis.n_species, dtype), mean, jnp.zeros((len(basis), 0), dtype))
    system = from_atoms(atoms, basis.elements)
    found = jax.tree.map(jnp.asarray, neighbour_list(system, cutoff))
    system = jax.tree.map(lambda a: jnp.asarray(a, dtype if a.dtype == np.float64 else a.dtype), system)

    def kernel(positions, strain):
        return jax.value_and_grad(
            lambda R, s: total_energy(basis, params, system._replace(positions=R), found, s), (0, 1)
        )(positions, strain)

    R, zero = system.positions, jnp.zeros((3, 3), dtype)
    start = time.perf_counter()
    kernel = jax.jit(kernel).lower(R, zero).compile()
    compiled = time.perf_counter() - start
    if dtype == "float64":  # the parity gate
        push = jnp.asarray(rng.normal(size=R.shape))
        strain = jnp.asarray(rng.normal(size=(3, 3)))
        _, (gradient, tension) = kernel(R, zero)
        ends = [kernel(R + h * push, h * strain)[0] for h in (1e-5, -1e-5)]
        slope = float(ends[0] - ends[1]) / 2e-5
        np.testing.assert_allclose(slope, float(jnp.sum(gradient * push) + jnp.sum(tension * strain)), rtol=1e-5)
    median, spread = median_seconds(lambda: kernel(R, zero), repeats)
    per_atom = 1e6 / len(atoms)
    any_model = hx.fit(hx.ace_basis(("Al", "Cu"), 4.0, 2, 4), labelled(4, 0))
    copy = atoms.copy()
    copy.calc = hx.Calculator(model_like(any_model, basis))
    counts = {}
    if jax.default_backend() != "cpu":  # where all atoms are one block; XLA counts a loop's body once
        cost = kernel.cost_analysis()
        counts = {"flop_per_atom": cost["flops"] / len(atoms), "bytes_per_atom": cost["bytes accessed"] / len(atoms)}
    return {
        "functions": len(basis),
        "kernel_us": median * per_atom,
        "calculator_us": calculator_seconds(copy, repeats) * per_atom,  # with sigma, float64
        "spread_us": spread * per_atom,
        "compile_s": compiled,
        **counts,
        "peak_memory_MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


if __name__ == "__main__":
    main()
