"""Errors of a model on labelled structures, and the calibration of its uncertainty."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from haljax.ace import ACEBasis
from haljax.bayes import calibration, coverage
from haljax.model import Model
from haljax.potentials import VOIGT, Parameters, parameters_of, sigma_of, total_energy
from haljax.structures import Neighbours, System, labels
from haljax.structures.system import structure_name
from haljax.training import design_rows, examples

if TYPE_CHECKING:
    from ase import Atoms

LEVELS = (0.5, 0.68, 0.9, 0.95)


class Prediction(NamedTuple):
    """What a model says of one structure and what its labels say (NaN where missing).

    Attributes
    ----------
    group : its ``info["config_type"]``, or "all".
    energy, energy_label, energy_std : () eV per atom.
    forces, forces_label : (N, 3) eV/Å.
    stress, stress_label : (6,) GPa, ASE's sign.
    """

    group: str
    energy: float
    energy_label: float
    energy_std: float
    forces: np.ndarray
    forces_label: np.ndarray
    stress: np.ndarray
    stress_label: np.ndarray


@dataclass(frozen=True)
class ErrorTable:
    """RMSE and MAE by group of structures; ``str()`` is a table.

    Attributes
    ----------
    rows : group -> {"structures", "energy_rmse", "energy_mae" (meV/atom), "force_rmse", "force_mae" (eV/Å,
        per component), "stress_rmse", "stress_mae" (GPa)}; the last row, "total", is over all. NaN: no such
        labels. Where there is one group only, the total is the only row.
    """

    rows: dict[str, dict[str, float]]

    def __getitem__(self, group: str) -> dict[str, float]:
        return self.rows[group]

    def __str__(self) -> str:
        width = max(len(group) for group in self.rows) + 2
        columns = [(what, kind) for what in ("energy", "force", "stress") for kind in ("rmse", "mae")]
        names = "".join(f"{what[0].upper()} {kind.upper()}".rjust(10) for what, kind in columns)
        units = "".join(unit.rjust(10) * 2 for unit in ("meV/atom", "eV/Å", "GPa"))
        head, unit = f"{'':{width}}{'n':>6}{names}", f"{'':{width}}{'':>6}{units}"
        body = []
        for group, row in self.rows.items():
            numbers = [row[f"{what}_{kind}"] for what, kind in columns]
            cells = "".join(f"{'-':>10}" if np.isnan(x) else f"{x:>10.4g}" for x in numbers)
            body.append(f"{group:{width}}{int(row['structures']):>6}{cells}")
        return "\n".join([head, unit, *body])


def evaluate(model: Model, test: Sequence[Atoms]) -> ErrorTable:
    """Errors of ``model`` on labelled structures, grouped by ``info["config_type"]``.

    Raises
    ------
    ValueError : no structures, or one without labels.
    """
    return error_table(predict(model, test))


def error_table(predictions: Sequence[Prediction]) -> ErrorTable:
    """Errors of predictions already made."""
    groups: dict[str, list[Prediction]] = {}
    for p in predictions:
        groups.setdefault(p.group, []).append(p)
    if len(groups) == 1:
        groups = {}
    rows = {name: _errors(members) for name, members in sorted(groups.items())}
    return ErrorTable(rows | {"total": _errors(predictions)})


def _errors(members: Sequence[Prediction]) -> dict[str, float]:
    row: dict[str, float] = {"structures": len(members)}
    for what, factor, pairs in (
        ("energy", 1e3, [(p.energy, p.energy_label) for p in members]),
        ("force", 1.0, [(p.forces, p.forces_label) for p in members]),
        ("stress", 1.0, [(p.stress, p.stress_label) for p in members]),
    ):
        error = np.concatenate([np.ravel(a - b) for a, b in pairs]) * factor
        error = error[np.isfinite(error)]
        row[f"{what}_rmse"] = float(np.sqrt(np.mean(error**2))) if len(error) else np.nan
        row[f"{what}_mae"] = float(np.mean(np.abs(error))) if len(error) else np.nan
    return row


class Evaluation(NamedTuple):
    """Energy and its first derivatives of one system.

    Attributes
    ----------
    energy, sigma : () eV; sigma is the posterior standard deviation of the energy, not calibrated.
    forces : (N, 3) eV/Å.
    virial : (6,) eV, Voigt xx, yy, zz, yz, xz, xy; -dE/d(strain).
    """

    energy: np.ndarray
    sigma: np.ndarray
    forces: np.ndarray
    virial: np.ndarray


@partial(jax.jit, static_argnums=0)
def _evaluate(
    basis: ACEBasis, params: Parameters, system: System, neighbours: Neighbours
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Energy, sigma, and the gradients of the energy in positions (N, 3) and strain (3, 3)."""

    def total(mean: jax.Array, positions: jax.Array, strain: jax.Array) -> jax.Array:
        return total_energy(basis, params._replace(mean=mean), system._replace(positions=positions), neighbours, strain)

    value, (features, gradient, tension) = jax.value_and_grad(total, argnums=(0, 1, 2))(
        params.mean, system.positions, jnp.zeros((3, 3), system.positions.dtype)
    )
    return value, sigma_of(params, features), gradient, tension


def evaluate_one(
    model: Model, system: System, neighbours: Neighbours, parameters: Parameters | None = None
) -> Evaluation:
    """Energy, sigma, forces and virial of one system, in numpy; ``parameters`` where they are the model's, at hand."""
    found = _evaluate(model.basis, parameters or parameters_of(model), system, neighbours)
    energy, sigma, gradient, tension = map(np.asarray, found)
    return Evaluation(energy, sigma, -gradient, -((tension + tension.T) / 2)[VOIGT])


