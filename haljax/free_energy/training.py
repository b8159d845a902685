"""Training an ensemble of networks on derivatives of a free energy.

The loss is the mean square error of mu, of energies through e = d(beta g)/d beta and of Hessians, each relative to the
spread of its kind of label and weighted by its error bar. What does not depend on the parameters (invariants, their
derivatives, the ideal term) is computed once; then a block of epochs is one program. It serves all members, all
numbers of labels up to the next power of two, and all settings that are numbers. Shuffles come from the host, since
sorting and random bits in that program were a third of its compilation; and a member's parameters are one vector, so
that the optimizer is one loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from haljax.free_energy.data import Labels
from haljax.free_energy.network import (
    Network,
    Params,
    Scaling,
    Surface,
    features,
    ideal,
    linear_features,
    perceptrons,
    reduced_temperature,
    scaling_of,
)

BLOCK = 20  # epochs in one call of the compiled program
OPTIMIZERS = ("adam", "adamw", "rmsprop")
NOTHING_LEARNED = 100.0  # loss; to predict the mean of every kind of label gives 1
LEAST_GAIN = 1e-4  # of a loss, relative, which keeps the learning rate
LEAST_RATE = 1e-3  # of the first learning rate
RUNNING, EARLY, DIVERGED = 0, 1, 2


@dataclass(frozen=True)
class TrainingSettings:
    """How to train.

    Attributes
    ----------
    optimizer : "adam", "adamw" or "rmsprop".
    learning_rate : of the first epoch.
    weight_decay : of "adamw".
    batch : labels in a step of the optimizer; None for an eighth of their number's next power of two, at least 32 and
        at most 256.
    epochs : the most.
    patience : epochs without a better validation loss after which a member stops.
    plateau_patience, plateau_factor : after that many epochs without, the learning rate falls by this factor.
    validation : share of the labels held out, each member its own; 0 monitors the training loss.
    error_floor : added in quadrature to error bars, in units of the spread of the labels: what the network need not
        resolve, and the error of a label of unknown error.
    energy_weight, hessian_weight : of these labels, relative to mu; 0 leaves them out. Energies need a network with
        temperature as an input, and are left out without.
    dtype : "float32" or "float64", of the training alone.
    vmapped : whether members train side by side under vmap, or one after another; None for vmap except on CPUs,
        where products of small batched matrices are slower than single ones.

    Raises
    ------
    ValueError : a value out of range, and the range.
    """

    optimizer: str = "adamw"
    learning_rate: float = 2e-2
    weight_decay: float = 1e-2
    batch: int | None = None
    epochs: int = 1000
    patience: int = 300
    plateau_patience: int = 50
    plateau_factor: float = 0.5
    validation: float = 0.1
    error_floor: float = 0.03
    energy_weight: float = 1.0
    hessian_weight: float = 0.1
    dtype: str = "float32"
    vmapped: bool | None = None

    def __post_init__(self) -> None:
        def check(name: str, good: bool, range_: str) -> None:
            if not good:
                raise ValueError(f"{name} is {getattr(self, name)!r}: give {range_}")

        check("optimizer", self.optimizer in OPTIMIZERS, f"one of {', '.join(OPTIMIZERS)}")
        for name in ("learning_rate", "error_floor"):
            check(name, getattr(self, name) > 0, "a positive number")
        for name in ("weight_decay", "energy_weight", "hessian_weight"):
            check(name, getattr(self, name) >= 0, "a number >= 0")
        for name in ("epochs", "patience", "plateau_patience"):
            check(name, getattr(self, name) >= 1, "an integer >= 1")
        check("batch", self.batch is None or self.batch >= 1, "an integer >= 1, or None")
        check("plateau_factor", 0 < self.plateau_factor < 1, "a number between 0 and 1")
        check("validation", 0 <= self.validation < 1, "a number in [0, 1)")
        check("dtype", self.dtype in ("float32", "float64"), "float32 or float64")


class History(NamedTuple):
    """What happened in a training of K members, on the host.

    Attributes
    ----------
    training, validation : (K, epochs) losses; NaN after a member's end.
    learning_rate : (K, epochs).
    best_epoch : (K,) after which the kept parameters were found; -1 where nothing improved on the start.
    best_validation : (K,) the loss of the kept parameters.
    stopped : for each member why: "early stopping", "all epochs", "diverged".
    restarted : (K,) bool: it diverged, and this is its second training, at a tenth of the learning rate.
    used : (K,) bool: it is in the surface. Members that diverged twice are not.
    """

    training: np.ndarray
    validation: np.ndarray
    learning_rate: np.ndarray
    best_epoch: np.ndarray
    best_validation: np.ndarray
    stopped: tuple[str, ...]
    restarted: np.ndarray
    used: np.ndarray


class _Rows(NamedTuple):
    """Labels as the loss needs them; leading axis n, padded with rows of no weight. Energies eV."""

    z: jax.Array  # (n, F) scaled invariants
    jacobian: jax.Array  # (n, F, d) dz/d eta
    curvature: jax.Array  # (n, F, d, d), or (n, 0, 0, 0) without Hessian labels
    tau: jax.Array  # (n,)
    slope: jax.Array  # (n,) beta dtau/dbeta
    mu: jax.Array  # (n, d) beyond the ideal term; known entries, else 0
    mu_weight: jax.Array  # (n, d) 1/eV^2, 0 where unknown; so that the loss is the mean over rows of weighted squares
    energy: jax.Array  # (n,)
    energy_weight: jax.Array
    hessian: jax.Array  # (n, d, d)
    hessian_weight: jax.Array


class _Program(NamedTuple):
    """What a compiled training depends on, beside the network and shapes."""

    rmsprop: bool
    batch: int
    energies: bool
    hessians: bool


class _Limits(NamedTuple):
    """Settings of a compiled training that are numbers."""

    learning_rate: Any
    weight_decay: Any
    epochs: Any
    patience: Any
    plateau_patience: Any
    plateau_factor: Any


class _State(NamedTuple):
    """Of one member; parameters as one vector, see `_layers`."""

    trained: jax.Array
    optimizer: Any
    rate: jax.Array  # in units of the first learning rate
    plateau_loss: jax.Array  # the best, but for gains too small to count
    waited: jax.Array  # epochs since it, or since the rate fell
    best: jax.Array
    best_loss: jax.Array
    best_epoch: jax.Array
    epoch: jax.Array
    status: jax.Array


def train(
    key: jax.Array,
    network: Network,
    labels: Labels,
    *,
    members: int | Sequence[int] = 1,
    settings: TrainingSettings | None = None,
    start: Params | None = None,
) -> tuple[Surface, History]:
    """An ensemble of networks trained on labels.

    Every member has its own start, split into training and validation, and order of batches, from
    ``fold_in(key, member)``; so a member trained alone is the same, to rounding. The parameters with the least
    validation loss are kept. A member whose loss becomes infinite or NaN, or never falls below 100 times the
    variance of the labels, has diverged: it is trained once more at a tenth of the learning rate, and left out when
    that fails too.

    Parameters
    ----------
    members : how many, or the numbers of those to train.
    start : parameters to go on from, with a leading axis of members, as in ``Surface.params``; their scaling stays.
        Otherwise random, and scaled by these labels.

    Raises
    ------
    ValueError : labels that have NaN where a number is needed, that know nothing in a row, are too few, or have
        several temperatures where the network takes none; a start of other members.
    RuntimeError : all members diverged.
    """
    settings = settings or TrainingSettings()
    _check(network, labels, settings)
    ids = np.arange(members) if isinstance(members, int) else np.asarray(members, int)
    if ids.size == 0:
        raise ValueError("no members to train: give a number >= 1")
    if start is not None and start.offset.shape != ids.shape:
        raise ValueError(f"the start has {start.offset.shape} members, but {ids.size} are to be trained")
    T = np.asarray(labels.temperature, float)
    if start is None:
        scaling = scaling_of(network, labels.eta, T, labels.mu)
    else:
        scaling = jax.tree.map(lambda a: np.asarray(a)[0], start.scaling)
        if not network.temperature and abs(float(scaling.temperature) / T[0] - 1) > 1e-5:
            raise ValueError(f"the start was trained at {float(scaling.temperature):g} K, the labels are at {T[0]:g} K")
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, ids)
    trained = None if start is None else (start.layers, start.offset)
    found, history = _train(keys, network, scaling, labels, settings, trained)
    again = np.flatnonzero(~history.used)
    if again.size:
        slower = replace(settings, learning_rate=settings.learning_rate / 10)
        keys = jax.vmap(jax.random.fold_in, (0, None))(keys[again], 1)
        trained = None if trained is None else jax.tree.map(lambda a: np.asarray(a)[again], trained)
        second, after = _train(keys, network, scaling, labels, slower, trained)
        for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(second), strict=True):
            ours[again] = theirs
        history = _merge(history, after, again)
    if not history.used.any():
        raise RuntimeError(
            f"all {ids.size} members diverged, also at a learning rate of {settings.learning_rate / 10:g}: lower "
            "learning_rate, and look at the labels for outliers"
        )
    keep = np.flatnonzero(history.used)
    layers, offset = jax.tree.map(lambda a: jnp.asarray(a[keep], float), found)
    repeated = jax.tree.map(lambda a: jnp.asarray(np.repeat(np.asarray(a)[None], keep.size, 0), float), scaling)
    return Surface(network, Params(layers, offset, repeated)), history


def _check(network: Network, labels: Labels, settings: TrainingSettings) -> None:
    n = len(labels)
    if n < 2:
        raise ValueError(f"{n} labels cannot train a network: give at least 2")
    d = network.dimension
    if labels.eta.shape != (n, d):
        raise ValueError(f"the labels have {labels.eta.shape[1]} order parameters, the network {d}")

    def first(bad: np.ndarray, message: str) -> None:
        rows = np.flatnonzero(bad.reshape(n, -1).any(1))
        if rows.size:
            raise ValueError(
                f"row {rows[0]} of the labels: {message} ({rows.size} such rows of {n}); drop or mend them"
            )

    mu, energy, hessian = (np.asarray(a, float) for a in (labels.mu, labels.energy, labels.hessian))
    T = np.asarray(labels.temperature, float)
    first(~np.isfinite(np.asarray(labels.eta, float)), "eta is not finite")
    first(~(np.isfinite(T) & (T > 0)), "the temperature is not a positive number")
    for name in ("mu", "energy", "hessian"):
        first(np.isinf(np.asarray(getattr(labels, name))), f"{name} is infinite")
        error = np.asarray(getattr(labels, f"{name}_error"))
        first((error < 0) | np.isinf(error), f"{name}_error is negative or infinite (NaN or 0 say unknown)")
    nothing = np.isnan(mu).all(1)
    if network.temperature and settings.energy_weight:
        nothing &= np.isnan(energy)
    if settings.hessian_weight:
        nothing &= np.isnan(hessian).all((1, 2))
    first(nothing, "mu is NaN in all components, and no other label that is used is known")
    if np.isnan(mu).all():
        raise ValueError("no label has a known mu: the network learns the gradient")
    if not network.temperature and np.ptp(T) > 1e-5 * T[0]:
        raise ValueError(
            f"the labels are at {T.min():g} to {T.max():g} K, but temperature is not an input of the network: set "
            "temperature=True, or train on one temperature"
        )


def _rows(network: Network, scaling: Scaling, labels: Labels, settings: TrainingSettings, size: int) -> _Rows:
    n, d = labels.eta.shape
    padded = lambda a, fill=0.0: np.concatenate([np.asarray(a, float), np.full((size - n, *a.shape[1:]), fill)])
    eta, T = padded(labels.eta), padded(labels.temperature, float(scaling.temperature))
    if size > n:
        eta[n:] = eta[0]
    hessians = bool(settings.hessian_weight) and bool(np.isfinite(labels.hessian).any())
    z, jacobian, curvature, tau, slope, ideal_mu, ideal_hessian = _geometry(
        network, scaling, jnp.asarray(eta), jnp.asarray(T), hessians
    )
    # Spreads are those of what is learned, beyond the ideal term, which one label near the boundary would decide. They
    # are pooled over the order parameters that some symmetry may exchange: a component that is zero in all labels so
    # far must not get an infinite weight.
    gradients = linear_features(network)[1]
    along = np.diag(np.linalg.pinv(gradients) @ gradients) if len(gradients) else np.zeros(d)
    kind = np.where(along > 0.5, 1 + np.arange(d), 0)

    def weighed(
        value: Any, error: Any, kinds: np.ndarray, weight: float, about_zero: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        value, error = np.asarray(value, float), np.asarray(error, float)
        known = np.isfinite(value)
        spread = np.ones(value.shape[1:])
        for k in np.unique(kinds):
            of = (kinds == k) & np.ones(value.shape[1:], bool)
            centred = np.where(known, value, np.nan)[:, of]
            count = known[:, of].sum(0)
            mean = 0.0 if about_zero else np.where(known[:, of], centred, 0).sum(0)[None] / np.maximum(count, 1)
            total = np.nansum((centred - mean) ** 2)
            size = np.sqrt(total / max(count.sum(), 1))
            spread[of] = size if size > 1e-12 else 1.0
        if about_zero:  # second derivatives that vanish, of composition by order say, must not count infinitely
            diagonal = np.diagonal(spread)
            spread = np.maximum(spread, 0.1 * np.sqrt(diagonal[:, None] * diagonal[None, :]))
        w = known / ((settings.error_floor * spread[None]) ** 2 + np.where(np.isfinite(error), error, 0.0) ** 2)
        w *= weight * n / max((w * spread[None] ** 2).sum(), 1e-300)
        return padded(np.where(known, value, 0.0)), padded(w)

    mu, mu_weight = weighed(labels.mu - np.asarray(ideal_mu)[:n], labels.mu_error, kind, 1.0)
    energy, energy_weight = weighed(labels.energy, labels.energy_error, np.zeros((), int), settings.energy_weight)
    pair = kind[:, None] * (d + 1) + kind[None, :]
    bend = labels.hessian - np.asarray(ideal_hessian)[:n]
    hessian, hessian_weight = weighed(bend, labels.hessian_error, pair, settings.hessian_weight, about_zero=True)
    rows: Any = _Rows(
        z, jacobian, curvature, tau, slope, jnp.asarray(mu), jnp.asarray(mu_weight), jnp.asarray(energy),
        jnp.asarray(energy_weight), jnp.asarray(hessian), jnp.asarray(hessian_weight),
    )  # fmt: skip
    return jax.tree.map(lambda a: jnp.asarray(a, settings.dtype), rows)


@partial(jax.jit, static_argnums=(0, 4))
def _geometry(network: Network, scaling: Scaling, eta: jax.Array, T: jax.Array, hessians: bool) -> tuple:
    n, d = eta.shape
    of = partial(features, network, scaling)
    tau = reduced_temperature(scaling, T)
    slope = scaling.temperature / T / scaling.width
    curvature = jax.vmap(jax.jacfwd(jax.jacfwd(of)))(eta) if hessians else jnp.zeros((n, 0, 0, 0))
    ideal_mu = jax.vmap(jax.grad(partial(ideal, network)))(eta, T)
    ideal_hessian = jax.vmap(jax.hessian(partial(ideal, network)))(eta, T) if hessians else jnp.zeros((n, d, d))
    return of(eta), jax.vmap(jax.jacfwd(of))(eta), curvature, tau, slope, ideal_mu, ideal_hessian


def _squares(program: _Program, network: Network, params: Params, row: _Rows, z0: jax.Array) -> jax.Array:
    """Weighted squares of one row's errors."""
    of = partial(perceptrons, network, params)
    if program.energies:
        points = jnp.stack([row.z, z0]) if network.anchored else row.z[None]  # one program for both
        values, (forces, rises) = jax.vmap(jax.value_and_grad(of, (0, 1)), (0, None))(points, row.tau)
        force = forces[0]
    else:
        force = jax.grad(of)(row.z, row.tau)
    total = jnp.sum(row.mu_weight * (force @ row.jacobian - row.mu) ** 2)
    if program.energies:
        energies = values + row.slope * rises
        energy = energies[0] + params.offset * params.scaling.energies[0]
        if network.anchored:
            energy = energy - energies[1]
        total = total + row.energy_weight * (energy - row.energy) ** 2
    if program.hessians:
        along = lambda direction: jax.jvp(lambda z: jax.grad(of)(z, row.tau), (row.z,), (direction,))[1]
        hessian = row.jacobian.T @ jax.vmap(along, 1, 1)(row.jacobian) + jnp.tensordot(force, row.curvature, 1)
        total = total + jnp.sum(row.hessian_weight * (hessian - row.hessian) ** 2)
    return total


