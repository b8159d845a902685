"""The self-check of an installation."""

from __future__ import annotations

import platform
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from haljax import __version__
from haljax.cli.base import Command, words

if TYPE_CHECKING:
    from ase import Atoms


@click.command(cls=Command)
@click.pass_context
def check(context: click.Context) -> None:
    """Check the installation: versions, arithmetic, a small fit and a round of biased dynamics."""
    failed = 0
    for what, examine in _CHECKS:
        try:
            outcome = f"ok      {what}: {examine()}"
        except Exception as error:
            if context.meta.get("debug"):
                traceback.print_exc()
            failed += 1
            outcome = f"FAILED  {what}: {words(error)}"
        click.echo(outcome)
    if failed:
        click.echo(f"error: {failed} of {len(_CHECKS)} checks failed", err=True)
        context.exit(1)


def _check_versions() -> str:
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version(), "haljax": __version__}
    missing = []
    for package in ("jax", "jaxlib", "jax-md", "numpy", "scipy", "ase", "pydantic", "matplotlib"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            missing.append(package)
    if missing:
        raise RuntimeError(f"{', '.join(missing)} not installed: pip install . in the copy of haljax brings them")
    if "0.10.2" in (found["jax"], found["jaxlib"]):
        raise RuntimeError("jax 0.10.2 computes wrong numbers on CPUs: pip install 'jax>=0.10.1,!=0.10.2'")
    return ", ".join(f"{package} {number}" for package, number in found.items())


def _check_x64() -> str:
    from haljax.bayes import require_x64

    require_x64()
    return "on"


def _check_devices() -> str:
    import jax

    return ", ".join(f"{d.platform} {d.id} ({d.device_kind})" for d in jax.devices())


def _check_arithmetic() -> str:
    """jit against numpy on many rows, where jax 0.10.2 goes wrong (jax-ml/jax#39103)."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    rng = np.random.default_rng(0)
    matrix, rows = rng.normal(size=(3, 3)), rng.normal(size=(100_000, 3))
    for kind, tolerance in (("float64", 1e-12), ("float32", 1e-4)):
        m, x = matrix.astype(kind), rows.astype(kind)

        def norms(m: jax.Array, x: jax.Array) -> jax.Array:
            return jax.vmap(lambda row: jnp.sum((m @ row) ** 2))(x)

        with jax.default_matmul_precision("highest"):
            eager, jitted = norms(jnp.asarray(m), jnp.asarray(x)), jax.jit(norms)(m, x)
        exact = np.sum((x @ m.T) ** 2, axis=1)
        for name, values in (("eager", eager), ("jit", jitted)):
            wrong = ~np.isclose(np.asarray(values), exact, rtol=tolerance, atol=tolerance)
            if wrong.any():
                raise RuntimeError(
                    f"{name} computes {wrong.sum()} of {len(rows)} rows in {kind} wrong: do not use "
                    f"jax {jax.__version__} on this machine; install another version"
                )
    return f"{len(rows)} rows under jit and eagerly are right"


def _examples(n: int) -> list[Atoms]:
    """Rattled copper with EMT's labels."""
    from ase.build import bulk
    from ase.calculators.emt import EMT

    structures = []
    for seed in range(n):
        atoms = bulk("Cu", cubic=True) * (2, 1, 1)
        atoms.rattle(0.1, seed=seed)
        atoms.calc = EMT()
        atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()
        structures.append(atoms)
    return structures


def _check_fit() -> str:
    import haljax as hx

    structures = _examples(8)
    model = hx.fit(hx.ace_basis(["Cu"], cutoff=4.5, order=2, max_degree=6), structures[:6])
    error = hx.evaluate(model, structures[6:])["total"]["force_rmse"]
    if not error < 0.1:
        raise RuntimeError(f"the force error of a small fit is {error:.3g} eV/Å, far above the 0.01 expected")
    return f"force error {error:.3g} eV/Å"


def _check_campaign() -> str:
    from tempfile import TemporaryDirectory

    from ase.io import write

    from haljax.hal.campaign import HAL

    with TemporaryDirectory() as folder:
        write(start := Path(folder) / "start.xyz", _examples(4), format="extxyz")
        result = HAL(
            {
                "directory": str(Path(folder) / "run"),
                "reference": {"calculator": "ase.calculators.emt.EMT", "workers": 1},
                "start": {"structures": str(start)},
                "basis": {"elements": ["Cu"], "cutoff": 4.5, "order": 2, "max_degree": 6},
                "dynamics": {"replicas": 2, "temperature_K": 600, "n_steps": 50, "replicas_per_batch": 2},
                "labels": {"per_iteration": 1},
                "stop": {"max_iterations": 1},
            }
        ).run()
    return result.reason


_CHECKS: Sequence[tuple[str, Callable[[], str]]] = (
    ("versions", _check_versions),
    ("double precision", _check_x64),
    ("devices", _check_devices),
    ("arithmetic", _check_arithmetic),
    ("fit", _check_fit),
    ("biased dynamics and a label", _check_campaign),
)


COMMANDS = (check,)
