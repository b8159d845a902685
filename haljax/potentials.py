"""Basis and posterior become energy, uncertainty and biased energy, as pure functions.

With D(x) the summed descriptor, E = E_core + sum_i e0(z_i) + c . D. The standard deviation of the model's energy is
sigma^2 = x^T Sigma x, where the features x are D, the number of atoms of each element (for the uncertainty of e0) and
functions of the local density (`haljax.ace.density`). sigma is the model's part alone, without noise or calibration:
it biases, stops and selects. The standard deviations that a user compares with errors, ``energy_std`` and so on, are
made from it in `haljax.evaluation`.

The biased energy of hyperactive learning is H = E - tau sigma (van der Oord et al., npj Comput Mater 9, 168 (2023),
doi:10.1038/s41524-023-01104-6); its force is that of a linear model with coefficients c - tau Sigma x / sigma, so it
costs one forward and one reverse pass, as the unbiased one does. The bias fades where atoms come closer than in the
data (`haljax.ace.closeness`): there the energy is repulsive, and no tau makes a hole in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from haljax.ace import ACEBasis, closeness, core_energy, density_features, descriptor, energy_and_features, n_density
from haljax.ace.features import RECOMPUTED, in_blocks
from haljax.structures import NeighbourList, Neighbours, System, neighbours_at, separations, vectors
from haljax.structures.lists import made_on_host, rows_of

if TYPE_CHECKING:
    from haljax.model import Model

Array = Any  # numpy or JAX

_HIGHEST = jax.lax.Precision.HIGHEST  # else a GPU may multiply float32 as TF32
_dot = partial(jnp.dot, precision=_HIGHEST)

SIGMA_FLOOR = 1e-6  # eV; keeps the gradient of sigma finite where the descriptor vanishes
ATOMS = 32  # whose shares in the energy are computed at a time
VOIGT = ((0, 1, 2, 1, 0, 0), (0, 1, 2, 2, 2, 1))  # xx, yy, zz, yz, xz, xy


class Parameters(NamedTuple):
    """The arrays of a fitted model: a pytree to vmap, donate or replace.

    Attributes
    ----------
    e0 : (Z,) energy of each isolated element, eV.
    mean : (M,) coefficients, eV.
    factor : (P, K) square root of the covariance of the first P features, Sigma = factor @ factor.T; P is M, M + Z
        (with E0) or all of `n_features`. For dynamics also its `haljax.bayes.triangular_blocks`, of float32 too, which
        makes sigma alone of that precision.
    radii : (2, Z, Z) of the core, Å, or (3, Z, Z) with the distances below which the bias fades; None for those of the
        basis.
    density : (channels, Z) reference densities of `haljax.ace.density`; None where the factor has no such rows.
    """

    e0: jax.Array
    mean: jax.Array
    factor: Any  # an array, or a tuple of them
    radii: jax.Array | None = None
    density: jax.Array | None = None


def parameters_of(model: Model) -> Parameters:
    """The arrays of a model that its energies depend on."""
    return Parameters(
        e0=jnp.asarray(model.e0),
        mean=jnp.asarray(model.coefficients),
        factor=jnp.asarray(model.spread.factor),
        radii=jnp.concatenate([jnp.asarray(model.radii), jnp.asarray(model.near)[None]]),
        density=jnp.asarray(model.density),
    )


def n_features(basis: ACEBasis) -> int:
    """Number of features that sigma depends on: M functions, Z counts of the elements, functions of the density."""
    return len(basis) + basis.n_species + n_density(basis)


class Evaluation(NamedTuple):
    """All first derivatives of one system.

    Attributes
    ----------
    energy, sigma : () eV; sigma is the posterior standard deviation of the total energy.
    forces, sigma_gradient : (N, 3) eV/Å; -dE/dR and d(sigma)/dR.
    virial, sigma_strain : (6,) eV, Voigt xx, yy, zz, yz, xz, xy; -dE/d(strain) and d(sigma)/d(strain).
    force_deviations : (K, N, 3) eV/Å, of a committee's forces from the mean's; K = 0 where none was asked for.
    """

    energy: Array
    sigma: Array
    forces: Array
    sigma_gradient: Array
    virial: Array
    sigma_strain: Array
    force_deviations: Array


class Seen(NamedTuple):
    """What the energy and sigma of a system are made of: the first features that the factor has rows for (P,), the
    energy of the core and how close the atoms are, ()."""

    features: jax.Array
    core: jax.Array
    closeness: jax.Array


def features_of(
    basis: ACEBasis, params: Parameters, system: System, neighbours: Neighbours, strain: jax.Array | None = None
) -> Seen:
    """NaN where the neighbour list is incomplete."""
    d, z_j = vectors(system, neighbours, 2 * basis.cutoff, strain)
    z_i = jnp.asarray(system.species)
    return Seen(
        _with_others(basis, params, descriptor(basis, d, z_i, z_j, params.radii), d, z_i, z_j)
        * _poison(neighbours, d.dtype),
        core_energy(basis, d, z_i, z_j, params.radii),
        closeness(basis, d, z_i, z_j, params.radii),
    )


def _with_others(
    basis: ACEBasis, params: Parameters, functions: jax.Array, d: jax.Array, z_i: jax.Array, z_j: jax.Array
) -> jax.Array:
    """The functions of the basis (M,) and the further features that the factor has rows for, (P,)."""
    parts, P = [functions], _n_rows(params)
    if P > len(basis):
        parts.append(counts(basis, z_i, d.dtype))
    if P > len(basis) + basis.n_species:
        assert params.density is not None
        parts.append(density_features(basis, params.density, d, z_i, z_j))
    return jnp.concatenate(parts)


def _n_rows(params: Parameters) -> int:
    """P, of the factor; of its blocks the last has all rows."""
    return len(params.factor[-1] if isinstance(params.factor, tuple) else params.factor)


def counts(basis: ACEBasis, species: jax.Array, dtype: Any) -> jax.Array:
    """Number of atoms of each element, (Z,)."""
    return jnp.sum(species[:, None] == jnp.arange(basis.n_species, dtype=species.dtype)[None, :], axis=0).astype(dtype)


def _faded(closeness: jax.Array) -> jax.Array:
    """The factor () of the bias: 1 for distances as in the data, 0 where a pair is at the core's outer radius."""
    return (1 - jnp.minimum(closeness, 1.0)) ** 2


