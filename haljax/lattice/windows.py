"""Sampling umbrella windows until they are converged: order parameters, chemical potentials, energies, Hessians."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from haljax.devices import spread
from haljax.lattice import monte_carlo
from haljax.lattice.local_energy import WINDOWS, pack, unpack
from haljax.lattice.monte_carlo import Conditions, Counters, Model, Moves, Record, State
from haljax.lattice.supercell import Supercell
from haljax.lattice.timeseries import equilibration, inverse_covariance
from haljax.lattice.units import KB

log = logging.getLogger(__name__)

CONFIDENCE = 1.96  # standard errors in half a 95 % interval
SAMPLES = 25  # independent samples below which an error bar cannot be trusted
TRIES = 200_000  # tried moves of a window between two looks at it from the host
BATCH = 512  # windows stepped together on a CPU; more overflow its cache
JUDGED = 4_000_000  # values of series whose convergence is judged at once, at 66 bytes each


class Series(NamedTuple):
    """A window's values after each pass, those before equilibration included: eta (n, d), energy (n,) eV per cell."""

    eta: np.ndarray
    energy: np.ndarray


class WindowResult(NamedTuple):
    """Averages of W windows with d order parameters; NumPy. Errors are one standard error.

    Attributes
    ----------
    temperature : (W,) K. kappa, phi : (W, d) as asked for.
    eta, eta_error : (W, d)
    mu, mu_error : (W, d) eV per cell, dg/d eta at eta: the chemical potential asked for (0) ``- 2 phi (eta - kappa)``.
        NaN for an order parameter that never changed: the moves conserve it, or kappa is too far outside. The error
        is ``2 phi eta_error``; that of dg/d eta at the eta given here is `haljax.free_energy.sampling.label_error`.
    energy, energy_error : (W,) eV per cell, of the Hamiltonian without bias.
    hessian, hessian_error : (W, d, d) eV per cell, ``kT (N cov)^-1 - 2 diag(phi)``; NaN where not asked for or where
        the covariance is singular.
    n_passes, equilibration : (W,) passes made, and how many of them were discarded.
    acceptance : (W,) accepted moves that changed something, of the tried ones.
    converged : (W,) bool.
    occupation : (W, n_sites) int8, the last state.
    series : W `Series`, or None.
    """

    temperature: np.ndarray
    kappa: np.ndarray
    phi: np.ndarray
    eta: np.ndarray
    eta_error: np.ndarray
    mu: np.ndarray
    mu_error: np.ndarray
    energy: np.ndarray
    energy_error: np.ndarray
    hessian: np.ndarray
    hessian_error: np.ndarray
    n_passes: np.ndarray
    equilibration: np.ndarray
    acceptance: np.ndarray
    converged: np.ndarray
    occupation: np.ndarray
    series: tuple[Series, ...] | None


class Progress(NamedTuple):
    """What `sample_windows` reports while it runs: of all windows, of the batch under way, and moves tried so far."""

    windows: int
    done: int
    converged: int
    batch: int
    passes: int
    tries: int


