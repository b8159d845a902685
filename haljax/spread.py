"""How far predictions spread around the reference: the covariance behind every standard deviation of a model.

The posterior of the coefficients, at the noise of a fit, is too sure where the basis cannot represent the reference:
labels are exact, so that what looks like noise is an error of the model, and a thousand force components do not make it
smaller. `make_spread` therefore forms a second covariance,

- with functions of the density that the mean does not have (`haljax.ace.density`),
- with prior standard deviations twice as wide, since those of the evidence are for the data's own region,
- with force rows that count as rho of what they are, ``rho = (coefficients determined) / (rows)`` or its root: as in
  ensembles that fit each datum exactly (POPS; Swinburne & Perez, Mach. Learn.: Sci. Technol. 6, 015008 (2025),
  arXiv:2402.01810), whose spread is that of as many data as coefficients,

and then finds from residuals of structures left out (groups together) how much noise is left, for each kind of label.
The mean is untouched. Which rho is chosen by the density of the labels left out.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from haljax.bayes.leave_out import left_out_residual, left_out_variance
from haljax.bayes.posterior import Posterior
from haljax.bayes.statistics import Statistics
from haljax.devices import in_threads
from haljax.rows import KINDS, Block, Part, Table

WIDER = 2.0  # prior standard deviations, over those of the evidence
JUDGES = 10  # groups that choose rho
PSEUDO = 4.0  # structures that would have residuals as expected, beside those there are
LEAST_NOISE, LEAST_SCALE = 0.05, 0.5  # of the noise of the fit; of the model's standard deviation


class Spread(NamedTuple):
    """What standard deviations are made of.

    Attributes
    ----------
    factor : (P, P) root of the covariance of the coefficients of all features, eV.
    precision : (3,) of weighted rows of energies, forces and stresses in that covariance.
    scale : (3,) what the model's standard deviation of each kind is multiplied by.
    noise : (3,) standard deviation, beside the model's, of an energy per atom (eV), a force component (eV/Å) and a
        virial component per atom (eV).
    """

    factor: jax.Array
    precision: np.ndarray
    scale: np.ndarray
    noise: np.ndarray


class LeaveOneOut(NamedTuple):
    """Errors on structures that were left out of the fit, groups of like structures together.

    Attributes
    ----------
    energy, force, stress : RMSE in eV per atom, eV/Å and eV per atom (virial); NaN where there are no such labels.
    energy_z, force_z, stress_z : rms of error over predicted standard deviation; near 1 by construction.
    groups : how many were left out in turn; 0 where there were fewer than three, and no errors.
    energy_mae, force_mae : mean absolute errors, in which few structures unlike the others weigh less.
    """

    energy: float = np.nan
    force: float = np.nan
    stress: float = np.nan
    energy_z: float = np.nan
    force_z: float = np.nan
    stress_z: float = np.nan
    groups: int = 0
    energy_mae: float = np.nan
    force_mae: float = np.nan


@partial(jax.jit, static_argnames="m")
def spread_factor(
    forces: Statistics, others: Statistics, std: jax.Array, e0: jax.Array, precision: jax.Array, m: int
) -> jax.Array:
    """Root (P, P) of the covariance: rows of forces and of the other labels, and the prior.

    Parameters
    ----------
    std : (m,) prior standard deviations of the functions of the basis. e0 : (Z, Z) factor of the prior of E0.
    precision : (3,) of the rows of each kind, of which energies and stresses have one.
    """
    z = len(e0)
    R = jnp.concatenate([jnp.sqrt(precision[1]) * forces.R, jnp.sqrt(precision[0]) * others.R])
    P = R.shape[1]
    whitened = jnp.concatenate([R[:, :m] * std[None, :], R[:, m : m + z] @ e0, R[:, m + z :]], axis=1)
    r = jnp.linalg.qr(jnp.concatenate([whitened, jnp.eye(P)]), mode="r")
    root = jax.scipy.linalg.solve_triangular(r, jnp.eye(P))
    return jnp.concatenate([std[:, None] * root[:m], e0 @ root[m : m + z], root[m + z :]])


class _LeftOut(NamedTuple):
    """Of all rows: residuals and model's variances left out, in weighted units, kinds, shares of the weights."""

    residual: np.ndarray
    variance: np.ndarray
    kind: np.ndarray
    share: np.ndarray