def _mean(params: Parameters) -> jax.Array:
    """Coefficients (P,) of the mean for the features of the factor, those of E0 left out (`_one_body` counts them)."""
    return jnp.pad(params.mean, (0, max(_n_rows(params) - len(params.mean), 0)))


def _poison(neighbours: Neighbours, dtype: Any) -> jax.Array:
    return jnp.where(jnp.asarray(neighbours.overflow) == 0, 1.0, jnp.nan).astype(dtype)


def _one_body(params: Parameters, species: jax.Array) -> jax.Array:
    return jnp.sum(jnp.where(species >= 0, params.e0[jnp.maximum(species, 0)], 0.0))


def sigma_of(params: Parameters, features: jax.Array) -> jax.Array:
    """Posterior standard deviation of the energy, () eV, of a structure with the features (P,)."""
    blocks = params.factor if isinstance(params.factor, tuple) else (params.factor,)
    # In the factor's precision: the products are bound by the bandwidth of memory.
    parts = (_dot(features[: len(block)].astype(block.dtype), block) for block in blocks)
    variance = sum(jnp.sum(part.astype(jnp.result_type(part, features)) ** 2) for part in parts)
    # The floor is added to the square, so that reverse mode meets no root of zero.
    return jnp.sqrt(variance + SIGMA_FLOOR**2)


def total_energy(
    basis: ACEBasis,
    params: Parameters,
    system: System,
    neighbours: Neighbours,
    strain: jax.Array | None = None,
) -> jax.Array:
    """Total energy, eV, of one system; NaN where the neighbour list is incomplete. Its gradient by ``params.mean`` is
    the descriptor."""
    system, neighbours = jax.tree.map(jnp.asarray, (system, neighbours))
    geometry = _Geometry(system.positions, system.cell, strain)
    radii = jnp.asarray(basis.core_radii if params.radii is None else params.radii, system.positions.dtype)
    linear = _linear_energy(basis, params.mean, geometry, system.species, neighbours.index, neighbours.shift, radii)
    return linear * _poison(neighbours, system.positions.dtype) + _one_body(params, system.species)


