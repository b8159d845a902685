"""Wang-Landau sampling: the density of states of small supercells."""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from haljax.bayes import require_x64
from haljax.lattice.local_energy import WINDOWS
from haljax.lattice.monte_carlo import (
    CHUNK,
    Model,
    State,
    another_species,
    flip_energy,
    put,
    species_at,
    start,
    uniform,
)
from haljax.lattice.units import KB

log = logging.getLogger(__name__)


class Walkers(NamedTuple):
    """W walkers over B bins of energy, each with an estimate of its own.

    Attributes
    ----------
    state : their occupations and energies.
    log_g : (W, B) logarithm of the density of states, up to a constant; 0 in bins never visited.
    histogram : (W, B) int32 visits since ``log_f`` was last halved.
    log_f : (W,) what a visit adds to log_g.
    late : (W,) bool, whether log_f follows 1/t.
    tries : () tries made so far, a float.
    """

    state: State
    log_g: jax.Array
    histogram: jax.Array
    log_f: jax.Array
    late: jax.Array
    tries: jax.Array


class DensityOfStates(NamedTuple):
    """Number of states of each bin; NumPy.

    Attributes
    ----------
    energy : (B,) eV of the whole supercell, middle of each bin that was visited.
    log_g, error : (B,) its logarithm, normalised to the number of all states; standard error from the walkers' spread.
    log_f : the last modification factor. tries : made by each walker. converged : whether it reached the one asked for,
        and all walkers have seen the same bins.
    """

    energy: np.ndarray
    log_g: np.ndarray
    error: np.ndarray
    log_f: float
    tries: int
    converged: bool


