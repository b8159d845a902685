"""From labelled structures to a model: core radii, E0, prior and noise by evidence; updates and selection."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from haljax import bayes
from haljax.ace import ACEBasis
from haljax.ace.density import CHANNELS
from haljax.bayes import Posterior, Statistics, accumulate, empty, one_blas_thread, require_x64, seen_rows
from haljax.bayes.leave_out import groups_of
from haljax.bayes.prior import Family, learn
from haljax.close import ERRORS, falls, repulsion_rows
from haljax.model import FitSettings, Model
from haljax.rows import (
    ENERGY,
    FORCE,
    Block,
    Table,
    Weights,
    all_features,
    blocks_of,
    examples,
    in_threads,
    radii_from,
    reference_densities,
    shortest_distances,
    too_close,
)
from haljax.spread import LeaveOneOut, Spread, make_spread, residuals_left_out
from haljax.structures import Neighbours, System, bucket, from_atoms, labels
from haljax.structures.system import structure_name

if TYPE_CHECKING:
    from ase import Atoms

log = logging.getLogger(__name__)

# 1 / (3 meV/atom), 1 / (0.1 eV/Å), 1 / (0.03 eV/atom): rows of forces outnumber those of energies 3 N to one.
ENERGY_WEIGHT, FORCE_WEIGHT, STRESS_WEIGHT = 300.0, 10.0, 30.0
SMOOTHNESS = 2.0
SOLVERS = ("auto", "brr", "ard")
E0_COMMON, E0_OWN = 4.0, 0.4  # eV, prior standard deviations of what all E0 have in common, and of each
E0_KNOWN = 1e-6  # eV, of an E0 that is given
NEAR = 0.97  # of the shortest distance in the data, below which the bias begins to fade
ABSURD = 30.0  # a structure is left out where its residual is so many times the median of all
ABSURD_ENERGY, ABSURD_FORCE = 1.0, 5.0  # and above so many eV per atom, or so many times the rms force label


def fit(
    basis: ACEBasis,
    train: Sequence[Atoms],
    e0: str | Mapping[str, float] = "auto",
    energy_weight: float = ENERGY_WEIGHT,
    force_weight: float = FORCE_WEIGHT,
    stress_weight: float = STRESS_WEIGHT,
    solver: str = "auto",
    smoothness: float = SMOOTHNESS,
) -> Model:
    """Fit a linear ACE potential to labelled structures by maximum evidence.

    The defaults are chosen to predict best: the radii of the repulsive core follow the shortest distances in the
    data, prior and noise are learned, E0 is fitted together with the coefficients, and the standard deviations are
    calibrated by leaving structures out. ``Model.choice`` says in one line what was chosen.

    Parameters
    ----------
    train : structures with energies (eV) and, where there are any, forces (eV/Å) and stresses (eV/Å^3, ASE's
        sign). ``info["energy_weight"]``, ``info["force_weight"]``, ``info["stress_weight"]`` and
        ``arrays["force_weight"]`` multiply a structure's weights. Structures with the same ``info["group"]`` (frames
        of one trajectory, say) are left out together, near-copies too.
    e0 : energies of the isolated elements. "auto": those of isolated atoms in ``train``, of the other elements
        fitted jointly. "isolated": every element must have an isolated atom. "lsq": fitted jointly, isolated atoms
        are left out. Or a mapping from element to eV.
    energy_weight, stress_weight : of an energy and a virial component per atom, 1/eV.
    force_weight : of a force component, Å/eV. Only ratios of weights matter: the noise is learned.
    solver : "auto" (a scale and a decay for each correlation order, see `haljax.bayes.prior`), "brr" (one prior
        precision for all functions) or "ard" (one each; prunes).
    smoothness : of "brr" and "ard", power p of the prior, under which coefficients of rough functions (large n, l)
        are smaller.

    Raises
    ------
    ValueError : no structures, labels missing or not finite, an element the basis lacks, an unknown solver, a
        negative weight, nothing that has a weight, isolated atoms that contradict each other.
    RuntimeError : x64 is off.
    """
    require_x64()
    if solver not in SOLVERS:
        raise ValueError(f"solver must be {', '.join(map(repr, SOLVERS[:-1]))} or {SOLVERS[-1]!r}, not {solver!r}")
    train = list(train)
    if not train:
        raise ValueError("there is nothing to fit: give at least one labelled structure")
    for name, value in (("energy", energy_weight), ("force", force_weight), ("stress", stress_weight)):
        if not 0 <= value < np.inf:
            raise ValueError(f"{name}_weight must be a finite number >= 0, not {value}")
    _check(basis, train)
    kept = e0 if isinstance(e0, str) else {str(k): float(v) for k, v in e0.items()}
    settings = FitSettings(energy_weight, force_weight, stress_weight, solver, smoothness, kept)
    return _fitted(basis, settings, train)


def update(model: Model, new: Sequence[Atoms]) -> Model:
    """The model after more labelled structures, at fixed core radii, weights and hyperparameters.

    A rank-k update of the posterior: equal to a refit at the same radii and hyperparameters. The covariance of the
    standard deviations is updated likewise; their noise and scale, and the leave-one-out errors, remain those of the
    last fit until `refit`. A structure with atoms closer than the core allows is left out, with a warning that names
    it: `refit` moves the core.
    """
    new = list(new)
    if not new:
        raise ValueError("there is nothing to learn: give at least one labelled structure")
    _check(model.basis, new)
    n_old = len(model.structures)
    seen = list(examples(model.basis, new))
    close = too_close(model.basis, model.radii, shortest_distances(model.basis, seen), new)
    for why in close.values():
        log.warning("%s is closer than the core allows and was not learned; refit, which moves the core", why)
    used = [i for i in range(len(new)) if i not in close and not _isolated(new[i], seen[i][1])]
    weights = Weights(*model.settings.weights)
    arrays = model.radii, model.density, weights, [new[i] for i in used], [seen[i] for i in used]
    blocks = list(blocks_of(model.basis, *arrays))
    ignored = dict(model.ignored) | {n_old + i: why for i, why in close.items()}
    grown = replace(
        model,
        structures=(*model.structures, *new),
        ignored=ignored,
        n_structures=model.n_structures + len(new) - len(close),
        table=None,
        compressed=None if model.compressed is None else _absorb_legacy(model, blocks),
    )
    if not blocks:
        return grown
    rows = np.concatenate([b.rows for b in blocks])[:, : len(model.spread.factor)] * _mask(model)
    targets = np.concatenate([b.targets for b in blocks])
    kind = np.concatenate([b.kind for b in blocks])
    joint = len(model.posterior.mean)
    extra = bucket(len(rows)) - len(rows)  # zero-pad to a bucketed shape
    rows, targets = np.pad(rows, ((0, extra), (0, 0))), np.pad(targets, (0, extra))
    root = np.pad(np.sqrt(model.spread.precision)[kind], (0, extra))
    with one_blas_thread():
        posterior = jax.block_until_ready(_update(model.posterior, rows[:, :joint], targets))
        spread = model.spread._replace(factor=_narrowed(model.spread.factor, root[:, None] * rows))
    return replace(grown, posterior=posterior, spread=spread)


def refit(model: Model, new: Sequence[Atoms]) -> Model:
    """The model after more labelled structures, with core radii, E0 and hyperparameters learned again.

    Equal to a fit of all structures, but that the search for hyperparameters starts from the present ones.
    """
    new = list(new)
    _check(model.basis, new)
    if model.compressed is not None:
        return _refit_legacy(model, new)
    return _fitted(model.basis, model.settings, [*model.structures, *new], model)


def informed(model: Model, structures: Sequence[Atoms]) -> Model:
    """The model with the covariance that it will have once these structures are labelled; the mean is unchanged.

    The variance of a linear Gaussian model does not depend on what the labels are, so that a structure shrinks sigma
    as soon as it is chosen. Structures need no labels; energies and forces count.
    """
    if not structures:
        return model
    rows = _unlabelled_rows(model, structures) * _mask(model)[None, :]
    extra = bucket(len(rows)) - len(rows)
    with one_blas_thread():
        factor = _narrowed(model.spread.factor, np.pad(rows, ((0, extra), (0, 0))))
    return replace(model, spread=model.spread._replace(factor=factor))


def select(model: Model, pool: Sequence[Atoms], n: int, given: Sequence[Atoms] = ()) -> list[int]:
    """Indices of the ``n`` structures of an unlabelled pool that are worth labelling together.

    Greedy by conditional variance of the energy under the model's sigma: each pick conditions it as if it had been
    labelled, so near-copies are not picked twice, nor of structures ``given`` whose labels are on their way.

    Raises
    ------
    ValueError : the pool is empty or smaller than ``n``.
    """
    pool = list(pool)
    if not pool:
        raise ValueError("the pool is empty: give at least one structure to select from")
    model = informed(model, given)
    scale = model.settings.energy_weight or ENERGY_WEIGHT  # a fit to forces alone still judges by energies
    weight = np.array([scale / len(atoms) for atoms in pool])
    rows = features(model, pool) * weight[:, None]
    spread = Posterior(
        mean=jnp.zeros(rows.shape[1]),
        factor=model.spread.factor,
        noise_precision=jnp.asarray(model.spread.precision[ENERGY]),
        prior_precision=jnp.ones(rows.shape[1]),
        log_evidence=jnp.zeros(()),
    )
    indices, _ = bayes.select(spread, jnp.asarray(rows)[:, None, :], n)
    return [int(i) for i in indices]


def features(model: Model, structures: Sequence[Atoms]) -> np.ndarray:
    """Features (n, P) of the energies of structures, as many as the model's spread has rows."""
    arrays = jnp.asarray(model.radii), jnp.asarray(model.density)
    found = [np.asarray(all_features(model.basis, *example, *arrays)) for example in examples(model.basis, structures)]
    return np.stack(found)[:, : len(model.spread.factor)]