def predict(model: Model, structures: Sequence[Atoms]) -> list[Prediction]:
    """Predictions and labels of labelled structures.

    Raises
    ------
    ValueError : no structures, one without labels, or a prediction that is not finite.
    """
    from ase.units import GPa

    structures = list(structures)
    if not structures:
        raise ValueError("there is nothing to evaluate: give at least one labelled structure")
    out = []
    known = [labels(atoms, index=i) for i, atoms in enumerate(structures)]
    for i, (atoms, label, example) in enumerate(zip(structures, known, examples(model.basis, structures), strict=True)):
        result = evaluate_one(model, *example)
        if not np.isfinite(result.energy) or not np.isfinite(result.forces).all():
            raise ValueError(f"{structure_name(atoms, i)}: the model's energy or forces are not finite; leave it out")
        n = len(atoms)
        volume = abs(np.linalg.det(example[0].cell)) if atoms.pbc.all() else np.nan
        out.append(
            Prediction(
                group=str(atoms.info.get("config_type", "all")),
                energy=float(result.energy) / n,
                energy_label=label.energy / n,
                energy_std=float(result.sigma) / n * model.energy_calibration,
                forces=result.forces[:n],
                forces_label=label.forces,
                stress=-result.virial / volume / GPa,
                stress_label=label.stress / GPa,
            )
        )
    return out


@dataclass(frozen=True)
class Calibration:
    """How true the predicted uncertainties are on held-out labels.

    Attributes
    ----------
    energy_factor, force_factor : what sigma must be multiplied by; above 1 the model was too sure.
    levels : nominal coverages.
    energy_before, energy_after, force_before, force_after : observed coverages, each like ``levels``; NaN
        where there were no such labels, whose factor is then 1.
    """

    energy_factor: float
    force_factor: float
    levels: tuple[float, ...]
    energy_before: tuple[float, ...]
    energy_after: tuple[float, ...]
    force_before: tuple[float, ...]
    force_after: tuple[float, ...]

    def __str__(self) -> str:
        lines = [f"sigma of energies x {self.energy_factor:.3g}, of forces x {self.force_factor:.3g}"]
        lines.append("nominal coverage  " + "".join(f"{level:8.0%}" for level in self.levels))
        for name in ("energy_before", "energy_after", "force_before", "force_after"):
            cells = "".join(f"{'-':>8}" if np.isnan(x) else f"{x:8.0%}" for x in getattr(self, name))
            lines.append(f"{name.replace('_', ' '):18}" + cells)
        return "\n".join(lines)


def calibrate(model: Model, held_out: Sequence[Atoms]) -> tuple[Model, Calibration]:
    """Scale the predicted uncertainties to the errors on labelled structures that the fit has not seen.

    A factor for energies and one for forces, each maximising the likelihood of the errors. The spread of a
    label includes the noise of the fit, so that a model whose errors are mostly noise is not called unsure.

    Raises
    ------
    ValueError : no structures, or no energies and forces among them.
    """
    raw = replace(model, energy_calibration=1.0, force_calibration=1.0)
    predictions = predict(raw, held_out)
    noise = 1 / np.sqrt(float(model.posterior.noise_precision))
    weights = model.settings.energy_weight, model.settings.force_weight
    # Of the noise of what was not fitted nothing is known.
    energy_noise, force_noise = (noise / weight if weight else 0.0 for weight in weights)
    energy = np.array([[p.energy - p.energy_label, np.hypot(p.energy_std, energy_noise)] for p in predictions])
    force = np.concatenate(
        [
            np.stack([(p.forces - p.forces_label).ravel(), np.hypot(std, force_noise).ravel()], axis=1)
            for p, std in zip(predictions, force_stds(raw, held_out), strict=True)
        ]
    )
    energy, force = energy[np.isfinite(energy[:, 0])], force[np.isfinite(force[:, 0])]
    if not len(energy) + len(force):
        raise ValueError("there is nothing to calibrate on: no held-out structure has an energy or forces")

    def judged(pairs: np.ndarray) -> tuple[float, tuple[float, ...], tuple[float, ...]]:
        if not len(pairs):
            return 1.0, (np.nan,) * len(LEVELS), (np.nan,) * len(LEVELS)
        residual, sigma = jnp.asarray(pairs[:, 0]), jnp.asarray(pairs[:, 1])
        factor = float(calibration(residual, sigma))
        return (
            factor,
            tuple(map(float, coverage(residual, sigma, LEVELS))),
            tuple(map(float, coverage(residual, factor * sigma, LEVELS))),
        )

    (e_factor, e_before, e_after), (f_factor, f_before, f_after) = judged(energy), judged(force)
    report = Calibration(e_factor, f_factor, LEVELS, e_before, e_after, f_before, f_after)
    return replace(model, energy_calibration=e_factor, force_calibration=f_factor), report


@partial(jax.jit, static_argnums=0)
def _force_std(basis: ACEBasis, factor: jax.Array, system: System, neighbours: Neighbours) -> jax.Array:
    forces = design_rows(basis, system, neighbours).forces
    return jnp.sqrt(jnp.sum((forces @ factor) ** 2, axis=-1))


def force_std_one(model: Model, system: System, neighbours: Neighbours) -> np.ndarray:
    """Exact posterior standard deviation of every force component, (N, 3) eV/Å."""
    std = _force_std(model.basis, model.posterior.factor, system, neighbours)
    return np.asarray(std) * model.force_calibration


def force_stds(model: Model, structures: Sequence[Atoms]) -> list[np.ndarray]:
    """Exact posterior standard deviation of every force component, (N, 3) eV/Å each."""
    return [
        force_std_one(model, *example)[: len(atoms)]
        for atoms, example in zip(structures, examples(model.basis, structures), strict=True)
    ]