def sample_windows(
    key: jax.Array,
    expansion: Any,
    supercell: Supercell,
    order_parameters: Any,
    conditions: Conditions,
    *,
    precision: Any,
    min_passes: int,
    max_passes: int,
    initial: Any = None,
    keep_series: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
    moves: Moves = "flip",
    hessian: bool = True,
    ids: Sequence[int] | None = None,
    n_species: Sequence[int] | None = None,
    aliasing: bool = False,
    overreach: float = 0.1,
    batch: int | None = None,
    devices: int | None = None,
) -> WindowResult:
    """Sample each window until its order parameters are known to ``precision``.

    Windows run side by side. A window stops at the first look, after ``min_passes`` and then each time its length has
    grown by a quarter, at which the 95 % interval of every order parameter is within ``precision`` and 25 independent
    samples stand behind it; its result does not depend on its company. A window that has not converged after
    ``max_passes`` is returned as it is with ``converged`` False, and a message is logged.

    The mean minimises ``g + bias`` up to O(1/N), g the free energy per cell of N cells: ``mu = -2 phi (eta - kappa)``.

    Parameters
    ----------
    expansion, n_species, moves, aliasing : as in `monte_carlo.model`.
    order_parameters : `OrderParameters` or `Counters`.
    precision : absolute, of eta; a number or (d,).
    initial : (W, n_sites) occupations to start from; by default each sublattice at random at the composition nearest
        to kappa (for `Counters`, every species as likely).
    hessian : estimate it too, from the fluctuations; needs phi > 0.
    ids : (W,) numbers of the windows; window w uses ``fold_in(key, ids[w])`` alone, so that it can be repeated without
        the others. 0 .. W - 1 when left out.
    overreach : how far a sublattice's composition at kappa may lie outside 0 .. 1: a kappa a little outside the
        polytope is how a window is held close to its boundary, one far outside is a mistake.
    batch : windows to run at once; when left out 512 on each CPU device, all on a GPU.
    devices : of JAX on which the windows are shared out; all when left out. The result does not depend on it.

    Raises
    ------
    ValueError
        Shapes that do not fit, NaN, a temperature <= 0, phi < 0 (or = 0 with ``hessian``), no order parameters, kappa
        outside the polytope, passes or precision that are not positive, more devices than there are,
        what `monte_carlo.model` raises.
    """
    devices = devices or jax.local_device_count()
    if devices > jax.local_device_count():
        raise ValueError(f"devices = {devices}, but JAX has {jax.local_device_count()} here: give at most that.")
    conditions = checked_conditions(conditions, order_parameters, hessian=hessian, overreach=overreach)
    W, d = conditions.kappa.shape
    devices = min(devices, -(-min(W, batch or W) // WINDOWS))  # more would only compute copies
    precision = np.broadcast_to(np.asarray(precision, float), (d,))
    if not np.all(precision > 0):
        raise ValueError(f"precision is {precision.tolist()}; the absolute precision of each order parameter is > 0.")
    if not 0 < min_passes <= max_passes:
        raise ValueError(f"min_passes = {min_passes} and max_passes = {max_passes}; it takes 0 < min <= max.")
    numbers = np.arange(W) if ids is None else np.asarray(ids, int)
    if numbers.shape != (W,) or np.any(numbers < 0):
        raise ValueError(f"ids has shape {numbers.shape}; each of the {W} windows needs a number >= 0.")
    model = monte_carlo.model(
        expansion, supercell, order_parameters, n_species=n_species, moves=moves, aliasing=aliasing
    )
    if initial is None:
        initial = random_occupations(key, model, supercell, order_parameters, conditions, numbers)
    initial = checked_occupations(initial, model, W)
    batch = batch or (BATCH * devices if jax.default_backend() == "cpu" else W)
    run = _Run(model, conditions, precision, min_passes, max_passes, hessian, keep_series, on_progress, W, devices)
    results: list[_Outcome] = []
    for start in range(0, W, batch):
        part = slice(start, start + batch)
        results += run.batch(key, part, initial[part], numbers[part])
    averages = {name: np.array([getattr(result, name) for result in results]) for name in _Outcome._fields}
    temperature, kappa, phi, _ = conditions
    result = WindowResult(
        temperature=temperature, kappa=kappa, phi=phi, series=tuple(run.series) if keep_series else None, **averages
    )
    _report(result, precision, max_passes, numbers)
    return result


def checked_conditions(
    conditions: Conditions, order_parameters: Any, *, hessian: bool = False, overreach: float = 0.1
) -> Conditions:
    """`Conditions` as NumPy arrays of full shape, or a ValueError; see `sample_windows`."""
    if order_parameters is None:
        raise ValueError("Windows are set by order parameters; there are none.")
    d = len(order_parameters.weights) if isinstance(order_parameters, Counters) else len(order_parameters.patterns)
    if d == 0:
        raise ValueError("Windows are set by order parameters; there are none.")
    temperature, kappa, phi, mu = (np.asarray(v, float) for v in conditions)
    if kappa.ndim != 2 or kappa.shape[1] != d or not len(kappa):
        raise ValueError(f"kappa has shape {kappa.shape}; it is (windows, {d}), {d} order parameters.")
    try:
        temperature = np.broadcast_to(temperature, kappa.shape[:1])
        phi, mu = np.broadcast_to(phi, kappa.shape), np.broadcast_to(mu, kappa.shape)
    except ValueError:
        raise ValueError(
            f"kappa is (windows, order parameters) = {kappa.shape}; temperature {temperature.shape}, phi {phi.shape} "
            f"and mu {mu.shape} do not fit it."
        ) from None
    for name, values in (("temperature", temperature), ("kappa", kappa), ("phi", phi), ("mu", mu)):
        bad = ~np.all(np.isfinite(values.reshape(len(kappa), -1)), axis=1)
        if np.any(bad):
            raise ValueError(f"{name} of window {int(np.argmax(bad))} is {values[np.argmax(bad)]}; it must be finite.")
    if np.any(temperature <= 0):
        w = int(np.argmax(temperature <= 0))
        raise ValueError(f"The temperature of window {w} is {temperature[w]} K; it must be above 0.")
    wrong = np.any(phi <= 0 if hessian else phi < 0, axis=1)
    if np.any(wrong):
        raise ValueError(
            f"phi of window {int(np.argmax(wrong))} is {phi[np.argmax(wrong)].tolist()} eV; "
            + ("a Hessian needs phi > 0: pass hessian=False to do without." if hessian else "it must not be negative.")
        )
    if not isinstance(order_parameters, Counters):
        x = kappa @ np.asarray(order_parameters.S).T
        excess = np.max(np.abs(x - 0.5), axis=1) - 0.5
        if np.any(excess > overreach):
            w = int(np.argmax(excess))
            raise ValueError(
                f"kappa of window {w}, {kappa[w].tolist()}, lies outside the polytope of order parameters: a "
                f"sublattice would be filled to {x[w, np.argmax(np.abs(x[w] - 0.5))]:.3f}. Move it inside, or raise "
                f"overreach (now {overreach}) if that is meant."
            )
    return Conditions(temperature, kappa, phi, mu)


def checked_occupations(initial: Any, model: Model, W: int) -> np.ndarray:
    """(W, n_sites) int8, or a ValueError."""
    initial = np.asarray(initial)
    if initial.shape != (W, model.n_sites) or not np.issubdtype(initial.dtype, np.integer):
        raise ValueError(
            f"initial is {initial.dtype} of shape {initial.shape}; it is species numbers, integers of shape "
            f"({W}, {model.n_sites})."
        )
    limit = np.ones(model.n_sites, int)
    limit[np.asarray(model.places)] = np.repeat(model.n_species, model.n_cells)
    wrong = np.argwhere((initial < 0) | (initial >= limit[None, :]))
    if len(wrong):
        w, i = wrong[0]
        raise ValueError(
            f"initial has species {initial[w, i]} on site {i} of window {w}; that site has {limit[i]} species."
        )
    return initial.astype(np.int8)


def random_occupations(
    key: jax.Array, model: Model, supercell: Supercell, order_parameters: Any, conditions: Conditions, ids: Any
) -> np.ndarray:
    """(W, n_sites) int8: each sublattice at random at its composition at kappa, kept 2 % away from full and empty."""
    limit = np.ones(model.n_sites, int)
    limit[np.asarray(model.places)] = np.repeat(model.n_species, model.n_cells)
    counted, fraction = np.zeros(model.n_sites, int), np.ones((1, model.n_sites)) / limit
    fraction = np.repeat(fraction, len(conditions.kappa), axis=0)
    if not isinstance(order_parameters, Counters):
        x = np.clip(conditions.kappa @ np.asarray(order_parameters.S).T, 0.02, 0.98)
        cell = Supercell(order_parameters.cell, supercell.n_basis)
        sites = supercell.sites()
        here = np.isin(sites[:, 3], order_parameters.sites) & (limit > 1)
        number = np.full(cell.n_sites, -1)
        number[cell.index(np.asarray(order_parameters.sublattices))] = np.arange(x.shape[1])
        counted[here] = order_parameters.species
        fraction[:, here] = x[:, number[cell.index(sites[here])]]
    # species counted with probability `fraction`, the others alike
    key = jax.random.fold_in(key, np.uint32(0xFFFFFFFF))
    draw = jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(key, i), (2, model.n_sites), jnp.float32))
    u = np.asarray(draw(jnp.asarray(ids)))
    other = (counted + 1 + np.minimum((u[:, 1] * (limit - 1)).astype(int), np.maximum(limit - 2, 0))) % limit
    return np.where((u[:, 0] < fraction) | (limit == 1), counted, other).astype(np.int8)