@partial(jax.jit, static_argnums=0)
def atom_energies(basis: ACEBasis, params: Parameters, system: System, neighbours: Neighbours) -> jax.Array:
    """Share (N,) eV of each atom in the energy, E0 and core included; NaN where the neighbour list is incomplete."""
    system, neighbours = jax.tree.map(jnp.asarray, (system, neighbours))
    d, z_j = vectors(system, neighbours, 2 * basis.cutoff)

    def one(atom: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        d, z_i, z_j = (leaf[None] for leaf in atom)
        functions = descriptor(basis, d, z_i, z_j, params.radii)
        return _dot(params.mean, functions) + core_energy(basis, d, z_i, z_j, params.radii) + _one_body(params, z_i)

    return jax.lax.map(one, (d, system.species, z_j), batch_size=ATOMS) * _poison(neighbours, d.dtype)


class _Geometry(NamedTuple):
    """What the energy is differentiated by."""

    positions: jax.Array
    cell: jax.Array
    strain: jax.Array | None


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _linear_energy(
    basis: ACEBasis,
    coefficients: jax.Array,
    geometry: _Geometry,
    species: jax.Array,
    index: jax.Array,
    shift: jax.Array,
    radii: jax.Array,
) -> jax.Array:
    """Repulsive core of these radii, which are constants, and ``coefficients`` (M,) . D, eV.

    From positions to forces a block of atoms at a time, so that nothing but the list is ever held for all pairs. And a
    derivative computes nothing twice: with the coefficients known, a block's value and slopes are found together.
    """

    def add(total: jax.Array, block: tuple) -> tuple[jax.Array, None]:
        arguments: tuple[Any, ...] = (*_with_ends(geometry, species, *block), radii)
        return total + _block_energy(basis, coefficients, *arguments)[0], None

    start = jnp.zeros((), jnp.result_type(coefficients, geometry.positions))
    return jax.lax.scan(add, start, _blocks(geometry, species, index, shift))[0]


@_linear_energy.defjvp
def _linear_energy_jvp(basis: ACEBasis, primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    coefficients, geometry, species, index, shift, radii = primals
    positions, dtype = geometry.positions, geometry.positions.dtype
    both = jax.value_and_grad(partial(_block_energy, basis, coefficients), argnums=(0, 1), has_aux=True)

    def add(totals: tuple, block: tuple) -> tuple[tuple, jax.Array]:
        found, at_ends, whole = totals
        value, (slope, slope_at_ends) = both(*_with_ends(geometry, species, *block), radii)
        at_ends = at_ends.at[jnp.maximum(block[2], 0)].add(slope_at_ends)  # empty slots add zeros to atom 0
        whole = jax.tree.map(jnp.add, whole, slope._replace(positions=None))
        return (jax.tree.map(jnp.add, found, value), at_ends, whole), slope.positions

    start = (
        (jnp.zeros((), jnp.result_type(coefficients, positions)), jnp.zeros(len(basis), dtype)),
        jnp.zeros_like(positions),
        jax.tree.map(jnp.zeros_like, geometry._replace(positions=None)),
    )
    totals, at_starts = jax.lax.scan(add, start, _blocks(geometry, species, index, shift))
    (energy, features), at_ends, whole = totals
    gradient = whole._replace(positions=at_ends + at_starts.reshape(-1, 3)[: len(positions)])
    slopes = jax.tree.map(lambda slope, tangent: jnp.sum(slope * tangent), gradient, tangents[1])
    change = _dot(features, tangents[0]) + sum(jax.tree.leaves(slopes))
    return energy, change.astype(energy.dtype)


def _blocks(geometry: _Geometry, species: jax.Array, index: jax.Array, shift: jax.Array) -> tuple[jax.Array, ...]:
    return in_blocks((geometry.positions, species, index, shift), (0, -1, -1, 0))


def _with_ends(
    geometry: _Geometry, species: jax.Array, starts: jax.Array, z_i: jax.Array, index: jax.Array, shift: jax.Array
) -> tuple[Any, ...]:
    """A block of atoms for `_block_energy`."""
    ends, z_j = neighbours_at(geometry.positions, species, index)
    return geometry._replace(positions=starts), ends, z_i, z_j, shift


def _block_energy(
    basis: ACEBasis,
    coefficients: jax.Array,
    block: _Geometry,
    ends: jax.Array,
    z_i: jax.Array,
    z_j: jax.Array,
    shift: jax.Array,
    radii: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Repulsive core and ``coefficients`` . D, and D, of the atoms of a block."""
    d = separations(block.positions, ends, z_j, shift, block.cell, 2 * basis.cutoff, block.strain)
    return energy_and_features(basis, coefficients, d, z_i, z_j, radii)


def energy_and_sigma(
    basis: ACEBasis,
    params: Parameters,
    system: System,
    neighbours: Neighbours,
    strain: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Total energy and its posterior standard deviation, eV, of one system; vmap over replicas.

    For the energy's derivatives alone, `total_energy` is faster.
    """
    energy, sigma, _ = _energy_sigma_and_fade(basis, params, system, neighbours, strain)
    return energy, sigma


def biased_energy(
    basis: ACEBasis,
    params: Parameters,
    system: System,
    neighbours: Neighbours,
    tau: Array,
    strain: jax.Array | None = None,
) -> jax.Array:
    """E - tau sigma, () eV, of one system; the bias fades to zero where atoms come closer than in the data."""
    energy, sigma, fade = _energy_sigma_and_fade(basis, params, system, neighbours, strain)
    return energy - tau * fade * sigma


def _energy_sigma_and_fade(
    basis: ACEBasis, params: Parameters, system: System, neighbours: Neighbours, strain: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    system, neighbours = jax.tree.map(jnp.asarray, (system, neighbours))
    z_i = system.species
    if len(z_i) <= RECOMPUTED:  # one pass for both, forward and in reverse
        d, z_j = vectors(system, neighbours, 2 * basis.cutoff, strain)
        linear, functions = energy_and_features(basis, params.mean, d, z_i, z_j, params.radii)
        poison = _poison(neighbours, d.dtype)
        linear = linear * poison
        features = _with_others(basis, params, functions, d, z_i, z_j) * poison
        close = closeness(basis, d, z_i, z_j, params.radii)
    else:
        features, core, close = features_of(basis, params, system, neighbours, strain)
        linear = _dot(params.mean, features[: len(params.mean)]) + core
    return linear + _one_body(params, z_i), sigma_of(params, features), _faded(close)


def evaluate_system(
    basis: ACEBasis,
    params: Parameters,
    system: System,
    neighbours: Neighbours,
    draws: jax.Array | None = None,
) -> Evaluation:
    """Energy, sigma and all their first derivatives, of one system.

    Forces are linear in the coefficients: one forward pass gives the features, and one reverse pass for each set of
    coefficients its force: the mean, Sigma x / sigma, and the deviations ``draws`` (K, P) of a committee from the mean.
    ``sigma_gradient`` and ``sigma_strain`` are those of the bias, which fades as in `biased_energy`.
    """
    strain = jnp.zeros((3, 3), system.positions.dtype)
    seen, pull = jax.vjp(
        lambda positions, strain: features_of(basis, params, system._replace(positions=positions), neighbours, strain),
        system.positions,
        strain,
    )
    sigma, fade = sigma_of(params, seen.features), _faded(seen.closeness)
    faded = -2 * (1 - jnp.minimum(seen.closeness, 1.0))
    zero = jnp.zeros_like(seen.core)
    slope = _dot(params.factor, _dot(seen.features, params.factor)) / sigma
    coefficients = [Seen(_mean(params), zero + 1, zero), Seen(fade * slope, zero, faded * sigma)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *coefficients)
    if draws is not None:
        none = jnp.zeros(len(draws), zero.dtype)
        stacked = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), stacked, Seen(draws, none, none))
    gradients, tensions = jax.lax.map(pull, stacked)
    return Evaluation(
        _dot(params.mean, seen.features[: len(params.mean)])
        + seen.core
        + _one_body(params, jnp.asarray(system.species)),
        sigma,
        -gradients[0],
        gradients[1],
        -_voigt(tensions[0]),
        _voigt(tensions[1]),
        -gradients[2:],
    )


def _voigt(tensor: jax.Array) -> jax.Array:
    symmetric = (tensor + tensor.T) / 2
    return jnp.stack([symmetric[a, b] for a, b in zip(*VOIGT, strict=True)])


class Potential(NamedTuple):
    """Pure functions in jax-md's calling convention; see `potential`."""

    energy: Callable[..., jax.Array]
    sigma: Callable[..., jax.Array]
    biased: Callable[..., jax.Array]
    neighbours: Callable[..., NeighbourList]
    species: Callable[..., jax.Array]
    parameters: Parameters
    cutoff: float


def potential(model: Model) -> Potential:
    """A model as pure functions of positions, to jit, differentiate, vmap and put into jax-md.

    ``energy(R, box=None, species=None, neighbor=None, perturbation=None, parameters=None)`` and likewise ``sigma``
    and ``biased(…, tau)``; eV. sigma is the model's standard deviation alone, without noise and calibration, which
    ``energy_std`` of the calculator has. biased is E - tau sigma, and fades to E where atoms come closer than in the
    data, so that it is repulsive there whatever tau. Other keywords, which jax-md passes on (kT, say), are ignored.

    - R (N, 3): positions in Å (real coordinates).
    - box: lattice vectors in **columns** (jax-md), (3, 3), (3,) or a scalar, Å; None for a molecule. Of ASE's atoms it
      is ``atoms.cell.array.T``.
    - species (N,): indices into ``model.basis.elements``, -1 for a padded atom, as ``species(atoms)`` gives them; no
      atomic numbers. May be left out for one element. Energies are NaN where one is out of range.
    - neighbor: what ``neighbours(R, box, species, skin)`` gave (any cell, periodic images included), or a jax-md
      *dense* list, with which the box must be larger than twice the cutoff. Without one, a molecule takes all its
      pairs; a periodic system needs a list.
    - perturbation (3, 3): deformation of all vectors, as ``jax_md.quantity.stress`` passes it.
    - parameters: a `Parameters` pytree in place of the model's own, for example to vmap over coefficients.

    ``neighbours(R, box=None, species=None, skin=0.0)`` is a list made on the host, a `NeighbourList`. Once atoms have
    moved half the skin, or the box has changed as much, energies are NaN; ``neighbor.update(R, box)`` renews the list
    inside jit. jax-md's own list with ``dr_threshold`` looks at positions alone: it does not notice a box that changes.
    """
    basis = model.basis
    own = parameters_of(model)

    def species_of(atoms) -> jax.Array:
        """Species (N,) of ASE's atoms, or of a list of chemical symbols."""
        symbols = list(getattr(atoms, "symbols", atoms))
        if unknown := sorted(set(symbols) - set(basis.elements)):
            raise ValueError(f"{', '.join(unknown)} is not among the basis' elements ({', '.join(basis.elements)})")
        return jnp.array([basis.elements.index(symbol) for symbol in symbols], jnp.int32)

    def as_system(R, box, species) -> System:
        R = jnp.asarray(R)
        if species is None:
            if basis.n_species > 1:
                raise ValueError(
                    f"species is needed: an (N,) array of indices into the basis' elements {basis.elements}, as "
                    "potential.species(atoms) gives"
                )
            species = jnp.zeros(R.shape[0], jnp.int32)
        if not isinstance(species, jax.core.Tracer) and not np.all(_in_range(np.asarray(species), basis)):
            raise ValueError(
                f"species must be from 0 to {basis.n_species - 1}, indices into {basis.elements}, or -1 for a padded "
                f"atom, not {np.unique(species).tolist()}: potential.species(atoms) gives them"
            )
        cell = jnp.eye(3, dtype=R.dtype) if box is None else rows_of(box, R.dtype)
        return System(R, jnp.asarray(species), cell, jnp.full(3, box is not None))

    def neighbours(R, box=None, species=None, skin: float = 0.0) -> NeighbourList:
        """Complete neighbour list out to cutoff + skin (Å), on the host."""
        return made_on_host(as_system(R, box, species), basis.cutoff, skin)

    def arguments(R, box, species, neighbor, perturbation, parameters, others):
        _refuse_near_misses(others)
        params = own if parameters is None else parameters
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.asarray(R).dtype), params)
        system = as_system(R, box, species)
        strain = None if perturbation is None else jnp.asarray(perturbation).T - jnp.eye(3, dtype=system.cell.dtype)
        found = _as_neighbours(basis, system, neighbor, box is None, strain)
        known = jnp.all(_in_range(system.species, basis))
        return basis, params, system, found._replace(overflow=jnp.where(known, found.overflow, -1)), strain

    def energy(R, box=None, species=None, neighbor=None, perturbation=None, parameters=None, **others):
        return total_energy(*arguments(R, box, species, neighbor, perturbation, parameters, others))

    def sigma(R, box=None, species=None, neighbor=None, perturbation=None, parameters=None, **others):
        return energy_and_sigma(*arguments(R, box, species, neighbor, perturbation, parameters, others))[1]

    def biased(R, box=None, species=None, neighbor=None, tau=0.0, perturbation=None, parameters=None, **others):
        basis, params, system, found, strain = arguments(R, box, species, neighbor, perturbation, parameters, others)
        return biased_energy(basis, params, system, found, tau, strain)

    return Potential(energy, sigma, biased, neighbours, species_of, own, basis.cutoff)


