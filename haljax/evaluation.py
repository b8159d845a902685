"""Errors of a model on labelled structures, and the standard deviations that it predicts for them.

``energy_std``, ``forces_std`` and ``stress_std`` are one quantity everywhere (here, in the calculator, in the report
and its coverage curves): the standard deviation of the reference's label around the prediction. It has the model's
own uncertainty, that of the repulsive core and the noise of the fit, times the calibration factor. What biases and
selects is the model's part alone, ``potential(model).sigma``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from haljax.ace import ACEBasis
from haljax.ace.density import CHANNELS
from haljax.bayes import calibration, coverage
from haljax.close import collapses, falls
from haljax.model import Model, errors_in_words
from haljax.potentials import VOIGT, Parameters, features_of, parameters_of, total_energy
from haljax.rows import ENERGY, FORCE, STRESS, all_rows, examples
from haljax.spread import PSEUDO
from haljax.structures import Neighbours, System, labels, renamed, strange, unused
from haljax.structures.system import fingerprint, structure_name

if TYPE_CHECKING:
    from ase import Atoms

Array = Any  # numpy or JAX

LEVELS = (0.5, 0.68, 0.9, 0.95)


class Prediction(NamedTuple):
    """What a model says of one structure and what its labels say (NaN where missing).

    Attributes
    ----------
    group : its ``info["config_type"]``, or "all".
    energy, energy_label, energy_std : () eV per atom.
    forces, forces_label, forces_std : (N, 3) eV/Å.
    stress, stress_label, stress_std : (6,) GPa, ASE's sign.

    The standard deviations are those of the label around the prediction, as the calculator gives them.
    """

    group: str
    energy: float
    energy_label: float
    energy_std: float
    forces: np.ndarray
    forces_label: np.ndarray
    forces_std: np.ndarray
    stress: np.ndarray
    stress_label: np.ndarray
    stress_std: np.ndarray


@dataclass(frozen=True)
class ErrorTable:
    """RMSE and MAE by group of structures; ``str()`` is a table.

    Attributes
    ----------
    rows : group -> {"structures", "energy_rmse", "energy_mae" (meV/atom), "force_rmse", "force_mae" (eV/Å,
        per component), "stress_rmse", "stress_mae" (GPa)}; the last row, "total", is over all. NaN: no such
        labels. Where there is one group only, the total is the only row.
    note : what to know when reading it, below the table: the errors on structures left out of the fit, say.
    """

    rows: dict[str, dict[str, float]]
    note: str = ""

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
        return "\n".join([head, unit, *body, *([self.note] if self.note else [])])


def evaluate(model: Model, test: Sequence[Atoms], keys: Mapping[str, str] | None = None) -> ErrorTable:
    """Errors of ``model`` on labelled structures, grouped by ``info["config_type"]``.

    Parameters
    ----------
    keys : names of the labels, as for `haljax.fit`.

    Raises
    ------
    ValueError : no structures, or one without labels.
    """
    test = renamed(test, keys)
    table = error_table(predict(model, test))
    notes = [left_out_words(model)] if model.loo.groups else []
    if repeated := _repeated(model, test):
        notes.append(
            f"{repeated} of {len(test)} test structures are in the training set: their errors are not test errors"
        )
    notes += [*hole_words(_holes(model)), *unused(test, keys), *strange(test, list(map(labels, test)))]
    return replace(table, note="\n".join(notes))


def hole_words(found: Mapping[str, float]) -> list[str]:
    """A line for each attractive hole: elements -> by how much, eV, their energy falls as they approach."""
    return [
        f"attractive hole: the energy of {name} falls by {fall:.2g} eV as the atoms come closer than in the data; give "
        "the fit compressed structures, and keep dynamics away by dynamics.min_distance"
        for name, fall in found.items()
    ]


def _holes(model: Model) -> dict[str, float]:
    """Of pairs and of triplets of elements."""
    given = model.basis, model.coefficients, model.radii, model.near
    pairs = {"-".join(model.basis.elements[z] for z in model.basis.pairs[k]): fall for k, fall in falls(*given).items()}
    return pairs | collapses(*given)


def left_out_words(model: Model) -> str:
    """The errors on structures left out of the fit, in one line: an estimate of test errors on like structures."""
    loo = model.loo
    return f"leave-one-out ({loo.groups} groups of training structures): RMSE {errors_in_words(loo.energy, loo.force)}"


def _repeated(model: Model, test: Sequence[Atoms]) -> int:
    """How many of the structures the model was trained on."""

    known = set(map(fingerprint, model.structures))
    return sum(fingerprint(atoms) in known for atoms in test)


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
    """Energy and its first derivatives of one system, with the predicted standard deviation of the energy.

    Attributes
    ----------
    energy, energy_std : () eV.
    forces : (N, 3) eV/Å.
    virial : (6,) eV, Voigt xx, yy, zz, yz, xz, xy; -dE/d(strain).
    """

    energy: np.ndarray
    energy_std: np.ndarray
    forces: np.ndarray
    virial: np.ndarray


class _Bars(NamedTuple):
    """What makes a standard deviation of the model's: (3,) each, of energies, forces and virials."""

    scale: jax.Array
    noise: jax.Array
    factor: jax.Array


