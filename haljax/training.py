"""From labelled structures to a model: core radii, E0, prior and noise by evidence; updates and selection."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from haljax import bayes
from haljax.ace import ACEBasis, GrowingBasis
from haljax.ace.density import CHANNELS
from haljax.bayes import Posterior, one_blas_thread, require_x64
from haljax.devices import in_threads
from haljax.fitting import fitted
from haljax.growth import grown
from haljax.model import FitSettings, Model
from haljax.one_body import isolated
from haljax.rows import (
    ENERGY,
    FORCE,
    Weights,
    all_features,
    all_rows,
    blocks_of,
    examples,
    shortest_distances,
    too_close,
)
from haljax.schema1 import absorb, refit_compressed
from haljax.structures import bucket, from_atoms, labels, renamed, strange, unused
from haljax.structures.system import fingerprint, structure_name

if TYPE_CHECKING:
    from ase import Atoms

log = logging.getLogger(__name__)

# 1 / (1.7 meV/atom), 1 / (0.1 eV/Å), 1 / (0.03 eV/atom): rows of forces outnumber those of energies 3 N to one.
# An energy weight of 600 was compared with 300 on 75 small training sets of benchmarks/_small_sets.py: energy errors
# fall by 2.4 % (silicon and germanium: by 6 to 18 %), force errors stay the same.
ENERGY_WEIGHT, FORCE_WEIGHT, STRESS_WEIGHT = 600.0, 10.0, 30.0
SMOOTHNESS = 2.0
SOLVERS = ("auto", "brr", "ard")


def fit(
    basis: ACEBasis | GrowingBasis,
    train: Sequence[Atoms],
    e0: str | Mapping[str, float] = "auto",
    energy_weight: float = ENERGY_WEIGHT,
    force_weight: float = FORCE_WEIGHT,
    stress_weight: float = STRESS_WEIGHT,
    solver: str = "auto",
    smoothness: float = SMOOTHNESS,
    keys: Mapping[str, str] | None = None,
) -> Model:
    """Fit a linear ACE potential to labelled structures by maximum evidence.

    The defaults are chosen to predict best: the radii of the repulsive core follow the shortest distances in the
    data, prior and noise are learned, E0 is fitted together with the coefficients, and the standard deviations are
    calibrated by leaving structures out. ``Model.choice`` says in one line what was chosen.

    Parameters
    ----------
    basis : of `haljax.ace_basis`. Where its degree, order or cutoff is "auto", they are chosen: from a small basis to
        the one that leave-one-out errors support, within its budget.
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
    keys : names under which the structures hold their labels, such as {"energy": "xtb_energy", "forces":
        "xtb_forces"}, of energy, forces, stress and virial; usual spellings are found without.

    What looks like a label and was not read, and values that are most likely in another unit, are warned of.

    Raises
    ------
    ValueError : no structures, labels missing, contradictory or not finite, an element the basis lacks, an unknown
        solver, a negative weight, nothing that has a weight, isolated atoms that contradict each other.
    RuntimeError : x64 is off.
    """
    require_x64()
    if solver not in SOLVERS:
        raise ValueError(f"solver must be {', '.join(map(repr, SOLVERS[:-1]))} or {SOLVERS[-1]!r}, not {solver!r}")
    train = renamed(train, keys)
    if not train:
        raise ValueError("there is nothing to fit: give at least one labelled structure")
    for name, value in (("energy", energy_weight), ("force", force_weight), ("stress", stress_weight)):
        if not 0 <= value < np.inf:
            raise ValueError(f"{name}_weight must be a finite number >= 0, not {value}")
    if not 0 <= smoothness < np.inf:
        raise ValueError(f"smoothness must be a finite number >= 0, not {smoothness}")
    _check(basis, train, keys)
    kept = e0 if isinstance(e0, str) else {str(k): float(v) for k, v in e0.items()}
    settings = FitSettings(energy_weight, force_weight, stress_weight, solver, smoothness, kept)
    if isinstance(basis, GrowingBasis):
        return grown(basis, settings, train)
    return fitted(basis, settings, train)


def update(model: Model, new: Sequence[Atoms], keys: Mapping[str, str] | None = None) -> Model:
    """The model after more labelled structures, at fixed core radii, weights and hyperparameters.

    A rank-k update of the posterior: equal to a refit at the same radii and hyperparameters. The covariance of the
    standard deviations is updated likewise; their noise and scale, and the leave-one-out errors, remain those of the
    last fit until `refit`. A structure with atoms closer than the core allows is left out, with a warning that names
    it: `refit` moves the core. So is one that the model has learned already. ``keys`` as for `fit`.
    """
    new = renamed(new, keys)
    if not new:
        raise ValueError("there is nothing to learn: give at least one labelled structure")
    _check(model.basis, new, keys)
    repeated = _repeated(model, new)
    fresh = [i for i in range(len(new)) if i not in repeated]
    n_old = len(model.structures)
    seen = list(examples(model.basis, new))
    close = too_close(model.basis, model.radii, shortest_distances(model.basis, seen), new)
    close = {i: why for i, why in close.items() if i not in repeated}
    for why in close.values():
        log.warning("%s is closer than the core allows and was not learned; refit, which moves the core", why)
    used = [i for i in fresh if i not in close and not isolated(new[i], seen[i][1])]
    weights = Weights(*model.settings.weights)
    arrays = model.radii, model.density, weights, [new[i] for i in used], [seen[i] for i in used]
    blocks = list(blocks_of(model.basis, *arrays))
    ignored = dict(model.ignored) | {n_old + fresh.index(i): why for i, why in close.items()}
    grown = replace(
        model,
        structures=(*model.structures, *(new[i] for i in fresh)),
        ignored=ignored,
        n_structures=model.n_structures + len(fresh) - len(close),
        table=None,
        compressed=None if model.compressed is None else absorb(model, blocks),
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


def refit(model: Model, new: Sequence[Atoms], grow: GrowingBasis | None = None) -> Model:
    """The model after more labelled structures, with core radii, E0 and hyperparameters learned again.

    Equal to a fit of all structures, but that the search for hyperparameters starts from the present ones.

    Parameters
    ----------
    grow : what may be chosen of the basis; the search goes on from the model's own. None keeps it.
    """
    _check(model.basis, new)
    repeated = _repeated(model, new)
    fresh = [atoms for i, atoms in enumerate(new) if i not in repeated]
    if model.compressed is not None:
        return refit_compressed(model, fresh)
    everything = [*model.structures, *fresh]
    found = fitted(model.basis, model.settings, everything, model)
    return found if grow is None else grown(grow, model.settings, everything, found)


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
    ValueError : the pool is empty or smaller than ``n``, n is negative, a structure that the basis cannot describe.
    """
    pool = list(pool)
    if not pool:
        raise ValueError("the pool is empty: give at least one structure to select from")
    if n < 0:
        raise ValueError(f"n = {n} structures cannot be selected")
    for i, atoms in enumerate(pool):
        from_atoms(atoms, model.basis.elements, index=i)
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


def _repeated(model: Model, new: Sequence[Atoms]) -> set[int]:
    """Indices of structures that the model has learned, and that would count twice; each is named in a warning."""
    known = set(map(fingerprint, model.structures))
    found = {i for i, atoms in enumerate(new) if fingerprint(atoms) in known}
    for i in sorted(found):
        log.warning("%s is in the model already and is not learned again", structure_name(new[i], i))
    return found


def _check(basis: ACEBasis | GrowingBasis, structures: Sequence[Atoms], keys: Mapping[str, str] | None = None) -> None:
    known = []
    for i, atoms in enumerate(structures):  # here, where i is the index in the caller's list
        from_atoms(atoms, basis.elements, index=i)
        known.append(labels(atoms, index=i))
    for line in [*unused(structures, keys), *strange(structures, known)]:
        log.warning("%s", line)


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