def _in_range(species: Array, basis: ACEBasis) -> Array:
    return (species >= -1) & (species < basis.n_species)


def _refuse_near_misses(others: Mapping[str, Any]) -> None:
    """A misspelt argument is not one that jax-md passes on."""
    for name in others:
        if near := get_close_matches(name, ("box", "species", "neighbor", "tau", "perturbation", "parameters"), 1, 0.8):
            raise TypeError(f"{name!r} is no argument of a potential: did you mean {near[0]!r}?")


def _as_neighbours(
    basis: ACEBasis, system: System, neighbor: Any, molecule: bool, strain: jax.Array | None
) -> Neighbours:
    """haljax's own list, all pairs of a molecule, or a dense jax-md list taken at minimum image."""
    if isinstance(neighbor, NeighbourList):
        change = jnp.eye(3, dtype=system.cell.dtype) + (0.0 if strain is None else strain)
        positions, cell = (jnp.matmul(x, change, precision=_HIGHEST) for x in (system.positions, system.cell))
        return neighbor.checked(positions, cell)
    if isinstance(neighbor, Neighbours):
        return neighbor
    n = system.positions.shape[0]
    if neighbor is None:
        if not molecule:
            raise ValueError(
                "a periodic system needs a neighbour list: pass neighbor=potential.neighbours(R, box, species)"
            )
        index = jnp.broadcast_to(jnp.arange(n, dtype=jnp.int32)[None, :], (n, n))
        real = (system.species >= 0)[:, None] & (system.species >= 0)[None, :] & ~jnp.eye(n, dtype=bool)
        return Neighbours(jnp.where(real, index, -1), jnp.zeros((n, n, 3), jnp.int32), jnp.zeros((), jnp.int32))
    index = jnp.asarray(neighbor.idx)
    if index.ndim != 2 or index.shape[0] != n:
        raise ValueError(
            f"the jax-md list has idx of shape {index.shape}: build it with partition.neighbor_list(…, "
            "format=partition.Dense), or pass potential.neighbours(R, box, species)"
        )
    index = jnp.where((index < n) & (index != jnp.arange(n)[:, None]), index, -1)
    shift, complete = jnp.zeros((*index.shape, 3), jnp.int32), jnp.array(True)
    if not molecule:
        inverse = jnp.linalg.inv(system.cell)
        d = system.positions[jnp.maximum(index, 0)] - system.positions[:, None, :]
        shift = -jnp.round(jnp.einsum("nkc,cs->nks", d, inverse, precision=_HIGHEST)).astype(jnp.int32)
        # The minimum image is the only one as long as every height of the box exceeds twice the cutoff.
        complete = jnp.all(1 / jnp.sqrt(jnp.sum(inverse**2, axis=0)) >= 2 * basis.cutoff)
    complete = complete & ~jnp.any(jnp.asarray(neighbor.did_buffer_overflow))
    return Neighbours(index, jax.lax.stop_gradient(shift), jnp.where(complete, 0, -1).astype(jnp.int32))
