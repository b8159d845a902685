"""Parallel tempering: windows exchange their temperatures and biases, so that slow ones mix through fast ones."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from haljax.lattice.monte_carlo import (
    Conditions,
    Model,
    Potential,
    Record,
    State,
    bias,
    metropolis,
    passes,
    potential,
)


class Tempering(NamedTuple):
    """Result of `temper`, for W windows.

    Attributes
    ----------
    state : the batch; place i of it stands at condition ``condition[i]``.
    condition : (W,) int32.
    record : after each pass, ordered by condition.
    tried, accepted : (W, W) int32, exchanges between conditions i < j.
    """

    state: State
    condition: jax.Array
    record: Record
    tried: jax.Array
    accepted: jax.Array


def ladder(n: int) -> np.ndarray:
    """(2, P, 2) pairs of neighbours of a chain of n conditions, even ones and odd ones in turn.

    An exchange of a condition with itself does nothing and fills up the shorter half.
    """
    pairs = np.zeros((2, max(n // 2, 1), 2), np.int32)
    for phase in range(2):
        first = np.arange(phase, n - 1, 2)
        pairs[phase, : len(first)] = np.stack([first, first + 1], axis=1)
    return pairs


def temper(
    key: jax.Array,
    model: Model,
    conditions: Conditions,
    state: State,
    condition: Any,
    n_rounds: int,
    passes_per_round: int,
    pairs: Any = None,
) -> Tempering:
    """``n_rounds`` times some passes and then one exchange of each pair in turn. Pure; jit with the two numbers static.

    An exchange of conditions i and j between states x and y is accepted with probability
    ``min(1, exp(u_i(x) + u_j(y) - u_i(y) - u_j(x)))``, u the whole biased potential over kT. Each condition then has
    its own distribution as before. Source: Hukushima & Nemoto, J. Phys. Soc. Jpn. 65, 1604 (1996),
    doi:10.1143/JPSJ.65.1604; in the bias: Sugita, Kitao & Okamoto, J. Chem. Phys. 113, 6042 (2000),
    doi:10.1063/1.1308516.

    Parameters
    ----------
    conditions : of W windows; neighbours in the order given are exchanged unless ``pairs`` says otherwise.
    state : from `monte_carlo.start`. condition : (W,) which condition each of its windows has; ``arange(W)`` first.
    pairs : (phases, P, 2) ints, one phase a round in turn; each condition at most once in a phase. `ladder` by default.
    """
    W = len(conditions.temperature)
    pairs = jnp.asarray(ladder(W) if pairs is None else pairs, jnp.int32)
    shape = jnp.shape(conditions.kappa)
    conditions = Conditions(
        jnp.broadcast_to(jnp.asarray(conditions.temperature), shape[:1]),
        *(jnp.broadcast_to(jnp.asarray(v), shape) for v in conditions[1:]),
    )
    pot = potential(model, conditions)
    counters = jnp.zeros((n_rounds, passes_per_round, len(state.counters), W), jnp.int32)
    energy = jnp.zeros((n_rounds, passes_per_round, W), state.energy.dtype)

    def one_round(r, carry):
        state, condition, counters, energy, tried, accepted = carry
        here = Conditions(*(v[condition] for v in conditions))
        state, record = passes(model, here, state, passes_per_round, passes_per_round)
        place = jnp.argsort(condition)
        counters = counters.at[r].set(record.counters[:, :, place])
        energy = energy.at[r].set(record.energy[:, place])
        i, j = pairs[(state.n_passes // passes_per_round) % len(pairs)].T  # goes on from call to call
        x, y = place[i], place[j]
        reduced = partial(_reduced, pot, state)
        exponent = reduced(i, y) + reduced(j, x) - reduced(i, x) - reduced(j, y)
        random = jax.random.bits(jax.random.fold_in(key, state.n_passes), i.shape, jnp.uint32)
        accept = metropolis(exponent, random) & (i != j)
        low, high = jnp.minimum(i, j), jnp.maximum(i, j)
        tried = tried.at[low, high].add((i != j).astype(jnp.int32))
        accepted = accepted.at[low, high].add(accept.astype(jnp.int32))
        place = place.at[jnp.where(accept, i, W)].set(y, mode="drop").at[jnp.where(accept, j, W)].set(x, mode="drop")
        condition = jnp.argsort(place).astype(jnp.int32)
        return state, condition, counters, energy, tried, accepted

    zeros = jnp.zeros((W, W), jnp.int32)
    carry = state, jnp.asarray(condition, jnp.int32), counters, energy, zeros, zeros
    state, condition, counters, energy, tried, accepted = jax.lax.fori_loop(0, n_rounds, one_round, carry)
    record = Record(counters.reshape(-1, *counters.shape[2:]), energy.reshape(-1, W))
    return Tempering(state, condition, record, tried, accepted)


def _reduced(pot: Potential, state: State, condition: jax.Array, place: jax.Array) -> jax.Array:
    """(P,) potential over kT of the states at ``place`` under ``condition``, but for a constant of the condition."""
    own = pot._replace(intercept=pot.intercept[:, condition], slope=pot.slope[:, condition])
    return pot.beta[condition] * (state.energy[place] + bias(own, state.counters[:, place]))
