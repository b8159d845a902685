"""Models of schema 1: they know their data in compressed form alone, so radii and E0 stay as they were."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from haljax.bayes import Statistics, accumulate, one_blas_thread, seen_rows
from haljax.fitting import SOLVERS
from haljax.model import Model
from haljax.rows import Block, Weights, blocks_of
from haljax.spread import LeaveOneOut, Spread

if TYPE_CHECKING:
    from ase import Atoms


def absorb(model: Model, blocks: Sequence[Block]) -> Statistics:
    M = len(model.basis)
    assert model.compressed is not None
    parts = [(b.rows[:, :M], b.targets - b.rows[:, M : M + model.basis.n_species] @ model.e0) for b in blocks]
    return accumulate(model.compressed, parts, sum(len(targets) for _, targets in parts))


def refit_compressed(model: Model, new: list[Atoms]) -> Model:
    """A model of schema 1 knows its data in compressed form: radii and E0 stay, hyperparameters are learned again."""
    basis, settings = model.basis, model.settings
    blocks = list(blocks_of(basis, model.radii, model.density, Weights(*settings.weights), new))
    statistics = absorb(model, blocks)
    with one_blas_thread():
        scale = jnp.asarray(basis.smoothness(settings.smoothness))
        found, info = jax.block_until_ready(SOLVERS[settings.solver](seen_rows(statistics), scale))
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
