"""Training an ensemble of networks on derivatives of a free energy, all members at once.

The loss is the mean square error of mu, of energies through e = d(beta g)/d beta and of Hessians, each relative to the
spread of its kind of label and weighted by its error bar. What does not depend on the parameters (invariants, their
derivatives, the ideal term) is computed once; then a block of epochs of all members is one program, compiled for a
range of numbers of labels.
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
    bucket,
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
RUNNING, EARLY, DIVERGED = 0, 1, 2


@dataclass(frozen=True)
class TrainingSettings:
    """How to train.

    Attributes
    ----------
    optimizer : "adam", "adamw" or "rmsprop".
    learning_rate : of the first epoch.
    weight_decay : of "adamw".
    batch : labels in a step of the optimizer; None for about an eighth of them, a power of two from 32 to 256.
    epochs : the most.
    patience : epochs without a better validation loss after which a member stops.
    plateau_patience, plateau_factor : after that many epochs without, the learning rate falls by this factor.
    validation : share of the labels held out, each member its own; 0 monitors the training loss.
    error_floor : added in quadrature to error bars, in units of the spread of the labels: what the network need not
        resolve, and the error of a label of unknown error.
    energy_weight, hessian_weight : of these labels, relative to mu; 0 leaves them out. Energies need a network with
        temperature as an input, and are left out without.
    dtype : "float32" or "float64", of the training alone.
    vmapped : whether members train side by side under vmap, or one after another in one program; None for vmap
        except on CPUs, where products of small batched matrices were 1.6 times slower than single ones.

    Raises
    ------
    ValueError : a value out of range, and the range.
    """

    optimizer: str = "adamw"
    learning_rate: float = 1e-2
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

    optimizer: str
    weight_decay: float
    batch: int
    plateau_patience: int
    plateau_factor: float
    energies: bool
    hessians: bool
    vmapped: bool = True


class _State(NamedTuple):
    """Of one member; trained is (layers, offset)."""

    key: jax.Array
    trained: Any
    optimizer: Any
    plateau: Any
    best: Any
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
        scaling = jax.tree.map(lambda a: a[0], start.scaling)
        if not network.temperature and abs(float(scaling.temperature) / T[0] - 1) > 1e-5:
            raise ValueError(f"the start was trained at {float(scaling.temperature):g} K, the labels are at {T[0]:g} K")
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, ids)
    trained = None if start is None else (start.layers, start.offset)
    found, history = _train(keys, network, scaling, labels, settings, trained)
    again = np.flatnonzero(~history.used)
    if again.size:
        slower = replace(settings, learning_rate=settings.learning_rate / 10)
        keys = jax.vmap(jax.random.fold_in, (0, None))(keys[again], 1)
        trained = None if trained is None else jax.tree.map(lambda a: a[again], trained)
        second, after = _train(keys, network, scaling, labels, slower, trained)
        found = jax.tree.map(lambda a, b: a.at[again].set(b), found, second)
        history = _merge(history, after, again)
    if not history.used.any():
        raise RuntimeError(
            f"all {ids.size} members diverged, also at a learning rate of {settings.learning_rate / 10:g}: lower "
            "learning_rate, and look at the labels for outliers"
        )
    keep = np.flatnonzero(history.used)
    layers, offset = jax.tree.map(lambda a: a[keep].astype(float), found)
    repeated = jax.tree.map(lambda a: jnp.broadcast_to(jnp.asarray(a, float), (keep.size, *a.shape)), scaling)
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
    # Spreads are pooled over the order parameters that some symmetry may exchange: a component that is zero in all
    # labels so far must not get an infinite weight.
    gradients = linear_features(network)[1]
    along = np.diag(np.linalg.pinv(gradients) @ gradients) if len(gradients) else np.zeros(d)
    kind = np.where(along > 0.5, 1 + np.arange(d), 0)

    def weighed(value: Any, error: Any, kinds: np.ndarray, weight: float) -> tuple[np.ndarray, np.ndarray]:
        value, error = np.asarray(value, float), np.asarray(error, float)
        known = np.isfinite(value)
        spread = np.ones(value.shape[1:])
        for k in np.unique(kinds):
            of = (kinds == k) & np.ones(value.shape[1:], bool)
            centred = np.where(known, value, np.nan)[:, of]
            count = known[:, of].sum(0)
            mean = np.where(known[:, of], centred, 0).sum(0) / np.maximum(count, 1)
            total = np.nansum((centred - mean[None]) ** 2)
            size = np.sqrt(total / max(count.sum(), 1))
            spread[of] = size if size > 1e-12 else 1.0
        w = known / ((settings.error_floor * spread[None]) ** 2 + np.where(np.isfinite(error), error, 0.0) ** 2)
        w *= weight * n / max((w * spread[None] ** 2).sum(), 1e-300)
        return padded(np.where(known, value, 0.0)), padded(w)

    mu, mu_weight = weighed(labels.mu, labels.mu_error, kind, 1.0)
    energy, energy_weight = weighed(labels.energy, labels.energy_error, np.zeros((), int), settings.energy_weight)
    pair = kind[:, None] * (d + 1) + kind[None, :]
    hessian, hessian_weight = weighed(labels.hessian, labels.hessian_error, pair, settings.hessian_weight)
    rows: Any = _Rows(
        z, jacobian, curvature, tau, slope, mu - ideal_mu, jnp.asarray(mu_weight), jnp.asarray(energy),
        jnp.asarray(energy_weight), hessian - ideal_hessian, jnp.asarray(hessian_weight),
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
        value, (force, rise) = jax.value_and_grad(of, (0, 1))(row.z, row.tau)
    else:
        force = jax.grad(of)(row.z, row.tau)
    total = jnp.sum(row.mu_weight * (force @ row.jacobian - row.mu) ** 2)
    if program.energies:
        energy = value + row.slope * rise + params.offset * params.scaling.energies[0]
        if network.anchored:
            value, rise = jax.value_and_grad(of, 1)(z0, row.tau)
            energy = energy - value - row.slope * rise
        total = total + row.energy_weight * (energy - row.energy) ** 2
    if program.hessians:
        along = lambda direction: jax.jvp(lambda z: jax.grad(of)(z, row.tau), (row.z,), (direction,))[1]
        hessian = row.jacobian.T @ jax.vmap(along, 1, 1)(row.jacobian) + jnp.tensordot(force, row.curvature, 1)
        total = total + jnp.sum(row.hessian_weight * (hessian - row.hessian) ** 2)
    return total


def _optimizer(program: _Program) -> optax.GradientTransformation:
    if program.optimizer == "rmsprop":
        return optax.scale_by_rms()
    if program.optimizer == "adamw":
        return optax.chain(optax.scale_by_adam(), optax.add_decayed_weights(program.weight_decay))
    return optax.scale_by_adam()


def _plateau(program: _Program) -> optax.GradientTransformationExtraArgs:
    from optax.contrib import reduce_on_plateau

    return reduce_on_plateau(
        factor=program.plateau_factor, patience=program.plateau_patience, rtol=1e-4, min_scale=1e-3
    )


@partial(jax.jit, static_argnums=(0, 1, 2))
def _init(network: Network, program: _Program, size: int, keys: jax.Array, trained: Any, scaling: Scaling, n: int):
    """States of all members, and their permutations (K, size) of the n rows, with the padding last."""

    def one(key: jax.Array, trained: Any) -> tuple[_State, jax.Array]:
        of_start, of_split, of_batches = jax.random.split(key, 3)
        if trained is None:
            fresh = network.init(of_start, scaling, scaling.mean.dtype)
            trained = (fresh.layers, fresh.offset)
        order = jnp.argsort(jnp.where(jnp.arange(size) < n, jax.random.uniform(of_split, (size,)), 2.0))
        zero = jnp.zeros((), jnp.int32)
        state = _State(
            of_batches, trained, _optimizer(program).init(trained), _plateau(program).init(scaling.width), trained,
            jnp.array(jnp.inf, scaling.mean.dtype), zero - 1, zero, zero + RUNNING,
        )  # fmt: skip
        return state, order

    return jax.vmap(one, (0, None if trained is None else 0))(keys, trained)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _block(
    network: Network,
    program: _Program,
    held: int,
    states: _State,
    orders: jax.Array,
    rows: _Rows,
    scaling: Scaling,
    counts: tuple[jax.Array, jax.Array],
    limits: tuple[jax.Array, jax.Array, jax.Array],
) -> tuple[_State, tuple[jax.Array, jax.Array, jax.Array]]:
    """BLOCK epochs of all members.

    Parameters
    ----------
    held : static; room for validation rows.
    orders : (K, size) for each member its validation rows, then its training rows, then padding.
    counts : numbers of training and validation rows.
    limits : first learning rate, most epochs, patience.
    """
    optimizer, plateau = _optimizer(program), _plateau(program)
    n_train, n_held = counts
    learning_rate, most, patience = limits
    size, B = orders.shape[1], program.batch
    z0 = features(network, scaling, jnp.zeros(network.dimension, scaling.mean.dtype))
    steps = -(-n_train // B)

    def loss(trained: Any, index: jax.Array, valid: jax.Array) -> jax.Array:
        params = Params(trained[0], trained[1], scaling)
        batch = jax.tree.map(lambda a: a[index], rows)
        squares = jax.vmap(lambda row: _squares(program, network, params, row, z0))(batch)
        return jnp.sum(jnp.where(valid, squares, 0)) / jnp.maximum(jnp.sum(valid), 1)

    def epoch(state: _State, order: jax.Array) -> tuple[_State, tuple[jax.Array, jax.Array, jax.Array]]:
        key, of_shuffle = jax.random.split(state.key)
        at = jnp.arange(size)
        last = (at < n_held) | (at >= n_held + n_train)
        shuffled = order[jnp.argsort(jnp.where(last, 2.0, jax.random.uniform(of_shuffle, (size,))))]
        rate = learning_rate * state.plateau.scale

        def step(i: jax.Array, carry: tuple) -> tuple:
            trained, inner, total = carry
            # batches of equal size, but for one
            low, high = i * n_train // steps, (i + 1) * n_train // steps
            place = low + jnp.arange(B)
            index = shuffled[jnp.minimum(place, size - 1)]
            value, gradient = jax.value_and_grad(loss)(trained, index, place < high)
            updates, inner = optimizer.update(gradient, inner, trained)
            trained = jax.tree.map(lambda p, u: p - rate.astype(p.dtype) * u, trained, updates)
            return trained, inner, total + value / steps

        zero = jnp.zeros((), rows.z.dtype)
        trained, inner, training = jax.lax.fori_loop(0, steps, step, (state.trained, state.optimizer, zero))
        place = jnp.arange(held)
        validation = jnp.where(n_held > 0, loss(trained, order[:held], place < n_held), training)
        better = validation < state.best_loss
        best, best_loss, best_epoch = jax.tree.map(
            lambda a, b: jnp.where(better, a, b),
            (trained, validation, state.epoch),
            (state.best, state.best_loss, state.best_epoch),
        )
        _, plateau_state = plateau.update(validation, state.plateau, value=validation)
        status = jnp.where(
            ~jnp.isfinite(validation) | ~jnp.isfinite(training),
            DIVERGED,
            jnp.where(state.epoch - best_epoch >= patience, EARLY, RUNNING),
        ).astype(jnp.int32)
        new = _State(key, trained, inner, plateau_state, best, best_loss, best_epoch, state.epoch + 1, status)
        running = (state.status == RUNNING) & (state.epoch < most)
        new, kept = (jax.tree.map(lambda a: jax.random.key_data(a) if _is_key(a) else a, s) for s in (new, state))
        new = jax.tree.map(lambda a, b: jnp.where(running, a, b), new, kept)
        new = new._replace(key=jax.random.wrap_key_data(new.key, impl=jax.random.key_impl(key)))
        seen = lambda a: jnp.where(running, a, jnp.nan)
        return new, (seen(training), seen(validation), seen(rate))

    def member(state: _State, order: jax.Array) -> tuple[_State, tuple[jax.Array, jax.Array, jax.Array]]:
        return jax.lax.scan(lambda state, _: epoch(state, order), state, length=BLOCK)

    if program.vmapped:
        return jax.vmap(member)(states, orders)
    return jax.lax.map(lambda of: member(*of), (states, orders))


def _is_key(a: jax.Array) -> bool:
    return jnp.issubdtype(a.dtype, jax.dtypes.prng_key)


def _train(
    keys: jax.Array, network: Network, scaling: Scaling, labels: Labels, settings: TrainingSettings, trained: Any
) -> tuple[Any, History]:
    """The best parameters (layers, offset) of all members; `used` says which are good."""
    n = len(labels)
    n_held = min(n - 1, max(1, round(settings.validation * n))) if settings.validation else 0
    size, held = bucket(n), bucket(max(1, n_held))
    rows = _rows(network, scaling, labels, settings, size)
    batch = settings.batch or int(np.clip(2 ** round(np.log2(n / 8)), 32, 256))
    program = _Program(
        settings.optimizer, settings.weight_decay, batch, settings.plateau_patience, settings.plateau_factor,
        bool(network.temperature and settings.energy_weight and np.isfinite(labels.energy).any()),
        rows.curvature.shape[1] > 0,
        jax.default_backend() != "cpu" if settings.vmapped is None else settings.vmapped,
    )  # fmt: skip
    scaling, trained = jax.tree.map(lambda a: jnp.asarray(a, settings.dtype), (scaling, trained))
    states, orders = _init(network, program, size, keys, trained, scaling, n)
    counts = jnp.asarray(n - n_held), jnp.asarray(n_held)
    limits = jnp.asarray(settings.learning_rate), jnp.asarray(settings.epochs), jnp.asarray(settings.patience)
    curves = []
    for _ in range(0, settings.epochs, BLOCK):
        states, curve = _block(network, program, held, states, orders, rows, scaling, counts, limits)
        curves.append(jax.tree.map(np.asarray, curve))
        if np.all(np.asarray(states.status) != RUNNING):
            break
    training, validation, rate = (np.concatenate(c, axis=1)[:, : settings.epochs] for c in zip(*curves, strict=True))
    status, best_epoch = np.asarray(states.status), np.asarray(states.best_epoch)
    lost = (status == DIVERGED) | (best_epoch < 0)
    lost |= np.asarray(states.best_loss) > NOTHING_LEARNED
    reasons = np.where(lost, "diverged", np.where(status == EARLY, "early stopping", "all epochs"))
    stopped = tuple(reasons.tolist())
    history = History(
        training, validation, rate, best_epoch, np.asarray(states.best_loss), stopped, np.zeros(len(lost), bool), ~lost
    )
    return states.best, history


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