def residuals_left_out(table: Table | Part, groups: Sequence[int], posterior: Posterior) -> list[np.ndarray]:
    """Weighted residuals (r,) of each structure under the mean of a fit without its group."""
    factor, mean = np.asarray(posterior.factor), np.asarray(posterior.mean)
    root = np.sqrt(float(posterior.noise_precision))
    columns = len(mean)

    def left_out(group: tuple[list[tuple[int, int]], Block]) -> dict[int, np.ndarray]:
        members, block = group
        rows = block.rows[:, :columns]
        residual = left_out_residual(root * (rows @ factor), root * (block.targets - rows @ mean)) / root
        ends = np.cumsum([size for _, size in members])
        return {i: part for (i, _), part in zip(members, np.split(residual, ends[:-1]), strict=True)}

    found: dict[int, np.ndarray] = {}
    for parts in in_threads(left_out, _grouped(table, groups)):
        found |= parts
    return [found[i] for i in range(len(groups))]


def _grouped(table: Table | Part, groups: Sequence[int]):
    """The members of each group with their numbers of rows, and its rows as one block."""
    waiting: dict[int, list[tuple[int, Block]]] = {}
    left = np.bincount(groups)
    for i, (group, block) in enumerate(zip(groups, table, strict=True)):
        waiting.setdefault(group, []).append((i, block))
        left[group] -= 1
        if not left[group]:
            members = waiting.pop(group)
            joined = Block(*(np.concatenate(parts) for parts in zip(*(b for _, b in members), strict=True)))
            yield [(k, len(b.targets)) for k, b in members], joined


def make_spread(
    table: Table | Part,
    groups: Sequence[int],
    forces: Statistics,
    others: Statistics,
    posterior: Posterior,
    std: np.ndarray,
    e0: np.ndarray,
    weights: Sequence[float],
    residuals: list[np.ndarray],
) -> tuple[Spread, LeaveOneOut]:
    """The spread of a fit, and its errors on groups left out.

    Parameters
    ----------
    std : (M,) prior standard deviations of the mean's coefficients. e0 : (Z, Z) factor of the prior of E0.
    residuals : of `residuals_left_out`.
    """
    alpha = float(posterior.noise_precision)
    columns = len(posterior.mean)
    seen = jnp.concatenate([forces.R[:, :columns], others.R[:, :columns]]) @ posterior.factor
    determined = alpha * float(jnp.sum(seen**2))
    n_forces = max(int(forces.n), 1)
    rho = min(1.0, max(determined, 1.0) / n_forces)
    n_groups = len(set(groups))

    def formed(share: float) -> tuple[jax.Array, np.ndarray]:
        precision = alpha * np.array([1.0, share, 1.0])
        wider = jnp.asarray(WIDER * std)
        return spread_factor(forces, others, wider, jnp.asarray(e0), jnp.asarray(precision), m=len(std)), precision

    if n_groups < 3:
        factor, precision = formed(1.0)
        return _spread(factor, precision, np.ones(3), np.full(3, alpha**-0.5), weights), LeaveOneOut()
    judges = set(np.unique(np.linspace(0, n_groups - 1, JUDGES).astype(int)).tolist())
    best = None
    for share in (np.sqrt(rho), rho):
        factor, precision = formed(share)
        parts = _variances(table, groups, np.asarray(factor), precision, residuals, judges)
        _, _, density = _calibrated(_joined(parts), alpha**-0.5, len(table))
        if best is None or density > best[0]:
            best = density, factor, precision, parts
    assert best is not None
    _, factor, precision, parts = best
    parts |= _variances(table, groups, np.asarray(factor), precision, residuals, set(groups) - judges)
    found = _joined(parts)
    scale, noise, _ = _calibrated(found, alpha**-0.5, len(table))
    return _spread(factor, precision, scale, noise, weights), _summary(found, scale, noise, weights, n_groups)


