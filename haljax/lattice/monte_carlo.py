"""Metropolis Monte Carlo of many windows at once: flips and exchanges under quadratic biases on order parameters.

The potential of a window is ``Omega / N = e - mu . eta + sum_i phi_i (eta_i - kappa_i)^2``, N the number of cells. All
windows try the same site at the same time, so that the neighbours' occupations are contiguous words of bits (see
`haljax.lattice.local_energy`); each decides with its own random numbers. Whatever the state of the windows, the
sequence of sites is independent of it, and each try fulfils detailed balance, so every window is a Metropolis chain of
its own. Sites are drawn with replacement: sweeps over permutations are valid too, but not ergodic where every flip is
accepted (an ideal solution would only alternate between a state and its complement).

On a CPU a batch of up to 512 windows is fastest: beyond that XLA's code for the sums is three times slower a window, so
that more windows are better run in batches, as `sample_windows` does. A GPU wants them all at once.

Order parameters are integer counters. Energies are sums of local differences that are exact multiples of one unit (in
float64, that is with x64 on; float32 otherwise, which then drifts as float32 sums do).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from haljax.lattice.local_energy import (
    WINDOWS,
    LocalSum,
    check_range,
    evaluate,
    in_units,
    local_sum,
    pack,
    products_of_energy,
    products_of_fields,
    unpack,
)
from haljax.lattice.supercell import Supercell
from haljax.lattice.units import KB

Moves = Literal["flip", "exchange"]
CHUNK = 128  # tries whose random numbers are drawn together: many enough to fill vectors, few enough for the cache


class Conditions(NamedTuple):
    """Conditions of W windows with d order parameters: ``Omega / N = e - mu . eta + sum phi (eta - kappa)^2``.

    Attributes
    ----------
    temperature : (W,) K.
    kappa : (W, d) centres of the bias.
    phi : (W, d) eV per cell, its strength.
    mu : (W, d) eV per cell, chemical potentials conjugate to eta; zero when left out.
    """

    temperature: Any
    kappa: Any
    phi: Any
    mu: Any = 0.0


class Counters(NamedTuple):
    """Order parameters as integers: ``eta_i = sum over sites of weights[i] (occupation == species[i]) / n_counted``.

    Attributes
    ----------
    weights : (d, n_sites) integers.
    species : (d,) number of the species that each counts.
    n_counted : number of counted sites.
    """

    weights: Any
    species: tuple[int, ...]
    n_counted: int


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["fields", "energy", "weights", "places", "partners"],
    meta_fields=["n_cells", "n_sites", "n_species", "counted", "n_counted", "moves"],
)
@dataclass(frozen=True)
class Model:
    """A Hamiltonian and its order parameters in one supercell, ready to sample. Made by `model`.

    Active sites, those that more than one species may take, are numbered 0 .. A - 1, one kind after the other.

    Attributes
    ----------
    fields : sums over an active site's surroundings, one for each species beside species 0.
    energy : sum over a cell.
    weights : (n_sites, d) int32, of the order parameters.
    places : (A,) int32, active sites in the occupation array.
    partners : (A, 2) int32, first active site with the same list of species, and one past the last.
    n_cells, n_sites : of the supercell.
    n_species : of each kind of active sites.
    counted : (d,) species that each order parameter counts; n_counted : number of counted sites.
    moves : "flip" of one site to another species, or "exchange" of two sites.
    """

    fields: LocalSum
    energy: LocalSum
    weights: jax.Array
    places: jax.Array
    partners: jax.Array
    n_cells: int
    n_sites: int
    n_species: tuple[int, ...]
    counted: tuple[int, ...]
    n_counted: int
    moves: Moves

    @property
    def planes(self) -> int:
        """Bits of a site: one for each species beside species 0."""
        return max(self.n_species) - 1

    @property
    def n_tries(self) -> int:
        """Tried moves of a pass: as many as there are active sites."""
        return self.n_cells * len(self.n_species)


class State(NamedTuple):
    """Batch of windows, filled up to a multiple of 32; an array of the sampler alone: see `occupations`.

    Attributes
    ----------
    bits : (A * planes + 2, W / 32) uint32; the last two rows are all ones and all zeros.
    counters : (d, W) int32, ``n_counted * eta``.
    energy : (W,) eV of the whole supercell.
    accepted : (W,) moves accepted since the start that changed something; a float, which does not run over.
    keys : (W,) typed keys, of the windows. site_key : (), of the common sequence of sites.
    n_passes : () uint32, made so far.
    """

    bits: jax.Array
    counters: jax.Array
    energy: jax.Array
    accepted: jax.Array
    keys: jax.Array
    site_key: jax.Array
    n_passes: jax.Array


class Record(NamedTuple):
    """What is seen after each pass.

    Attributes
    ----------
    counters : (passes, d, W) int32, ``n_counted * eta``.
    energy : (passes, W) eV of the whole supercell.
    """

    counters: jax.Array
    energy: jax.Array


class Potential(NamedTuple):
    """`Conditions` as a move needs them: ``beta`` (W,), and (d, W) with the bias of one supercell
    ``sum C (intercept + slope C / 2)`` of the counters C."""

    beta: jax.Array
    slope: jax.Array
    intercept: jax.Array


def model(
    expansion: Any,
    supercell: Supercell,
    order_parameters: Any = None,
    *,
    n_species: Sequence[int] | None = None,
    moves: Moves = "flip",
    aliasing: bool = False,
) -> Model:
    """The sampler's tables for a Hamiltonian in a supercell.

    Parameters
    ----------
    expansion : a `ClusterExpansion`, or the `Terms` of one: ``(coefficient, ((l, m, n, s, k), ...))``, eV per cell.
    order_parameters : `OrderParameters`, or `Counters`; None for none.
    n_species : of each basis site; taken from the expansion's lattice, or the highest species that terms name.
    aliasing : allow clusters that meet their own periodic image; energies are then those of the folded Hamiltonian,
        exactly.

    Raises
    ------
    ValueError
        No site has two species, a term's site or species does not exist, a cluster meets its own image, order
        parameters are not commensurate with the supercell or do not fit it.
    """
    terms = expansion.terms() if hasattr(expansion, "terms") else tuple(expansion)
    if not all(np.isfinite(coefficient) for coefficient, _ in terms):
        raise ValueError("A coefficient of the cluster expansion is not finite.")
    species = _species(expansion, terms, supercell, n_species)
    n_species = tuple(len(names) for names in species)
    active = [s for s in range(supercell.n_basis) if n_species[s] > 1]
    if not active:
        raise ValueError("No site of the lattice has more than one species: there is nothing to sample.")
    if moves not in ("flip", "exchange"):
        raise ValueError(f"moves is {moves!r}; it is 'flip' or 'exchange'.")
    if not aliasing:
        check_range(terms, supercell)
    active.sort(key=lambda s: species.index(species[s]))  # sites that may exchange lie together
    n_cells, planes = supercell.n_cells, max(n_species) - 1
    first_row = {s: i * n_cells * planes for i, s in enumerate(active)}
    terms, units = in_units(terms)
    fields = [products_of_fields(terms, supercell, s, n_species[s]) for s in active]
    for polynomials in fields:
        polynomials += [{}] * (planes - len(polynomials))
    n_rows = len(active) * n_cells * planes + 2
    energy = [[products_of_energy(terms, supercell)]]
    counters = counters_of(order_parameters, supercell)
    kinds = [species.index(species[s]) for s in active]
    bounds = [(kinds.index(k) * n_cells, (kinds.index(k) + kinds.count(k)) * n_cells) for k in kinds]
    return Model(
        fields=local_sum(fields, supercell, first_row, planes, n_rows, units),
        energy=local_sum(energy, supercell, first_row, planes, n_rows, units),
        weights=jnp.asarray(np.asarray(counters.weights).T, jnp.int32),
        places=jnp.asarray(np.concatenate([np.arange(s * n_cells, (s + 1) * n_cells) for s in active]), jnp.int32),
        partners=jnp.asarray(np.repeat(bounds, n_cells, axis=0), jnp.int32),
        n_cells=n_cells,
        n_sites=supercell.n_sites,
        n_species=tuple(n_species[s] for s in active),
        counted=tuple(int(k) for k in counters.species),
        n_counted=int(counters.n_counted),
        moves=moves,
    )


def _species(expansion: Any, terms: Any, supercell: Supercell, n_species: Sequence[int] | None) -> list[tuple]:
    """The species of each basis site: names where the lattice gives them, numbers otherwise."""
    factors = [f for _, product in terms for f in product]
    if any(not 0 <= f[3] < supercell.n_basis for f in factors):
        raise ValueError(
            f"A term has a factor on basis site {max(f[3] for f in factors)}, and the supercell has "
            f"{supercell.n_basis}: give Supercell(matrix, n_basis) the lattice's number of sites."
        )
    highest = [max([f[4] for f in factors if f[3] == s], default=0) + 1 for s in range(supercell.n_basis)]
    if n_species is not None:
        species = [tuple(range(n)) for n in n_species]
    elif hasattr(expansion, "lattice"):
        species = [tuple(names) for names in expansion.lattice.species]
    else:
        species = [tuple(range(n)) for n in highest]
    if len(species) != supercell.n_basis:
        raise ValueError(f"Species are given for {len(species)} basis sites; the supercell has {supercell.n_basis}.")
    for s, (names, needed) in enumerate(zip(species, highest, strict=True)):
        if len(names) < needed:
            raise ValueError(f"A term names species {needed - 1} of basis site {s}, which has {len(names)} species.")
    return species


def counters_of(order_parameters: Any, supercell: Supercell) -> Counters:
    """`Counters` of an `OrderParameters` in this supercell; `Counters` as they are; None: no order parameters."""
    if order_parameters is None:
        return Counters(np.zeros((0, supercell.n_sites), int), (), supercell.n_cells)
    if not isinstance(order_parameters, Counters):
        weights = np.asarray(order_parameters.counters(supercell))
        n_counted = len(order_parameters.sites) * supercell.n_cells
        return Counters(weights, (int(order_parameters.species),) * len(weights), n_counted)
    weights = np.asarray(order_parameters.weights)
    if weights.ndim != 2 or weights.shape != (len(order_parameters.species), supercell.n_sites):
        raise ValueError(
            f"The weights of {len(order_parameters.species)} order parameters have shape {weights.shape}; the "
            f"supercell needs ({len(order_parameters.species)}, {supercell.n_sites})."
        )
    return order_parameters


def start(key: jax.Array, model: Model, occupation: Any, ids: Any = None) -> State:
    """A batch of windows at given occupations (W, n_sites).

    Window w has the random numbers of ``fold_in(key, ids[w])``, ids 0 .. W - 1 when left out, so that a window alone
    repeats its trajectory. The batch is filled up to a multiple of 32 with copies of the first window.
    """
    occupation = jnp.asarray(occupation)
    W = len(occupation)
    ids = jnp.arange(W) if ids is None else jnp.asarray(ids)
    occupation, ids = _fill(occupation), _fill(ids)
    counters = _count(model, occupation)
    species = occupation[:, model.places].T  # (A, W)
    planes = jnp.stack([species == k for k in range(1, model.planes + 1)], axis=1)
    bits = pack(planes.reshape(-1, planes.shape[-1]))
    ends = jnp.stack([jnp.full(bits.shape[1], 0xFFFFFFFF, jnp.uint32), jnp.zeros(bits.shape[1], jnp.uint32)])
    bits = jnp.concatenate([bits, ends])
    site_key, window_key = jax.random.split(key)
    return State(
        bits=bits,
        counters=counters,
        energy=total_energy(model, bits),
        accepted=jnp.zeros(len(ids), jnp.result_type(float)),
        keys=jax.vmap(lambda i: jax.random.fold_in(window_key, i))(ids),
        site_key=site_key,
        n_passes=jnp.zeros((), jnp.uint32),
    )


def _fill(array: jax.Array) -> jax.Array:
    """(W, ...) -> the next multiple of 32 windows, the first one repeated."""
    missing = -len(array) % WINDOWS
    return jnp.concatenate([array, jnp.broadcast_to(array[:1], (missing, *array.shape[1:]))])


def _count(model: Model, occupation: jax.Array) -> jax.Array:
    """(d, W) int32 of occupations (W, n_sites)."""
    counts = [
        jnp.sum(jnp.where(occupation == k, model.weights[:, i][None, :], 0), axis=1)
        for i, k in enumerate(model.counted)
    ]
    return jnp.stack(counts).astype(jnp.int32) if counts else jnp.zeros((0, len(occupation)), jnp.int32)


def occupations(model: Model, state: State) -> jax.Array:
    """(W, n_sites) int8, the fill included. Sites that cannot change hold species 0."""
    planes = unpack(state.bits[:-2]).reshape(len(model.places), model.planes, -1)
    numbers = jnp.arange(1, model.planes + 1, dtype=jnp.int8)
    species = jnp.sum(planes.astype(jnp.int8) * numbers[None, :, None], axis=1, dtype=jnp.int8)
    return jnp.zeros((species.shape[1], model.n_sites), jnp.int8).at[:, model.places].set(species.T)


def total_energy(model: Model, bits: jax.Array) -> jax.Array:
    """(W,) eV of the whole supercell, from scratch."""
    zero = jnp.zeros(bits.shape[1] * WINDOWS, jnp.result_type(float))
    return jax.lax.fori_loop(0, model.n_cells, lambda cell, sum: sum + evaluate(model.energy, bits, cell)[0], zero)


def potential(model: Model, conditions: Conditions, width: int | None = None) -> Potential:
    """The bias in terms of the counters, for a batch filled up to ``width`` windows."""
    dtype = jnp.result_type(float)
    temperature = jnp.asarray(conditions.temperature, dtype)
    kappa, phi = (jnp.asarray(v, dtype) for v in (conditions.kappa, conditions.phi))
    mu = jnp.broadcast_to(jnp.asarray(conditions.mu, dtype), kappa.shape)
    n = model.n_counted
    slope, intercept = 2 * phi * (model.n_cells / n**2), -(2 * phi * kappa + mu) * (model.n_cells / n)
    fill = (width or len(temperature)) - len(temperature)

    def filled(v: jax.Array) -> jax.Array:
        return jnp.concatenate([v, jnp.broadcast_to(v[:1], (fill, *v.shape[1:]))])

    return Potential(filled(1 / (KB * temperature)), filled(slope).T, filled(intercept).T)


def bias(potential: Potential, counters: jax.Array) -> jax.Array:
    """(W,) eV, bias and chemical work of the whole supercell, but for the constant ``N sum phi kappa^2``."""
    c = counters.astype(potential.slope.dtype)
    return jnp.sum(c * (potential.intercept + 0.5 * potential.slope * c), axis=0)


def passes(model: Model, conditions: Conditions, state: State, n_passes: Any, capacity: int) -> tuple[State, Record]:
    """``n_passes`` passes (an array or int, at most the static ``capacity``), a record after each.

    A pass is as many tried moves as there are active sites. The record's rows beyond ``n_passes`` are zero, its
    windows as many as conditions.
    """
    W, width = len(conditions.temperature), len(state.energy)
    pot = potential(model, conditions, width)
    n_chunks = -(-model.n_tries // CHUNK)
    size = -(-model.n_tries // n_chunks)
    move = partial(_flip if model.moves == "flip" else _exchange, model, pot)
    draws = 2 if model.moves == "flip" and model.planes > 1 else 1

    def chunk(c, carry):
        state, n = carry
        number = n * jnp.uint32(n_chunks) + jnp.asarray(c, jnp.uint32)
        sites = _sites(jax.random.fold_in(state.site_key, number), model, size)
        random = jax.vmap(lambda key: jax.random.bits(jax.random.fold_in(key, number), (size, draws), jnp.uint32))(
            state.keys
        )
        random = jnp.transpose(random, (1, 2, 0))

        def step(i, moving):
            return move(moving, sites[i], random[i])

        moving = state.bits, state.counters, state.energy, state.accepted
        moving = jax.lax.fori_loop(0, jnp.minimum(size, model.n_tries - c * size), step, moving)
        return State(*moving, *state[4:]), n

    def one_pass(p, carry):
        state, record = carry
        state, _ = jax.lax.fori_loop(0, n_chunks, chunk, (state, state.n_passes))
        state = state._replace(n_passes=state.n_passes + 1)
        record = Record(record.counters.at[p].set(state.counters), record.energy.at[p].set(state.energy))
        return state, record

    record = Record(
        jnp.zeros((capacity, *state.counters.shape), jnp.int32), jnp.zeros((capacity, width), state.energy.dtype)
    )
    state, record = jax.lax.fori_loop(0, n_passes, one_pass, (state, record))
    return state, Record(record.counters[:, :, :W], record.energy[:, :W])


def _sites(key: jax.Array, model: Model, size: int) -> jax.Array:
    """(size, 2) active sites to try, the second a partner for an exchange (any site that takes the same species)."""
    key, partner_key = jax.random.split(key)
    first = jax.random.randint(key, (size,), 0, model.n_tries, jnp.int32)
    bounds = model.partners[first]
    second = jax.random.randint(partner_key, (size,), bounds[:, 0], bounds[:, 1], jnp.int32)
    return jnp.stack([first, second], axis=1)


def species_at(model: Model, bits: jax.Array, site: jax.Array) -> jax.Array:
    """(W,) uint8 species on active site ()."""
    rows = jax.lax.dynamic_slice_in_dim(bits, site * model.planes, model.planes)
    planes = unpack(rows)
    species = planes[0]
    for k in range(1, model.planes):
        species = species + jnp.uint8(k + 1) * planes[k]
    return species


def put(model: Model, bits: jax.Array, site: jax.Array, species: jax.Array) -> jax.Array:
    """The bits with species (W,) on active site ()."""
    planes = jnp.stack([species == k for k in range(1, model.planes + 1)])
    return jax.lax.dynamic_update_slice_in_dim(bits, pack(planes), site * model.planes, 0)


def another_species(model: Model, site: jax.Array, old: jax.Array, random: jax.Array) -> jax.Array:
    """(W,) uint8 species other than ``old``, each as probable; ``random`` (W,) uint32."""
    if model.planes == 1:
        return jnp.uint8(1) - old
    number = jnp.array(model.n_species, jnp.uint32)[site // model.n_cells]
    shift = 1 + (((random >> 8) * (number - 1)) >> 24)  # 24 bits: unequal by 2^-24
    return ((old.astype(jnp.uint32) + shift) % number).astype(jnp.uint8)


def flip_energy(model: Model, bits: jax.Array, site: jax.Array, old: jax.Array, new: jax.Array) -> jax.Array:
    """(W,) eV gained by the supercell when active site () goes from species ``old`` to ``new``, both (W,)."""
    fields = evaluate(model.fields, bits, site)
    change = jnp.zeros(fields.shape[1], fields.dtype)
    for k in range(1, model.planes + 1):
        change = change + fields[k - 1] * ((new == k).astype(fields.dtype) - (old == k).astype(fields.dtype))
    return change


def flip_counters(model: Model, site: jax.Array, old: jax.Array, new: jax.Array) -> jax.Array:
    """(d, W) int32 change of the counters."""
    delta = {k: (new == k).astype(jnp.int32) - (old == k).astype(jnp.int32) for k in set(model.counted)}
    if not delta:
        return jnp.zeros((0, len(old)), jnp.int32)
    weights = model.weights[model.places[site]]
    if len(delta) == 1:
        return weights[:, None] * delta[model.counted[0]][None, :]
    return weights[:, None] * jnp.stack([delta[k] for k in model.counted])


def bias_change(potential: Potential, counters: jax.Array, change: jax.Array) -> jax.Array:
    """(W,) eV of the whole supercell: ``N sum phi (2 (eta - kappa) d + d^2) - N mu . d``."""
    c, d = counters.astype(potential.slope.dtype), change.astype(potential.slope.dtype)
    return jnp.sum(d * (potential.intercept + potential.slope * (c + 0.5 * d)), axis=0)


def uniform(random: jax.Array) -> jax.Array:
    """uint32 -> float32 in (0, 1], fine near zero, where rare moves are decided."""
    return (random.astype(jnp.float32) + 0.5) * jnp.float32(2.0**-32)


def metropolis(exponent: jax.Array, random: jax.Array) -> jax.Array:
    """Whether to accept: probability ``min(1, exp(-exponent))``; ``random`` uint32. NaN is never accepted.

    The exponential is float32: a relative error of 1e-7 in a probability is one of 3e-9 eV in an energy at 300 K.
    """
    return uniform(random) <= jnp.exp(-exponent.astype(jnp.float32))


def _flip(model: Model, pot: Potential, moving: tuple, sites: jax.Array, random: jax.Array) -> tuple:
    bits, counters, energy, accepted = moving
    site = sites[0]
    old = species_at(model, bits, site)
    new = another_species(model, site, old, random[-1])
    gain = flip_energy(model, bits, site, old, new)
    change = flip_counters(model, site, old, new)
    accept = metropolis(pot.beta * (gain + bias_change(pot, counters, change)), random[0])
    bits = put(model, bits, site, jnp.where(accept, new, old))
    counters = counters + change * accept[None, :]
    return bits, counters, energy + jnp.where(accept, gain, 0), accepted + accept


def _exchange(model: Model, pot: Potential, moving: tuple, sites: jax.Array, random: jax.Array) -> tuple:
    bits, counters, energy, accepted = moving
    a, b = sites[0], sites[1]
    here, there = species_at(model, bits, a), species_at(model, bits, b)
    gain = flip_energy(model, bits, a, here, there)
    bits = put(model, bits, a, there)  # the second half of the exchange sees the first
    gain = gain + flip_energy(model, bits, b, there, here)
    change = flip_counters(model, a, here, there) + flip_counters(model, b, there, here)
    accept = metropolis(pot.beta * (gain + bias_change(pot, counters, change)), random[0])
    bits = put(model, bits, a, jnp.where(accept, there, here))
    bits = put(model, bits, b, jnp.where(accept, here, there))
    accept = accept & (here != there)
    counters = counters + change * accept[None, :]
    return bits, counters, energy + jnp.where(accept, gain, 0), accepted + accept