def _optimizer(program: _Program) -> optax.GradientTransformation:
    return optax.scale_by_rms() if program.rmsprop else optax.scale_by_adam()


@partial(jax.jit, static_argnums=(0, 1))
def _init(network: Network, program: _Program, keys: jax.Array, trained: Any, scaling: Scaling) -> _State:
    """States of all members, from (layers, offset); random where `trained` is None."""

    def one(key: jax.Array, trained: Any) -> _State:
        if trained is None:
            fresh = network.init(key, scaling, scaling.mean.dtype)
            trained = (fresh.layers, fresh.offset)
        trained = jnp.concatenate([a.ravel() for a in jax.tree.leaves(trained)])
        zero, worst = jnp.zeros((), jnp.int32), jnp.array(jnp.inf, trained.dtype)
        return _State(
            trained, _optimizer(program).init(trained), jnp.ones((), trained.dtype), worst, zero, trained, worst,
            zero - 1, zero, zero + RUNNING,
        )  # fmt: skip

    return jax.vmap(one, (0, None if trained is None else 0))(keys, trained)


def _layers(network: Network, vector: Any) -> Any:
    """(layers, offset) of parameters (..., P), in numpy of those in numpy."""
    like = jax.eval_shape(lambda: network.init(jax.random.key(0)))
    leaves, tree = jax.tree.flatten((like.layers, like.offset))
    ends = np.cumsum([a.size for a in leaves])[:-1].tolist()
    parts = (np if isinstance(vector, np.ndarray) else jnp).split(vector, ends, axis=-1)
    lead = vector.shape[:-1]
    return jax.tree.unflatten(tree, [p.reshape(lead + a.shape) for p, a in zip(parts, leaves, strict=True)])