def _spread(factor, precision, scale, noise, weights) -> Spread:
    with np.errstate(divide="ignore"):
        own = np.where(np.asarray(weights) > 0, noise / np.asarray(weights), 0.0)  # of what was not fitted: unknown
    return Spread(jnp.asarray(factor), precision, scale, own)


def _variances(
    table: Table | Part,
    groups: Sequence[int],
    factor: np.ndarray,
    precision: np.ndarray,
    residuals: list[np.ndarray],
    wanted: Collection[int],
) -> dict[int, _LeftOut]:
    """Of these groups."""

    def left_out(item: tuple[list[tuple[int, int]], Block]) -> tuple[int, _LeftOut]:
        members, block = item
        root = np.sqrt(precision)[block.kind]
        variance = left_out_variance(root[:, None] * (block.rows @ factor))
        residual = np.concatenate([residuals[i] for i, _ in members])
        return groups[members[0][0]], _LeftOut(residual, variance / root**2, block.kind, block.share)

    items = (item for item in _grouped(table, groups) if groups[item[0][0][0]] in wanted)
    return dict(in_threads(left_out, items))


def _joined(parts: dict[int, _LeftOut]) -> _LeftOut:
    """Of all groups, in their order."""
    return _LeftOut(*(np.concatenate(values) for values in zip(*(parts[g] for g in sorted(parts)), strict=True)))


def _calibrated(found: _LeftOut, noise: float, n_structures: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Scale (3,) and noise (3,) in weighted units for which residuals left out are as large as predicted.

    Beside the data stand `PSEUDO` structures with residuals as the noise of the fit would have them. Returned too: the
    log density of the residuals, energies and forces as one structure each.
    """
    scales, noises, density = np.ones(3), np.full(3, noise), 0.0
    for kind in range(3):
        own = found.kind == kind
        if not own.any():
            continue
        square, variance = found.residual[own] ** 2, np.minimum(found.variance[own], 1e12 * noise**2)
        expected = variance.mean() + noise**2
        share = PSEUDO / (PSEUDO + n_structures)

        def excess(
            scale: float, extra: float, square=square, variance=variance, expected=expected, share=share
        ) -> float:
            """Mean square of the standardised residuals, over 1."""
            z = np.mean(square / (scale**2 * variance + extra**2))
            prior = expected / (scale**2 * variance.mean() + extra**2)
            return (1 - share) * z + share * prior - 1

        low, high = LEAST_NOISE * noise, noise
        while excess(1.0, high) > 0 and high < 1e6 * noise:
            high *= 2
        if excess(1.0, low) < 0:  # too wide even without noise
            noises[kind] = low
            scales[kind] = max(LEAST_SCALE, np.sqrt(max(1 + excess(1.0, low), LEAST_SCALE**2)))
        else:
            for _ in range(60):
                middle = np.sqrt(low * high)
                low, high = (middle, high) if excess(1.0, middle) > 0 else (low, middle)
            noises[kind] = high
        total = scales[kind] ** 2 * variance + noises[kind] ** 2
        values = -0.5 * (square / total + np.log(total))
        density += values.mean()  # forces of a structure are many and alike
    return scales, noises, float(density)


def _summary(
    found: _LeftOut, scale: np.ndarray, noise: np.ndarray, weights: Sequence[float], n_groups: int
) -> LeaveOneOut:
    rmse, z, mae = np.full((3, len(KINDS)), np.nan)
    for kind in range(len(KINDS)):
        own = found.kind == kind
        if not own.any() or not weights[kind]:
            continue
        residual = found.residual[own]
        expected = np.sqrt(scale[kind] ** 2 * found.variance[own] + noise[kind] ** 2)
        z[kind] = np.sqrt(np.mean((residual / expected) ** 2))
        error = np.abs(residual) / (found.share[own] * weights[kind])
        rmse[kind], mae[kind] = np.sqrt(np.mean(error**2)), np.mean(error)
    fields: dict[str, Any] = dict(
        zip(LeaveOneOut._fields, [*rmse.tolist(), *z.tolist(), n_groups, *mae[:2].tolist()], strict=True)
    )
    return LeaveOneOut(**fields)
