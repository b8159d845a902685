"""Times ace-jax in its own interpreter: MODEL STRUCTURE REPEATS [DTYPE]; see acejax.py."""

import json
import sys
import time

import jax

jax.config.update("jax_enable_x64", True)

import jax.numpy as jnp  # noqa: E402
from ace_jax import jaxmd  # noqa: E402
from ace_jax.calc import ACECalculator  # noqa: E402
from ase.io import read  # noqa: E402
from jax_md import partition, space  # noqa: E402


def median(call, repeats: int) -> dict[str, float]:
    for _ in range(2):
        call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    times = sorted(times)
    return {"median_s": times[len(times) // 2], "spread_s": times[-1] - times[0]}


def calculator(model: str, atoms, repeats: int, dtype: str) -> dict[str, float]:
    """One call of its ASE calculator for new positions."""
    atoms.calc = ACECalculator(model, dtype=dtype)

    def call():
        atoms.positions[0, 0] += 1e-4
        atoms.get_forces()
        atoms.get_stress()

    return median(call, repeats)


def adapter(model: str, atoms, repeats: int, dtype: str) -> dict[str, float]:
    """Energy, forces and stress of its jax-md adapter with a list at hand, which holds no more than the cutoff asks."""
    box = jnp.asarray(atoms.cell.array.T, dtype)
    displacement, _ = space.periodic_general(box, fractional_coordinates=False)
    R = jnp.asarray(atoms.positions, dtype)
    numbers, cutoff = jnp.asarray(atoms.numbers), jaxmd.cutoff(model)
    finder = partition.neighbor_list(displacement, box, cutoff, dr_threshold=0.0, format=partition.Dense)
    found = jaxmd.allocate(finder, R)
    capacity = jaxmd.capacity(R, found, displacement, cutoff)
    potential = jaxmd.potential(model, displacement, numbers, K=capacity, dtype=dtype)

    def energy(R, strain):
        return potential.energy(R, found, perturbation=jnp.eye(3, dtype=dtype) + strain)

    evaluate = jax.jit(jax.value_and_grad(energy, (0, 1)))

    zero = jnp.zeros((3, 3), dtype)
    return median(lambda: jax.block_until_ready(evaluate(R, zero)), repeats)


model, atoms, repeats = sys.argv[1], read(sys.argv[2]), int(sys.argv[3])
dtype = sys.argv[4] if len(sys.argv) > 4 else "float64"
result = {"calculator": calculator(model, atoms.copy(), repeats, dtype)}
if min(atoms.cell.lengths()) > 2 * jaxmd.cutoff(model):
    result["adapter"] = adapter(model, atoms, repeats, dtype)
print(json.dumps(result))