def wang_landau(
    key: jax.Array,
    model: Model,
    edges: Any,
    *,
    walkers: int = WINDOWS,
    log_f: float = 1.0,
    final_log_f: float = 1e-6,
    flatness: float = 0.8,
    check_passes: int = 100,
    max_passes: int = 1_000_000,
    initial: Any = None,
) -> DensityOfStates:
    """The density of states between ``edges`` (B + 1,) eV of the whole supercell, bins of equal width.

    A visit to a bin adds ``log_f`` to its log_g, and flips are accepted with ``min(1, g(old) / g(new))``. Where the
    histogram is flat ``log_f`` is halved, and once it is below (bins visited) / tries it follows that: halving for ever
    leaves an error that does not vanish. A discrete level belongs in the middle of its bin. The edges must hold every
    state there is, since ``log_g`` is normalised to their number.

    Sources: Wang & Landau, Phys. Rev. Lett. 86, 2050 (2001), doi:10.1103/PhysRevLett.86.2050; Belardinelli & Pereyra,
    Phys. Rev. E 75, 046701 (2007), doi:10.1103/PhysRevE.75.046701.

    Raises
    ------
    RuntimeError
        x64 is off: counts of tries and small increments of log_g would be lost.
    ValueError
        The model makes exchanges, edges do not ascend in equal steps, the initial states lie outside of them.
    """
    require_x64()
    edges = np.asarray(edges, float)
    if model.moves != "flip":
        raise ValueError("Wang-Landau sampling flips sites; the model makes exchanges. Build it with moves='flip'.")
    if (
        edges.ndim != 1
        or len(edges) < 3
        or np.any(np.diff(edges) <= 0)
        or not np.allclose(np.diff(edges), edges[1] - edges[0])
    ):
        raise ValueError("edges are B + 1 energies in eV that ascend in equal steps, B >= 2.")
    if initial is None:
        initial = np.zeros((walkers, model.n_sites), np.int8)
        limit = np.repeat(model.n_species, model.n_cells)
        draw = jax.random.uniform(jax.random.fold_in(key, 0), (walkers, len(limit)))
        initial[:, np.asarray(model.places)] = np.minimum(np.asarray(draw) * limit, limit - 1)
    state = _start(key, model, jnp.asarray(initial))
    energy = np.asarray(state.energy)
    if np.any((energy < edges[0]) | (energy >= edges[-1])):
        outside = energy[(energy < edges[0]) | (energy >= edges[-1])][0]
        raise ValueError(
            f"An initial state has {outside:.6g} eV, outside the edges {edges[0]:.6g} .. {edges[-1]:.6g} eV: widen "
            "them, or start from states within."
        )
    W, B = len(energy), len(edges) - 1
    walking = Walkers(
        state, jnp.zeros((W, B)), jnp.zeros((W, B), jnp.int32), jnp.full(W, log_f), jnp.zeros(W, bool), jnp.zeros(())
    )
    low, width = float(edges[0]), float(edges[1] - edges[0])
    made, converged = 0.0, False
    n_chunks = -(-check_passes * model.n_tries // CHUNK)
    while made < max_passes and not converged:
        walking = _walk(model, walking, low, width, flatness, n_chunks)
        made += n_chunks * CHUNK / model.n_tries
        converged = bool(np.all(np.asarray(walking.log_f)[: len(initial)] <= final_log_f))
    if not converged:
        log.warning(
            "Wang-Landau sampling stopped after %.0f passes at log f = %.2g, asked for %.2g.",
            made, float(np.max(walking.log_f)), final_log_f,
        )  # fmt: skip
    return _result(model, walking, edges, len(initial), int(walking.tries), converged)


def walk(model: Model, walkers: Walkers, low: float, width: float, flatness: float, n_chunks: Any) -> Walkers:
    """``n_chunks`` times `CHUNK` tried flips of each walker, then a look at the histograms. Pure."""
    W, B = walkers.log_g.shape
    rows = jnp.arange(W)

    def chunk(c, carry):
        state, *_ = carry
        key, site_key = jax.random.split(jax.random.fold_in(jax.random.fold_in(state.site_key, state.n_passes), c))
        sites = jax.random.randint(site_key, (CHUNK,), 0, model.n_tries, jnp.int32)
        random = jax.random.bits(key, (CHUNK, 2, W), jnp.uint32)
        return jax.lax.fori_loop(0, CHUNK, lambda i, carry: step(sites[i], random[i], *carry), carry)

    def step(site, random, state, log_g, histogram, log_f, late, tries):
        tries = tries + 1
        old = species_at(model, state.bits, site)
        new = another_species(model, site, old, random[1])
        gain = flip_energy(model, state.bits, site, old, new)
        here = _bin(state.energy, low, width)
        there = _bin(state.energy + gain, low, width)
        inside = (there >= 0) & (there < B)
        ratio = log_g[rows, here] - log_g[rows, jnp.clip(there, 0, B - 1)]
        accept = inside & (uniform(random[0]) <= jnp.exp(ratio))
        state = state._replace(
            bits=put(model, state.bits, site, jnp.where(accept, new, old)),
            energy=state.energy + jnp.where(accept, gain, 0),
        )
        here = jnp.where(accept, there, here)
        visited = jnp.sum(log_g > 0, axis=1)
        log_f = jnp.where(late, visited / tries, log_f)
        return state, log_g.at[rows, here].add(log_f), histogram.at[rows, here].add(1), log_f, late, tries

    state, log_g, histogram, log_f, late, tries = jax.lax.fori_loop(0, n_chunks, chunk, tuple(walkers))
    state = state._replace(n_passes=state.n_passes + 1)
    visited = log_g > 0
    number = jnp.sum(visited, axis=1)
    mean = jnp.sum(histogram, axis=1) / number
    flat = jnp.min(jnp.where(visited, histogram, jnp.iinfo(jnp.int32).max), axis=1) >= flatness * mean
    halve = flat & ~late
    log_f = jnp.where(halve, log_f / 2, log_f)
    late = late | (log_f <= number / tries)
    return Walkers(state, log_g, jnp.where(halve[:, None], 0, histogram), log_f, late, tries)


_walk = jax.jit(walk)
_start = jax.jit(start)


def _bin(energy: jax.Array, low: float, width: float) -> jax.Array:
    return jnp.floor((energy - low) / width).astype(jnp.int32)


def _result(model: Model, walkers: Walkers, edges: np.ndarray, n: int, tries: int, converged: bool) -> DensityOfStates:
    log_g = np.asarray(walkers.log_g)[:n]
    visited = np.any(log_g > 0, axis=0)
    if missed := int(np.sum(np.any((log_g > 0) != visited, axis=0))):
        log.warning("%d of %d bins were seen by some walkers only; sample longer.", missed, visited.sum())
    log_g = np.where(log_g > 0, log_g, np.nan)[:, visited]
    states = model.n_cells * np.sum(np.log(model.n_species))
    log_g = log_g - np.nanmax(log_g, axis=1, keepdims=True)
    log_g = log_g - np.log(np.nansum(np.exp(log_g), axis=1, keepdims=True)) + states
    seen = np.sum(np.isfinite(log_g), axis=0)
    mean = np.nanmean(log_g, axis=0)
    spread = np.sqrt(np.nansum((log_g - mean) ** 2, axis=0) / np.maximum(seen - 1, 1) / seen)
    error = np.where(seen > 1, spread, np.nan)
    middle = 0.5 * (edges[1:] + edges[:-1])[visited]
    return DensityOfStates(middle, mean, error, float(np.max(walkers.log_f)), tries, converged and not missed)


def canonical(states: DensityOfStates, temperature: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Free energy, energy (eV) and heat capacity (eV/K) of the whole supercell at temperatures (T,) K, each (T,)."""
    kT = KB * np.atleast_1d(np.asarray(temperature, float))[:, None]
    exponent = states.log_g[None, :] - states.energy[None, :] / kT
    top = exponent.max(axis=1, keepdims=True)
    weight = np.exp(exponent - top)
    total = weight.sum(axis=1, keepdims=True)
    p = weight / total
    energy = p @ states.energy
    variance = np.sum(p * (states.energy[None, :] - energy[:, None]) ** 2, axis=1)
    return -kT[:, 0] * (top + np.log(total))[:, 0], energy, variance * KB / kT[:, 0] ** 2