@partial(jax.jit, static_argnums=(0, 1))
def _block(
    network: Network,
    program: _Program,
    states: _State,
    shuffles: jax.Array,
    held: jax.Array,
    rows: _Rows,
    scaling: Scaling,
    counts: tuple[jax.Array, jax.Array],
    limits: _Limits,
) -> tuple[_State, tuple[jax.Array, jax.Array, jax.Array]]:
    """Some epochs of K members.

    Parameters
    ----------
    shuffles : (K, epochs, size) for every epoch the training rows in their order, then padding.
    held : (K, room) validation rows, then padding.
    counts : numbers of training and validation rows.
    """
    optimizer = _optimizer(program)
    n_train, n_held = counts
    B = program.batch
    z0 = features(network, scaling, jnp.zeros(network.dimension, scaling.mean.dtype))
    steps = -(-n_train // B)

    def loss(trained: jax.Array, index: jax.Array, valid: jax.Array) -> jax.Array:
        layers, offset = _layers(network, trained)
        params = Params(layers, offset, scaling)
        batch = jax.tree.map(lambda a: a[index], rows)
        squares = jax.vmap(lambda row: _squares(program, network, params, row, z0))(batch)
        return jnp.sum(jnp.where(valid, squares, 0)) / jnp.maximum(jnp.sum(valid), 1)

    def epoch(state: _State, shuffled: jax.Array, held: jax.Array) -> tuple[_State, tuple]:
        rate = limits.learning_rate * state.rate

        def step(i: jax.Array, carry: tuple) -> tuple:
            trained, inner, total = carry
            # batches of equal size, but for one
            low, high = i * n_train // steps, (i + 1) * n_train // steps
            place = low + jnp.arange(B)
            index = shuffled[jnp.minimum(place, len(shuffled) - 1)]
            value, gradient = jax.value_and_grad(loss)(trained, index, place < high)
            updates, inner = optimizer.update(gradient, inner, trained)
            return trained - rate * (updates + limits.weight_decay * trained), inner, total + value / steps

        zero = jnp.zeros((), rows.z.dtype)
        trained, inner, training = jax.lax.fori_loop(0, steps, step, (state.trained, state.optimizer, zero))
        validation = jnp.where(n_held > 0, loss(trained, held, jnp.arange(len(held)) < n_held), training)
        better = validation < state.best_loss
        best, best_loss, best_epoch = jax.tree.map(
            lambda a, b: jnp.where(better, a, b),
            (trained, validation, state.epoch),
            (state.best, state.best_loss, state.best_epoch),
        )
        gained = validation < (1 - LEAST_GAIN) * state.plateau_loss
        waited = jnp.where(gained, 0, state.waited + 1)
        falls = waited >= limits.plateau_patience
        status = jnp.where(
            ~jnp.isfinite(validation) | ~jnp.isfinite(training),
            DIVERGED,
            jnp.where(state.epoch - best_epoch >= limits.patience, EARLY, RUNNING),
        ).astype(jnp.int32)
        new = _State(
            trained, inner, jnp.where(falls, jnp.maximum(limits.plateau_factor * state.rate, LEAST_RATE), state.rate),
            jnp.where(gained, validation, state.plateau_loss), jnp.where(falls, 0, waited), best, best_loss,
            best_epoch, state.epoch + 1, status,
        )  # fmt: skip
        running = (state.status == RUNNING) & (state.epoch < limits.epochs)
        new = jax.tree.map(lambda a, b: jnp.where(running, a, b), new, state)
        seen = lambda a: jnp.where(running, a, jnp.nan)
        return new, (seen(training), seen(validation), seen(rate))

    def member(state: _State, shuffles: jax.Array, held: jax.Array) -> tuple[_State, tuple]:
        return jax.lax.scan(lambda state, shuffled: epoch(state, shuffled, held), state, shuffles)

    return jax.vmap(member)(states, shuffles, held)


def _held(n: int, settings: TrainingSettings) -> int:
    """How many of n labels are held out."""
    return min(n - 1, max(1, round(settings.validation * n))) if settings.validation else 0


def _shuffles(rng: np.random.Generator, rows: np.ndarray, size: int) -> np.ndarray:
    """(BLOCK, size) the rows in another order for every epoch, then padding."""
    order = np.stack([rng.permutation(rows) for _ in range(BLOCK)])
    return np.pad(order, ((0, 0), (0, size - len(rows)))).astype(np.int32)


def _train(
    keys: jax.Array, network: Network, scaling: Scaling, labels: Labels, settings: TrainingSettings, trained: Any
) -> tuple[Any, History]:
    """The best parameters (layers, offset) of all members, on the host; `used` says which are good."""
    n, K = len(labels), len(keys)
    n_held, size = _held(n, settings), room(n)
    rows = _rows(network, scaling, labels, settings, size)
    program = _Program(
        settings.optimizer == "rmsprop",
        settings.batch or int(np.clip(size // 8, 32, 256)),
        bool(network.temperature and settings.energy_weight and np.isfinite(labels.energy).any()),
        rows.curvature.shape[1] > 0,
    )
    scaling, trained = jax.tree.map(lambda a: jnp.asarray(a, settings.dtype), (scaling, trained))
    counts = np.int32(n - n_held), np.int32(n_held)
    number: Any = np.dtype(settings.dtype).type
    limits = _Limits(
        number(settings.learning_rate), number(settings.weight_decay if settings.optimizer == "adamw" else 0),
        np.int32(settings.epochs), np.int32(settings.patience), np.int32(settings.plateau_patience),
        number(settings.plateau_factor),
    )  # fmt: skip
    rngs = [np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel()) for key in keys]
    orders = np.stack([rng.permutation(n) for rng in rngs]).astype(np.int32)
    held = np.pad(orders[:, :n_held], ((0, 0), (0, max(1, _held(size, settings)) - n_held)))
    start = jax.tree.map(np.asarray, _init(network, program, keys, trained, scaling))

    def run(group: slice) -> tuple[_State, Any]:
        states, curves = jax.tree.map(lambda a: a[group], start), []
        for _ in range(0, settings.epochs, BLOCK):
            shuffles = np.stack(
                [_shuffles(rng, order[n_held:], size) for rng, order in zip(rngs[group], orders[group], strict=True)]
            )
            states, curve = _block(network, program, states, shuffles, held[group], rows, scaling, counts, limits)
            curves.append(jax.tree.map(np.asarray, curve))
            if np.all(np.asarray(states.status) != RUNNING):
                break
        missing = settings.epochs - sum(c[0].shape[1] for c in curves)
        joined = [np.concatenate(c, axis=1)[:, : settings.epochs] for c in zip(*curves, strict=True)]
        filled = [np.pad(c, ((0, 0), (0, max(0, missing))), constant_values=np.nan) for c in joined]
        return jax.tree.map(np.asarray, states), filled

    vmapped = jax.default_backend() != "cpu" if settings.vmapped is None else settings.vmapped
    done = [run(slice(0, K))] if vmapped else [run(slice(k, k + 1)) for k in range(K)]
    states, (training, validation, rate) = jax.tree.map(lambda *a: np.concatenate(a), *done)
    longest = int(states.epoch.max())
    training, validation, rate = (c[:, :longest] for c in (training, validation, rate))
    lost = (states.status == DIVERGED) | (states.best_epoch < 0) | (states.best_loss > NOTHING_LEARNED)
    reasons = np.where(lost, "diverged", np.where(states.status == EARLY, "early stopping", "all epochs"))
    history = History(
        training, validation, rate, states.best_epoch, states.best_loss, tuple(reasons.tolist()),
        np.zeros(K, bool), ~lost,
    )  # fmt: skip
    return _layers(network, states.best), history


def room(n: int) -> int:
    """The next power of two, at least 32: a campaign that goes from 100 to 800 labels compiles four programs."""
    return max(32, 1 << (n - 1).bit_length())


def _merge(first: History, second: History, at: np.ndarray) -> History:
    """The history of all members, those in `at` taken from the second training."""
    epochs = max(first.training.shape[1], second.training.shape[1])
    wide = lambda a: np.pad(a, ((0, 0), (0, epochs - a.shape[1])), constant_values=np.nan)
    stopped = list(first.stopped)
    for k, why in zip(at, second.stopped, strict=True):
        stopped[k] = why
    merged = {}
    for name in ("training", "validation", "learning_rate", "best_epoch", "best_validation", "used"):
        a, b = getattr(first, name), getattr(second, name)
        a, b = (wide(a), wide(b)) if a.ndim == 2 else (a.copy(), b)
        a[at] = b
        merged[name] = a
    restarted = first.restarted.copy()
    restarted[at] = True
    return History(stopped=tuple(stopped), restarted=restarted, **merged)