def _bars(model: Model) -> _Bars:
    factors = model.energy_calibration, model.force_calibration, model.stress_calibration
    return _Bars(*map(jnp.asarray, (model.spread.scale, model.spread.noise, np.array(factors))))


def _std(bars: _Bars, kind: int, model: jax.Array, core: jax.Array, size: Array) -> jax.Array:
    """Predictive standard deviation, from the model's variance, the core's contribution and the noise of ``size``."""
    return bars.factor[kind] * jnp.sqrt(bars.scale[kind] ** 2 * (model + core**2) + (size * bars.noise[kind]) ** 2)


@partial(jax.jit, static_argnums=0)
def _evaluate(
    basis: ACEBasis, params: Parameters, bars: _Bars, system: System, neighbours: Neighbours
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Energy, its std, and the gradients of the energy in positions (N, 3) and strain (3, 3)."""

    def total(positions: jax.Array, strain: jax.Array) -> jax.Array:
        return total_energy(basis, params, system._replace(positions=positions), neighbours, strain)

    value, (gradient, tension) = jax.value_and_grad(total, argnums=(0, 1))(
        system.positions, jnp.zeros((3, 3), system.positions.dtype)
    )
    seen = features_of(basis, params, system, neighbours)
    variance = jnp.sum((seen.features @ params.factor) ** 2)
    std = _std(bars, ENERGY, variance, seen.core, jnp.sum(system.species >= 0))
    return value, std, gradient, tension


def evaluate_one(
    model: Model, system: System, neighbours: Neighbours, parameters: Parameters | None = None
) -> Evaluation:
    """Energy, its predicted std, forces and virial of one system, in numpy.

    ``parameters`` where they are the model's, at hand.
    """
    found = _evaluate(model.basis, parameters or parameters_of(model), _bars(model), system, neighbours)
    energy, std, gradient, tension = map(np.asarray, found)
    return Evaluation(energy, std, -gradient, -((tension + tension.T) / 2)[VOIGT])


class Stds(NamedTuple):
    """Predicted standard deviations of one system: energy () eV, forces (N, 3) eV/Å, virial (6,) eV; of each label of
    the reference around the prediction."""

    energy: Array
    forces: Array
    virial: Array


@partial(jax.jit, static_argnums=0)
def _stds(basis: ACEBasis, params: Parameters, bars: _Bars, system: System, neighbours: Neighbours) -> Stds:
    density = jnp.zeros((len(CHANNELS), basis.n_species)) if params.density is None else params.density
    rows = all_rows(basis, system, neighbours, params.radii, density)
    P = len(params.factor)

    def variance(part: jax.Array) -> jax.Array:
        return jnp.sum((part[..., :P] @ params.factor) ** 2, axis=-1)

    n = jnp.sum(system.species >= 0)
    return Stds(
        _std(bars, ENERGY, variance(rows.energy), rows.core_energy, n),
        _std(bars, FORCE, variance(rows.forces), rows.core_forces, 1),
        _std(bars, STRESS, variance(rows.virial), rows.core_virial, n),
    )


def stds_one(model: Model, system: System, neighbours: Neighbours, parameters: Parameters | None = None) -> Stds:
    """Predicted standard deviations of one system, in numpy; exact for every force component."""
    found = _stds(model.basis, parameters or parameters_of(model), _bars(model), system, neighbours)
    return Stds(*map(np.asarray, found))


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
    params = parameters_of(model)
    for i, (atoms, label, example) in enumerate(zip(structures, known, examples(model.basis, structures), strict=True)):
        result, stds = evaluate_one(model, *example, params), stds_one(model, *example, params)
        if not np.isfinite(result.energy) or not np.isfinite(result.forces).all():
            raise ValueError(f"{structure_name(atoms, i)}: the model's energy or forces are not finite; leave it out")
        n = len(atoms)
        volume = abs(np.linalg.det(example[0].cell)) if atoms.cell.rank == 3 else np.nan
        out.append(
            Prediction(
                group=str(atoms.info.get("config_type", "all")),
                energy=float(result.energy) / n,
                energy_label=label.energy / n,
                energy_std=float(stds.energy) / n,
                forces=result.forces[:n],
                forces_label=label.forces,
                forces_std=stds.forces[:n],
                stress=-result.virial / volume / GPa,
                stress_label=label.stress / GPa,
                stress_std=stds.virial / volume / GPa,
            )
        )
    return out


@dataclass(frozen=True)
class Calibration:
    """How true the predicted standard deviations are on labels that the fit has not seen.

    Attributes
    ----------
    energy_factor, force_factor : what the standard deviations are multiplied by; above 1 the model was too sure.
    levels : nominal coverages.
    energy_before, energy_after, force_before, force_after : observed coverages, each like ``levels``; NaN
        where there were no such labels, whose factor is then 1.
    energy_values, force_values : how many labels the factors come from.
    """

    energy_factor: float
    force_factor: float
    levels: tuple[float, ...]
    energy_before: tuple[float, ...]
    energy_after: tuple[float, ...]
    force_before: tuple[float, ...]
    force_after: tuple[float, ...]
    energy_values: int = 0
    force_values: int = 0

    def __str__(self) -> str:
        lines = [
            f"energy_std x {self.energy_factor:.3g} (from {self.energy_values} energies), "
            f"forces_std x {self.force_factor:.3g} (from {self.force_values} components)"
        ]
        lines.append("nominal coverage  " + "".join(f"{level:8.0%}" for level in self.levels))
        for name in ("energy_before", "energy_after", "force_before", "force_after"):
            cells = "".join(f"{'-':>8}" if np.isnan(x) else f"{x:8.0%}" for x in getattr(self, name))
            lines.append(f"{name.replace('_', ' '):18}" + cells)
        return "\n".join(lines)


def calibrate(
    model: Model, held_out: Sequence[Atoms], keys: Mapping[str, str] | None = None
) -> tuple[Model, Calibration]:
    """Scale the predicted standard deviations to the errors on labelled structures that the fit has not seen.

    Every fit is calibrated already, by leaving structures out; this serves for labels of another kind than those of
    the fit. A factor for energies and one for forces (and for stresses), each maximising the likelihood of the errors
    and of `PSEUDO` structures beside them whose errors are as predicted, so that a few labels move it little. ``keys``
    as for `haljax.fit`.

    Raises
    ------
    ValueError : no structures, or no energies and forces among them.
    """
    raw = replace(model, energy_calibration=1.0, force_calibration=1.0, stress_calibration=1.0)
    predictions = predict(raw, renamed(held_out, keys))
    share = PSEUDO / (PSEUDO + len(predictions))

    def judged(what: str) -> tuple[float, int, tuple[float, ...], tuple[float, ...]]:
        error = np.concatenate([np.ravel(getattr(p, what) - getattr(p, f"{what}_label")) for p in predictions])
        std = np.concatenate([np.ravel(getattr(p, f"{what}_std")) for p in predictions])
        known = np.isfinite(error)
        if not known.any():
            return 1.0, 0, (np.nan,) * len(LEVELS), (np.nan,) * len(LEVELS)
        residual, sigma = jnp.asarray(error[known]), jnp.asarray(std[known])
        factor = float(np.sqrt((1 - share) * calibration(residual, sigma) ** 2 + share))
        return (
            factor,
            int(known.sum()),
            tuple(map(float, coverage(residual, sigma, LEVELS))),
            tuple(map(float, coverage(residual, factor * sigma, LEVELS))),
        )

    (e_factor, e_values, *e_levels), (f_factor, f_values, *f_levels) = judged("energy"), judged("forces")
    if not e_values + f_values:
        raise ValueError("there is nothing to calibrate on: no held-out structure has an energy or forces")
    levels = dict(
        zip(("energy_before", "energy_after", "force_before", "force_after"), e_levels + f_levels, strict=True)
    )
    report = Calibration(e_factor, f_factor, LEVELS, **levels, energy_values=e_values, force_values=f_values)
    s_factor = judged("stress")[0]
    return (
        replace(model, energy_calibration=e_factor, force_calibration=f_factor, stress_calibration=s_factor),
        report,
    )