class _Outcome(NamedTuple):
    """One window's rows of a `WindowResult`, from eta to occupation."""

    eta: np.ndarray
    eta_error: np.ndarray
    mu: np.ndarray
    mu_error: np.ndarray
    energy: float
    energy_error: float
    hessian: np.ndarray
    hessian_error: np.ndarray
    n_passes: int
    equilibration: int
    acceptance: float
    converged: bool
    occupation: np.ndarray


# How windows lie in each array of a state. Words of bits hold windows that lie far apart in a batch, so that they can
# only be read and written where the others of the same share are: on one device.
_ALL: Any = PartitionSpec()
_FIRST, _SECOND, _THIRD = (PartitionSpec(*[None] * axis, "batch") for axis in range(3))
_STATE = State(*(_SECOND, _SECOND, _FIRST, _FIRST, _FIRST, _ALL, _ALL))  # type: ignore[arg-type]


@partial(jax.jit, static_argnames="devices")
def _start(key: jax.Array, model: Model, occupation: Any, ids: Any, devices: int) -> State:
    return spread(devices, monte_carlo.start, (_ALL, _ALL, _FIRST, _FIRST), _STATE)(key, model, occupation, ids)


@partial(jax.jit, static_argnames=("capacity", "devices"))
def _passes(
    model: Model, conditions: Conditions, state: State, n_passes: Any, capacity: int, devices: int
) -> tuple[State, Record]:
    function, seen = partial(monte_carlo.passes, capacity=capacity), Record(_THIRD, _SECOND)  # type: ignore[arg-type]
    return spread(devices, function, (_ALL, _FIRST, _STATE, _ALL), (_STATE, seen))(model, conditions, state, n_passes)