def descriptors(basis: ACEBasis, structures: Sequence[Atoms], radii: np.ndarray | None = None) -> np.ndarray:
    """Summed descriptors (n, M) of structures, so that E = e0 + core + c . D."""
    radii = np.stack(basis.core_radii) if radii is None else radii
    arrays = jnp.asarray(radii), jnp.zeros((len(CHANNELS), basis.n_species))
    found = [np.asarray(all_features(basis, *example, *arrays)) for example in examples(basis, structures)]
    return np.stack(found)[:, : len(basis)]


# -------------------------------------------------------------------------------------------------- one fit


class _Data(NamedTuple):
    """Rows of the structures that are fitted, and how: what every solver starts from.

    Attributes
    ----------
    table : blocks; energies lack nothing but the core. used : indices of their structures.
    centre : (Z,) eV, of the prior of E0; e0 : (Z, Z) factor of its covariance.
    forces, others : statistics of P columns, targets without the centre of E0.
    radii : (2, Z, Z) of the core. shortest : (Z, Z) shortest distances in the structures used, Å.
    """

    table: Table
    used: list[int]
    centre: np.ndarray
    e0: np.ndarray
    forces: Statistics
    others: Statistics
    radii: np.ndarray
    shortest: np.ndarray


def _fitted(basis: ACEBasis, settings: FitSettings, structures: list[Atoms], before: Model | None = None) -> Model:
    """The whole of a fit; ``before`` a model of the first of these structures, whose rows may serve again."""
    seen = list(examples(basis, structures))
    alone = [i for i, (atoms, example) in enumerate(zip(structures, seen, strict=True)) if _isolated(atoms, example[1])]
    shortest = shortest_distances(basis, seen)
    radii = radii_from(basis, shortest)
    close = too_close(basis, radii, shortest, structures)
    ignored = dict.fromkeys(alone, "an isolated atom") | close
    for why in close.values():
        log.warning("%s: atoms as close as in no other structure; the fit leaves it out", why)
    used = [i for i in range(len(structures)) if i not in ignored]
    if not used:
        raise ValueError(
            "there is nothing to fit: every structure is an isolated atom or has atoms closer than the core allows"
        )
    density = reference_densities(basis, [seen[i] for i in used]) if before is None else before.density
    table = _table(basis, settings, structures, seen, used, radii, density, before)
    absurd: dict[int, str] = {}
    while True:
        kept = [k for k, i in enumerate(used) if i not in absurd]
        here = [used[k] for k in kept]
        rows = table if not absurd else Table(block for k, block in enumerate(table) if k in set(kept))
        centre, e0 = _prior_of_e0(basis, settings, structures, alone, here)
        closest = shortest[here].min(axis=0)
        data = _Data(rows, here, centre, e0, *_statistics(rows, centre, len(basis)), radii, closest)
        posterior, active, hyperparameters = _solve(basis, settings, data, before)
        groups = _groups(basis, radii, density, [structures[i] for i in here], [seen[i] for i in here])
        with one_blas_thread():
            residuals = residuals_left_out(rows, groups, posterior) if len(set(groups)) > 2 else []
        fitted_e0 = not isinstance(settings.e0, Mapping)
        found = _absurd(structures, here, rows, residuals, fitted_e0) if len(absurd) < max(1, len(used) // 10) else None
        if found is None:
            break
        i, why = found
        log.warning("%s %s: the fit leaves it out; look at its labels", structure_name(structures[i], i), why)
        absurd[i] = why
    std = np.where(active, 1 / np.sqrt(np.asarray(posterior.prior_precision[: len(basis)])), 0.0)
    with one_blas_thread():
        spread, loo = make_spread(
            data.table, groups, data.forces, data.others, posterior, std, data.e0, settings.weights, residuals
        )
    if not loo.groups:
        log.warning(
            "leave-one-out needs three independent structures, and there are %d: the error bars are those of the "
            "evidence alone, and there is no estimate of the test error",
            len(set(groups)),
        )
    model = Model(
        basis=basis,
        posterior=posterior,
        spread=spread,
        settings=settings,
        active=active,
        radii=radii,
        near=np.where(np.isfinite(closest), NEAR * closest, np.maximum(1.15 * radii[1], 1.2 * basis.bond_lengths)),
        density=density,
        structures=tuple(structures),
        ignored=ignored | absurd,
        hyperparameters=hyperparameters,
        loo=loo,
        n_structures=len(data.used) + len(alone),
        table=table,
    )
    log.info("%s", model.choice)
    return model


def _table(
    basis: ACEBasis,
    settings: FitSettings,
    structures: list[Atoms],
    seen: list[tuple[System, Neighbours]],
    used: list[int],
    radii: np.ndarray,
    density: np.ndarray,
    before: Model | None,
) -> Table:
    """Rows of the structures used; those of a model before where its radii still hold."""
    weights = Weights(*settings.weights)
    if before is not None and before.table is not None and np.array_equal(before.radii, radii):
        old = [i for i in range(len(before.structures)) if i in set(used)]
        if len(old) == len(before.table) and used[: len(old)] == old:
            fresh = used[len(old) :]
            rows = blocks_of(basis, radii, density, weights, [structures[i] for i in fresh], [seen[i] for i in fresh])
            return Table([*before.table, *rows])
    return Table(blocks_of(basis, radii, density, weights, [structures[i] for i in used], [seen[i] for i in used]))


def _statistics(table: Table, centre: np.ndarray, M: int) -> tuple[Statistics, Statistics]:
    """Statistics of force rows and of the others, with the centre of E0 taken off the targets."""
    n = {kind: sum(int(np.sum((b.kind == FORCE) == kind)) for b in table) for kind in (True, False)}
    P = next(iter(table)).rows.shape[1]

    def of(forces: bool):
        for block in table:
            own = (block.kind == FORCE) == forces
            rows = block.rows[own]
            yield rows, block.targets[own] - rows[:, M : M + len(centre)] @ centre

    found = [_few_sizes(seen_rows(accumulate(empty(P), of(forces), n[forces]))) for forces in (True, False)]
    if not sum(int(stats.n) for stats in found):
        raise ValueError("there is nothing to learn from: every label is missing or has weight 0")
    return found[0], found[1]


def _few_sizes(stats: Statistics) -> Statistics:
    """The same with rows of zeros, up to a power of two, so that a campaign compiles few programs."""
    rows, P = stats.R.shape
    size = min(P, max(64, 1 << (rows - 1).bit_length()))
    extra = max(size - rows, 0)
    return stats._replace(R=jnp.pad(stats.R, ((0, extra), (0, 0))), z=jnp.pad(stats.z, (0, extra)))


def _solve(
    basis: ACEBasis, settings: FitSettings, data: _Data, before: Model | None
) -> tuple[Posterior, np.ndarray, np.ndarray | None]:
    """Joint posterior (M + Z) at maximum evidence, the mask of active functions (M,), hyperparameters of "auto"."""
    M, z = len(basis), basis.n_species
    with one_blas_thread():
        joint = _joined(data.forces, data.others, M + z)
        active, hyperparameters = np.ones(M, bool), None
        if settings.solver == "auto":
            start = None if before is None else before.hyperparameters
            learned = learn(joint, _family(basis), data.e0, start)
            if not learned.converged and start is not None:
                learned = learn(joint, _family(basis), data.e0)
            if not learned.converged and len(data.used) > 2:  # of fewer there is another warning
                log.warning("the search for hyperparameters did not converge: the model is usable, perhaps not best")
            alpha, precision, hyperparameters = learned.noise**-2, learned.std**-2, learned.hyperparameters
            log_evidence = learned.log_evidence
        else:
            scale = jnp.asarray(basis.smoothness(settings.smoothness))
            alone = seen_rows(bayes.statistics.columns(joint, jnp.arange(M)))
            found, info = jax.block_until_ready(_SOLVERS[settings.solver](alone, scale))
            if not info.converged:
                log.warning(
                    "the evidence still grew after %d steps of %s: the model is usable, and sigma perhaps not yet "
                    "right",
                    int(info.iterations),
                    settings.solver,
                )
            alpha, precision, active = found.noise_precision, found.prior_precision, np.asarray(info.active)
            log_evidence = float(found.log_evidence)
        arrays = jnp.asarray(alpha), jnp.asarray(precision), jnp.asarray(data.e0), active
        posterior = jax.block_until_ready(_joint_posterior(joint, *arrays))
        errors: dict[int, float] = {}
        for error in (*ERRORS, None):
            holes = falls(basis, np.asarray(posterior.mean[:M]), data.radii, data.shortest)
            if not holes or error is None:
                break
            errors |= dict.fromkeys(holes, error)
            rows, targets = repulsion_rows(basis, data.radii, data.shortest, errors)
            rows = np.pad(rows, ((0, 0), (0, z))) / np.sqrt(float(alpha))
            held = joint._replace(
                R=jnp.concatenate([joint.R, jnp.asarray(rows)]),
                z=jnp.concatenate([joint.z, jnp.asarray(targets / np.sqrt(float(alpha)))]),
            )
            posterior = jax.block_until_ready(_joint_posterior(held, *arrays))
    for k, fall in holes.items():
        a, b = basis.pairs[k]
        log.warning(
            "the energy of %s-%s falls by %.2g eV as the atoms come closer than in the data: give structures with "
            "shorter bonds of this pair, and keep dynamics away from there by dynamics.min_distance",
            basis.elements[a],
            basis.elements[b],
            fall,
        )
    posterior = posterior._replace(
        mean=posterior.mean.at[M:].add(data.centre), log_evidence=jnp.asarray(log_evidence, float)
    )
    if not np.isfinite(log_evidence) or not np.isfinite(np.asarray(posterior.mean)).all():
        raise ValueError("the fit is not finite: look for extreme labels or weights among the training structures")
    return posterior, active, hyperparameters


@partial(jax.jit, static_argnums=2)
def _joined(forces: Statistics, others: Statistics, columns: int) -> Statistics:
    """All rows, of the first columns alone."""
    table = jnp.concatenate(
        [jnp.concatenate([s.R[:, :columns], s.z[:, None]], axis=1) for s in (forces, others)]
        + [jnp.zeros((columns + 1, columns + 1))]
    )
    r = jnp.linalg.qr(table, mode="r")
    rss = forces.rss + others.rss + r[columns, columns] ** 2
    return Statistics(r[:columns, :columns], r[:columns, columns], rss, forces.n + others.n)


@jax.jit
def _joint_posterior(
    stats: Statistics, alpha: jax.Array, precision: jax.Array, e0: jax.Array, active: jax.Array
) -> Posterior:
    """Posterior of M coefficients with these prior precisions and Z energies with the prior covariance e0 e0^T."""
    M, z = len(precision), len(e0)
    scaled = stats._replace(R=jnp.concatenate([stats.R[:, :M], stats.R[:, M:] @ e0], axis=1))
    mask = jnp.concatenate([active, jnp.ones(z, bool)])
    found = bayes.posterior(scaled, alpha, jnp.concatenate([precision, jnp.ones(z)]), mask)
    return found._replace(
        mean=jnp.concatenate([found.mean[:M], e0 @ found.mean[M:]]),
        factor=jnp.concatenate([found.factor[:M], e0 @ found.factor[M:]]),
    )


def _family(basis: ACEBasis) -> Family:
    labels = basis.labels
    return Family(
        np.array([label.order for label in labels]),
        np.array(
            [label.factors[0][1] if label.centre is None else sum(f[1] for f in label.factors) for label in labels],
            float,
        ),
        np.array([0 if label.centre is None else sum(f[2] for f in label.factors) for label in labels], float),
    )


_SOLVERS = {"brr": jax.jit(bayes.brr), "ard": jax.jit(bayes.ard)}
_update = jax.jit(bayes.update)


@jax.jit
def _narrowed(factor: jax.Array, rows: jax.Array) -> jax.Array:
    """The root of a covariance after rows (k, P) in units of their noise."""
    P, one = len(factor), jnp.ones(())
    before = Posterior(jnp.zeros(P), factor, one, jnp.ones(P), one)
    return bayes.update(before, rows, jnp.zeros(len(rows))).factor


def _mask(model: Model) -> np.ndarray:
    """(P,) 1 for columns that the data inform."""
    P = len(model.spread.factor)
    return np.concatenate([model.active, np.ones(P - len(model.active))])


def _unlabelled_rows(model: Model, structures: Sequence[Atoms]) -> np.ndarray:
    """Rows of energies and forces in units of the noise of the model's spread."""
    from haljax.rows import all_rows

    root = np.sqrt(model.spread.precision)
    weights = [w or default for w, default in zip(model.settings.weights, (ENERGY_WEIGHT, FORCE_WEIGHT), strict=False)]
    arrays = jnp.asarray(model.radii), jnp.asarray(model.density)

    def of(example) -> np.ndarray:
        rows = all_rows(model.basis, *example, *arrays)
        n = int(np.sum(np.asarray(example[0].species) >= 0))
        energy = root[ENERGY] * weights[0] / n * np.asarray(rows.energy)[None]
        forces = root[FORCE] * weights[1] * np.asarray(rows.forces)[:n].reshape(3 * n, -1)
        return np.concatenate([energy, forces])

    found = in_threads(of, examples(model.basis, structures))
    return np.concatenate(list(found))[:, : len(model.spread.factor)]


# -------------------------------------------------------------------------------------------------- the data


def _check(basis: ACEBasis, structures: Sequence[Atoms]) -> None:
    for i, atoms in enumerate(structures):  # here, where i is the index in the caller's list
        from_atoms(atoms, basis.elements, index=i)
        labels(atoms, index=i)


def _isolated(atoms: Atoms, neighbours: Neighbours) -> bool:
    """A single atom with no image of itself in reach; the primitive cell of a crystal is none."""
    return len(atoms) == 1 and bool(np.all(neighbours.index < 0))


def _isolated_energies(structures: Sequence[Atoms], alone: Sequence[int]) -> dict[str, float]:
    """Energies of the isolated atoms by element, eV; ValueError where two of an element contradict each other."""
    found: dict[str, tuple[float, int]] = {}
    for i in alone:
        element, energy = structures[i].symbols[0], labels(structures[i], index=i).energy
        if not np.isfinite(energy):
            continue
        known, first = found.setdefault(element, (energy, i))
        if abs(energy - known) > 1e-3:
            raise ValueError(
                f"structures {first} and {i} are both isolated atoms of {element}, with energies {known:g} and "
                f"{energy:g} eV: remove one of them, or give e0 as a mapping"
            )
    return {element: energy for element, (energy, _) in found.items()}


def _prior_of_e0(
    basis: ACEBasis, settings: FitSettings, structures: list[Atoms], alone: list[int], used: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Centre (Z,) and factor of the covariance (Z, Z) of the prior of E0, eV."""
    e0, elements = settings.e0, basis.elements
    if isinstance(e0, Mapping):
        if missing := [e for e in elements if e not in e0]:
            raise ValueError(f"e0 lacks {', '.join(missing)}: give an energy in eV for every element")
        if bad := [e for e in elements if not np.isfinite(e0[e])]:
            raise ValueError(f"e0 of {', '.join(bad)} is NaN or infinite: give it in eV")
        return np.array([float(e0[e]) for e in elements]), E0_KNOWN * np.eye(len(elements))
    if e0 not in ("auto", "lsq", "isolated"):
        raise ValueError(f"e0 must be 'auto', 'lsq', 'isolated' or a mapping from element to eV, not {e0!r}")
    known = {} if e0 == "lsq" else _isolated_energies(structures, alone)
    if e0 == "isolated" and (missing := [e for e in elements if e not in known]):
        raise ValueError(
            f"e0='isolated' needs the energy of a single atom of {', '.join(missing)}, alone within the "
            "cutoff, among the training structures; add it, or use e0='auto' or a mapping"
        )
    counts = np.array([[np.sum(structures[i].symbols == e) for e in elements] for i in used], float)
    n_atoms = counts.sum(axis=1)
    found = [labels(structures[i]) for i in used]
    energies = np.array([label.energy if label.energy_weight > 0 else np.nan for label in found]) / n_atoms
    if not np.isfinite(energies).any() and len(known) < len(elements):
        raise ValueError("e0 needs energies, but no structure has one; give e0 as a mapping")
    absent = [e for e, column in zip(elements, counts.T, strict=True) if not column.any() and e not in known]
    if absent:
        log.warning(
            "no structure has %s: its energies are unknown, with error bars of some %g eV an atom",
            ", ".join(absent),
            E0_COMMON,
        )
    fixed = np.array([e in known for e in elements])
    centre = np.array([known.get(e, 0.0) for e in elements])
    if not fixed.all():
        # Least squares per atom; medians would do for outliers, but compositions may be many.
        here = np.isfinite(energies)
        share = counts[here] / n_atoms[here, None]
        rest = energies[here] - share @ centre
        good = np.abs(rest - np.median(rest)) <= 100 * np.median(np.abs(rest - np.median(rest))) + 100.0
        centre[~fixed] = np.linalg.lstsq(share[good][:, ~fixed], rest[good], rcond=1e-8)[0]
    own = E0_OWN + 0.25 * np.abs(centre)
    factor = np.linalg.cholesky(np.diag(own**2) + E0_COMMON**2 * np.ones((len(own), len(own))))
    factor[fixed] = 0
    factor[:, fixed] = 0
    factor[fixed, fixed] = E0_KNOWN
    if fixed.any() and not fixed.all():
        free = np.ix_(~fixed, ~fixed)
        covariance = np.diag(own[~fixed] ** 2) + E0_COMMON**2 * np.ones((np.sum(~fixed),) * 2)
        factor[free] = np.linalg.cholesky(covariance)
    return centre, factor


def _groups(
    basis: ACEBasis,
    radii: np.ndarray,
    density: np.ndarray,
    structures: Sequence[Atoms],
    seen: Sequence[tuple[System, Neighbours]],
) -> list[int]:
    """Which structures are left out together."""
    names = [str(atoms.info["group"]) if "group" in atoms.info else None for atoms in structures]
    arrays = jnp.asarray(radii), jnp.asarray(density)
    found = list(in_threads(lambda example: np.asarray(all_features(basis, *example, *arrays)), seen))
    means = np.stack(found)[:, : len(basis)] / np.array([[len(atoms)] for atoms in structures])
    size = np.abs(means).max(axis=0)
    return groups_of(names, means / np.where(size > 0, size, 1.0)).tolist()


def _absurd(
    structures: Sequence[Atoms],
    used: Sequence[int],
    table: Table,
    residuals: list[np.ndarray],
    fitted_e0: bool,
) -> tuple[int, str] | None:
    """The structure whose labels are furthest from what the others predict, where that is beyond belief.

    Where E0 is fitted, an energy far off moves the others' too, so that it stands out less than its size; but the
    forces of its structure are as well predicted as others', which those of a structure unlike the others are not.
    """
    if len(residuals) < 4:
        return None
    energy, force, size = np.full((3, len(used)), np.nan)
    for k, (block, residual) in enumerate(zip(table, residuals, strict=True)):
        raw, target = residual / block.weight, block.targets / block.weight
        if np.any(own := block.kind == ENERGY):
            energy[k] = np.abs(raw[own]).max() / len(structures[used[k]])
        if np.any(own := block.kind == FORCE):
            force[k], size[k] = np.sqrt(np.mean(raw[own] ** 2)), np.sqrt(np.mean(target[own] ** 2))
    if np.isfinite(force).any():
        k, usual = int(np.nanargmax(force)), float(np.nanmedian(force))
        if force[k] > max(ABSURD * usual, ABSURD_FORCE * float(np.nanmedian(size))):
            return used[k], f"has forces {force[k]:.3g} eV/Å from what the other structures predict"
    if np.isfinite(energy).any():
        k, usual = int(np.nanargmax(energy)), float(np.nanmedian(energy))
        alike = fitted_e0 and np.isfinite(force[k]) and force[k] < 5 * float(np.nanmedian(force))
        if energy[k] > max((5 if alike else ABSURD) * usual, ABSURD_ENERGY):
            return used[k], f"has an energy {energy[k]:.3g} eV per atom from what the other structures predict"
    return None


# -------------------------------------------------------------------------------------------------- models of schema 1


def _absorb_legacy(model: Model, blocks: Sequence[Block]) -> Statistics:
    M = len(model.basis)
    assert model.compressed is not None
    parts = [(b.rows[:, :M], b.targets - b.rows[:, M : M + model.basis.n_species] @ model.e0) for b in blocks]
    return accumulate(model.compressed, parts, sum(len(targets) for _, targets in parts))


def _refit_legacy(model: Model, new: list[Atoms]) -> Model:
    """A model of schema 1 knows its data in compressed form: radii and E0 stay, hyperparameters are learned again."""
    basis, settings = model.basis, model.settings
    blocks = list(blocks_of(basis, model.radii, model.density, Weights(*settings.weights), new))
    statistics = _absorb_legacy(model, blocks)
    with one_blas_thread():
        scale = jnp.asarray(basis.smoothness(settings.smoothness))
        found, info = jax.block_until_ready(_SOLVERS[settings.solver](seen_rows(statistics), scale))
    z = basis.n_species
    factor = jnp.pad(found.factor, ((0, z), (0, z)))
    posterior = found._replace(
        mean=jnp.concatenate([found.mean, jnp.asarray(model.e0)]),
        factor=factor,
        prior_precision=jnp.concatenate([found.prior_precision, jnp.ones(z)]),
    )
    alpha = float(found.noise_precision)
    weights = np.array(settings.weights)
    noise = alpha**-0.5 / np.where(weights > 0, weights, np.inf)
    return replace(
        model,
        posterior=posterior,
        spread=Spread(factor, np.full(3, alpha), np.ones(3), noise),
        active=np.asarray(info.active),
        compressed=statistics,
        structures=(*model.structures, *new),
        loo=LeaveOneOut(),
        n_structures=model.n_structures + len(new),
        table=None,
    )