@partial(jax.jit, static_argnames="devices")
def _occupations(model: Model, state: State, devices: int) -> jax.Array:
    return spread(devices, monte_carlo.occupations, (_ALL, _STATE), _FIRST)(model, state)


@dataclass
class _Run:
    """One call of `sample_windows`."""

    model: Model
    conditions: Conditions
    precision: np.ndarray
    min_passes: int
    max_passes: int
    hessian: bool
    keep_series: bool
    on_progress: Callable[[Progress], None] | None
    windows: int
    devices: int
    done: int = 0
    converged: int = 0
    tries: int = 0
    series: list[Series] = field(default_factory=list)

    def batch(self, key: jax.Array, part: slice, initial: np.ndarray, ids: np.ndarray) -> list[_Outcome]:
        W = len(ids)
        conditions = Conditions(*(v[part] for v in self.conditions))
        fill = self.filled(np.arange(W))
        state = _start(key, self.model, initial[fill], ids[fill], self.devices)
        outcomes: list[_Outcome | None] = [None] * W
        counters = [np.zeros((0, self.precision.size), np.int32)] * W
        energy = [np.zeros(0)] * W
        inside = np.arange(W)  # windows in the batch, in its order; some may be done
        passes = 0
        while any(outcome is None for outcome in outcomes):
            target = min(max(self.min_passes, passes + max(passes // 4, 1)), self.max_passes)
            here = Conditions(*(v[inside] for v in conditions))
            state, new_counters, new_energy = self.advance(here, state, target - passes, inside)
            passes = target
            open_ = [i for i, w in enumerate(inside) if outcomes[w] is None]
            for i in open_:
                w = inside[i]
                counters[w] = np.concatenate([counters[w], new_counters[:, :, i]])
                energy[w] = np.concatenate([energy[w], new_energy[:, i]])
            occupation = np.asarray(_occupations(self.model, state, self.devices))
            accepted = np.asarray(state.accepted)
            share = max(1, JUDGED // (passes * (self.precision.size + 1)))
            for first in range(0, len(open_), share):
                judged = open_[first : first + share]
                eta = np.stack([counters[inside[i]] for i in judged], axis=2) / self.model.n_counted
                e = np.stack([energy[inside[i]] for i in judged], axis=1) / self.model.n_cells
                observed = np.concatenate([eta, e[:, None]], axis=1)  # (n, d + 1, judged)
                begin, inefficiency = equilibration(observed)
                for j, i in enumerate(judged):
                    w = inside[i]
                    outcome = self.outcome(
                        Conditions(*(v[w] for v in conditions)),
                        observed[begin[j] :, :, j],
                        inefficiency[:, j],
                        passes,
                        accepted[i] / (passes * self.model.n_tries),
                        occupation[i],
                    )
                    if outcome.converged or passes == self.max_passes:
                        outcomes[w] = outcome
                        self.done += 1
                        self.converged += outcome.converged
            left = np.array([i for i in open_ if outcomes[inside[i]] is None], int)
            # A smaller batch is compiled anew: only where it is half as wide
            if len(left) and 2 * len(self.filled(left)) <= len(state.energy):
                state, inside = select(state, self.filled(left), self.devices), inside[left]
            self.progress(len(inside), passes)
        if self.keep_series:
            self.series += [
                Series(c / self.model.n_counted, e / self.model.n_cells) for c, e in zip(counters, energy, strict=True)
            ]
        return [outcome for outcome in outcomes if outcome is not None]

    def advance(
        self, conditions: Conditions, state: State, n: int, inside: np.ndarray
    ) -> tuple[State, np.ndarray, np.ndarray]:
        """``n`` passes in blocks, with progress after each: counters (n, d, W) and energy (n, W)."""
        conditions = Conditions(*(v[self.filled(np.arange(len(inside)))] for v in conditions))
        capacity = int(np.clip(TRIES // self.model.n_tries, 1, 4096))
        parts, made = [], 0
        while made < n:
            block = min(capacity, n - made)
            state, record = _passes(self.model, conditions, state, block, capacity, self.devices)
            counted, energies = (np.asarray(a)[:block, ..., : len(inside)] for a in record)
            parts.append((counted, energies))
            made += block
            self.tries += block * self.model.n_tries * len(inside)
            self.progress(len(inside), int(state.n_passes))
        counters, energy = zip(*parts, strict=True)
        return state, np.concatenate(counters), np.concatenate(energy)

    def filled(self, windows: np.ndarray) -> np.ndarray:
        """With copies of the first, so many windows that each device has a multiple of 32."""
        return np.concatenate([windows, np.full(-len(windows) % (WINDOWS * self.devices), windows[0])])

    def progress(self, batch: int, passes: int) -> None:
        if self.on_progress is not None:
            self.on_progress(Progress(self.windows, self.done, self.converged, batch, passes, self.tries))

    def outcome(
        self,
        conditions: Conditions,
        observed: np.ndarray,
        inefficiency: np.ndarray,
        passes: int,
        acceptance: float,
        occupation: np.ndarray,
    ) -> _Outcome:
        """One window's averages from its equilibrated values (n, d + 1)."""
        n, d = len(observed), self.precision.size
        mean = observed.mean(axis=0)
        error = np.sqrt(observed.var(axis=0, ddof=1) * inefficiency / n) if n > 1 else np.full(d + 1, np.inf)
        enough = n / np.max(inefficiency) >= SAMPLES
        temperature, kappa, phi, mu = conditions
        still = np.all(observed[:, :d] == observed[:1, :d], axis=0)
        stuck = self.model.moves == "flip" and np.any(still)  # no error bar tells how far it is from equilibrium
        eta, eta_error = mean[:d], error[:d]
        matrix = matrix_error = np.full((d, d), np.nan)
        if self.hessian:
            inverse, inverse_error = inverse_covariance(observed[:, :d])
            scale = KB * temperature / self.model.n_cells
            matrix, matrix_error = scale * inverse - 2 * np.diag(phi), scale * inverse_error
        return _Outcome(
            eta=eta,
            eta_error=eta_error,
            mu=np.where(still, np.nan, mu - 2 * phi * (eta - kappa)),
            mu_error=np.where(still, np.nan, 2 * phi * eta_error),
            energy=mean[d],
            energy_error=error[d],
            hessian=matrix,
            hessian_error=matrix_error,
            n_passes=passes,
            equilibration=passes - n,
            acceptance=acceptance,
            converged=bool(enough and not stuck and np.all(CONFIDENCE * eta_error <= self.precision)),
            occupation=occupation,
        )


def select(state: State, windows: np.ndarray, devices: int) -> State:
    """The chosen windows of a batch, a multiple of 32 for each device."""
    planes = spread(devices, unpack, _SECOND, _SECOND)(state.bits)
    return State(
        bits=spread(devices, pack, _SECOND, _SECOND)(planes[:, windows]),
        counters=state.counters[:, windows],
        energy=state.energy[windows],
        accepted=state.accepted[windows],
        keys=state.keys[windows],
        site_key=state.site_key,
        n_passes=state.n_passes,
    )


def _report(result: WindowResult, precision: np.ndarray, max_passes: int, ids: np.ndarray) -> None:
    left = np.flatnonzero(~result.converged)
    if len(left):
        ratio = CONFIDENCE * result.eta_error[left] / precision[None, :]
        worst = left[np.argmax(np.max(ratio, axis=1))]
        log.warning(
            "%d of %d windows have not converged after %d passes: %s%s. Their averages are returned with converged = "
            "False; in the worst, window %d, the 95 %% interval of an order parameter is %.1f times the precision "
            "asked for. Raise max_passes, or ask for less.",
            len(left),
            len(ids),
            max_passes,
            ", ".join(map(str, ids[left[:8]])),
            ", ..." if len(left) > 8 else "",
            ids[worst],
            np.max(ratio),
        )
