"""Cluster expansions: correlations, energies, and the same energy as a polynomial in site indicators.

``E / n_cells = sum_o eci_o corr_o``, where corr_o is the mean over the cells and over the orbit of the product of
site functions: the multiplicity is inside the ECI (CASM's convention). Energies are eV per primitive cell.
Source: Sanchez, Ducastelle & Gratias, Physica A 128, 334 (1984), doi:10.1016/0378-4371(84)90096-7.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from haljax.lattice.clusters import Orbit, orbit
from haljax.lattice.crystal import Lattice, lattice
from haljax.lattice.supercell import Supercell

log = logging.getLogger(__name__)

Array = Any  # numpy or JAX
SiteFunctions = tuple[tuple[tuple[float, ...], ...], ...]
Factor = tuple[int, int, int, int, int]

FORMAT, VERSION = "haljax cluster expansion", 1


class Term(NamedTuple):
    """``coefficient * prod p[R + (l, m, n), s, k]``, summed over cells R; p = 1 where site s there holds species k.

    Attributes
    ----------
    coefficient : eV.
    factors : (l, m, n, s, k) with k >= 1, sorted, no site twice, the last one in cell (0, 0, 0); none in the constant.
    """

    coefficient: float
    factors: tuple[Factor, ...]


Terms = tuple[Term, ...]


@dataclass(frozen=True)
class ClusterExpansion:
    """An energy of the occupation of a lattice; hashable, so that it can be a static argument.

    Attributes
    ----------
    lattice : Lattice
    orbits : O orbits of that lattice.
    eci : (O,) eV per primitive cell, multiplicity inside.
    site_functions : for each basis site a table (n_species - 1, n_species), ``f[a - 1][species]`` of function a.
        Default: the occupation basis, f_a = 1 where the site holds species a.

    Raises
    ------
    ValueError : as many ECIs as orbits are not given, or some are not finite; an orbit is not one of the lattice or
        is there twice; tables of the wrong shape, of functions that depend on each other or the constant, or that
        differ between equivalent sites.
    """

    lattice: Lattice
    orbits: tuple[Orbit, ...]
    eci: tuple[float, ...]
    site_functions: SiteFunctions = ()

    def __post_init__(self) -> None:
        eci = np.asarray(self.eci, float)
        object.__setattr__(self, "orbits", tuple(self.orbits))
        if eci.shape != (len(self.orbits),):
            raise ValueError(f"{len(self.orbits)} orbits but ECIs of shape {eci.shape}: give one ECI for each orbit")
        if not np.all(np.isfinite(eci)):
            raise ValueError(f"the ECI of orbit {int(np.argmin(np.isfinite(eci)))} is NaN or infinite")
        object.__setattr__(self, "eci", tuple(map(float, eci)))
        _check_orbits(self.lattice, self.orbits)
        object.__setattr__(self, "site_functions", site_functions(self.lattice, self.site_functions or None))

    def replace_eci(self, eci: Array) -> ClusterExpansion:
        """The same orbits with other ECIs (O,)."""
        return replace(self, eci=tuple(map(float, eci)))

    def terms(self) -> Terms:
        """The energy as a multilinear polynomial in indicators; computed once.

        Any function of a site is ``f(0) + sum_k (f(k) - f(0)) p_k``. Products are multiplied out, equal ones merged
        and those that cancel to rounding dropped.
        """
        return _terms(self)


def site_functions(lattice: Lattice, tables: Sequence[Array] | None = None) -> SiteFunctions:
    """Checked tables of site functions, see `ClusterExpansion`; the occupation basis where none are given."""
    if tables is None:
        return tuple(_nested(np.eye(n)[1:]) for n in lattice.n_species)
    if len(tables) != lattice.n_sites:
        raise ValueError(f"{len(tables)} tables of site functions for {lattice.n_sites} basis sites")
    checked = []
    for s, (table, n) in enumerate(zip(tables, lattice.n_species, strict=True)):
        array = np.asarray(table, float) if n > 1 else np.zeros((len(table), n))
        if array.shape != (n - 1, n):
            raise ValueError(f"basis site {s} has {n} species: its site functions must be ({n - 1}, {n}), f[a - 1][k]")
        if n > 1 and not np.linalg.cond(np.concatenate([np.ones((1, n)), array])) < 1e10:
            raise ValueError(f"the site functions of basis site {s} and the constant are not linearly independent")
        checked.append(_nested(array))
    for image in lattice.operations.permutation:
        if wrong := [s for s, t in enumerate(image) if checked[s] != checked[t]]:
            s = wrong[0]
            raise ValueError(f"basis sites {s} and {image[s]} are equivalent but have different site functions")
    return tuple(checked)


def correlations(
    lattice: Lattice,
    orbits: Sequence[Orbit],
    supercell: Supercell,
    occupation: Array,
    site_functions: SiteFunctions | None = None,
) -> jax.Array:
    """Mean products of site functions (..., O) of occupations (..., n_sites); jittable in the occupation.

    Exact for the infinite crystal with that period, also where a cluster reaches beyond the supercell. NaN where
    an occupation holds a species that its site does not have.

    Raises
    ------
    ValueError : an occupation or a supercell that does not fit the lattice.
    """
    _check_basis(lattice, supercell)
    occupation = jnp.asarray(occupation)
    if occupation.ndim == 0 or occupation.shape[-1] != supercell.n_sites:
        raise ValueError(f"an occupation of shape {occupation.shape} for a supercell of {supercell.n_sites} sites")
    if jnp.issubdtype(occupation.dtype, jnp.floating):
        raise ValueError(f"an occupation holds integer species numbers, not {occupation.dtype}")
    tables = site_functions if site_functions is not None else _occupation_basis(lattice)
    table = _table(lattice, tables)  # (S, n_max + 1, F + 1)
    species = occupation.astype(jnp.int32)
    species = jnp.where((species < 0) | (species >= table.shape[1]), table.shape[1] - 1, species)
    basis_site = np.arange(supercell.n_sites) // supercell.n_cells
    values = jnp.asarray(table)[jnp.broadcast_to(basis_site, species.shape), species]
    index, owner, weight = _clusters(tuple(orbits), supercell, table.shape[2])
    return _orbit_means(values.reshape(*species.shape[:-1], -1), index, owner, jnp.asarray(weight))


def energy(expansion: ClusterExpansion, supercell: Supercell, occupation: Array) -> jax.Array:
    """Energy (...) of occupations (..., n_sites), eV per primitive cell; see `correlations`."""
    found = correlations(expansion.lattice, expansion.orbits, supercell, occupation, expansion.site_functions)
    return found @ jnp.asarray(np.array(expansion.eci), found.dtype)


def check_range(expansion: ClusterExpansion, supercell: Supercell, allow_aliasing: bool = False) -> tuple[int, ...]:
    """Indices of the orbits with a cluster that meets its own periodic image: two of its sites are one site.

    The energy of such a supercell is still that of the periodic crystal, but its sites interact with themselves, so
    that it tells little of the infinite, disordered one, and the change by a flip is not the product of the other
    sites. Raised as an error unless `allow_aliasing`, with which the Hamiltonian is accepted as it is and a
    warning logged.

    Raises
    ------
    ValueError : there are such orbits and they are not allowed; the supercell does not fit the lattice.
    """
    _check_basis(expansion.lattice, supercell)
    outside = []
    for o, found in enumerate(expansion.orbits):
        index = np.sort(supercell.index(np.array(found.clusters).reshape(found.multiplicity, found.order, 4)), axis=1)
        if np.any(index[:, 1:] == index[:, :-1]):
            outside.append(o)
    if outside:
        text = (
            f"{len(outside)} of {len(expansion.orbits)} orbits are outside the supercell's range: in the supercell "
            f"{supercell.matrix} clusters of orbits {', '.join(map(str, outside[:8]))}{', ...' * (len(outside) > 8)} "
            "meet their own periodic images"
        )
        if not allow_aliasing:
            raise ValueError(f"{text}. Take a larger supercell, or accept this with allow_aliasing=True")
        log.warning("%s", text)
    return tuple(outside)


def save_expansion(expansion: ClusterExpansion, path: str | os.PathLike[str], source: str = "") -> None:
    """Write an expansion as JSON: the lattice, and for each orbit a prototype, its multiplicity and the ECI."""
    found = expansion.lattice
    clusters = [
        {
            "sites": [list(site) for site in found.clusters[0]],
            "functions": list(found.functions[0]),
            "multiplicity": found.multiplicity,
            "eci": eci,
        }
        for found, eci in zip(expansion.orbits, expansion.eci, strict=True)
    ]
    content = {
        "format": FORMAT,
        "version": VERSION,
        "source": source,
        "units": "cell: Å, rows; sites: l, m, n, s; eci: eV per primitive cell, multiplicity inside",
        "cell": found.cell,
        "positions": found.positions,
        "species": found.species,
        "site_functions": expansion.site_functions,
        "clusters": clusters,
    }
    Path(path).write_text(json.dumps(content, indent=1))


def load_expansion(path: str | os.PathLike[str]) -> ClusterExpansion:
    """Read an expansion from JSON, see `save_expansion`.

    "functions" (default: all 1), "multiplicity" (checked where given) and "site_functions" (default: the occupation
    basis) may be left out.

    Raises
    ------
    ValueError : not such a file, an unknown version, a key missing, clusters or multiplicities that do not match
        the lattice.
    """
    try:
        content = json.loads(Path(path).read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f'{path} is not a cluster expansion: "format" must be "{FORMAT}"')
    if content.get("version") != VERSION:
        raise ValueError(f"{path} has version {content.get('version')!r}; this haljax reads version {VERSION}")
    try:
        crystal = lattice(content["cell"], content["positions"], content["species"])
        found, eci = [], []
        for i, entry in enumerate(content["clusters"]):
            try:
                found.append(orbit(crystal, entry["sites"], entry.get("functions")))
            except ValueError as error:
                raise ValueError(f"{path}: cluster {i} does not match the lattice: {error}") from error
            if entry.get("multiplicity", found[-1].multiplicity) != found[-1].multiplicity:
                raise ValueError(
                    f"{path}: cluster {i}, {entry['sites']}, has multiplicity {entry['multiplicity']} in the file but "
                    f"{found[-1].multiplicity} in its lattice: the ECIs belong to another lattice"
                )
            eci.append(entry["eci"])
    except KeyError as error:
        raise ValueError(f"{path} lacks {error}") from error
    return ClusterExpansion(crystal, tuple(found), tuple(eci), content.get("site_functions", ()))


@lru_cache(maxsize=64)
def _occupation_basis(lattice: Lattice) -> SiteFunctions:
    return site_functions(lattice)


@lru_cache(maxsize=64)
def _check_orbits(lattice: Lattice, orbits: tuple[Orbit, ...]) -> None:
    for o, found in enumerate(orbits):
        if orbit(lattice, found.clusters[0], found.functions[0]) != found:
            raise ValueError(f"orbit {o}, of {found.clusters[0]}, is not an orbit of the lattice: make it with `orbit`")
    if len(set(orbits)) < len(orbits):
        twice = next(o for o, found in enumerate(orbits) if found in orbits[:o])
        raise ValueError(f"orbit {twice}, of {orbits[twice].clusters[0]}, is there twice")


def _check_basis(lattice: Lattice, supercell: Supercell) -> None:
    if supercell.n_basis != lattice.n_sites:
        raise ValueError(f"the supercell has {supercell.n_basis} basis sites, the lattice {lattice.n_sites}")


@lru_cache(maxsize=16)
def _terms(expansion: ClusterExpansion) -> Terms:
    merged: dict[tuple[Factor, ...], float] = {}
    size: dict[tuple[Factor, ...], float] = {}
    for found, eci in zip(expansion.orbits, expansion.eci, strict=True):
        for sites, functions in zip(found.clusters, found.functions, strict=True):
            choices = []
            for site, a in zip(sites, functions, strict=True):
                f = expansion.site_functions[site[3]][a - 1]
                steps = [(f[0], ())] + [(f[k] - f[0], ((*site, k),)) for k in range(1, len(f))]
                choices.append([(value, factor) for value, factor in steps if value])
            for parts in product(*choices):
                coefficient = eci / found.multiplicity
                for value, _ in parts:
                    coefficient *= value
                key = _reduced(sum((factor for _, factor in parts), ()))
                merged[key] = merged.get(key, 0.0) + coefficient
                size[key] = size.get(key, 0.0) + abs(coefficient)
    kept = [Term(value, key) for key, value in merged.items() if abs(value) > 1e-14 * size[key]]
    return tuple(sorted(kept, key=lambda term: (len(term.factors), term.factors)))


def _reduced(factors: tuple) -> tuple[Factor, ...]:
    """Factors sorted and moved by a lattice vector so that the last is in cell (0, 0, 0)."""
    factors = tuple(sorted(factors))
    l, m, n = factors[-1][:3] if factors else (0, 0, 0)
    return tuple((i - l, j - m, k - n, s, species) for i, j, k, s, species in factors)


def _table(lattice: Lattice, tables: SiteFunctions) -> np.ndarray:
    """(S, n_max + 1, F + 1): function 0 is the constant; NaN for species that a site does not have."""
    n_max = max(lattice.n_species)
    table = np.zeros((lattice.n_sites, n_max + 1, n_max))
    table[:, :, 0] = 1
    for s, n in enumerate(lattice.n_species):
        table[s, :n, 1:n] = np.reshape(tables[s], (n - 1, n)).T
        table[s, n:] = np.nan
    return table


@lru_cache(maxsize=16)
def _clusters(
    orbits: tuple[Orbit, ...], supercell: Supercell, n_functions: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where the factors of every cluster stand (C, K, n_cells) in the flat values, its orbit (C,), and 1/multiplicity.

    Clusters smaller than the largest are filled up with function 0, the constant, of site 0.
    """
    owner = np.repeat(np.arange(len(orbits), dtype=np.int32), [found.multiplicity for found in orbits])
    width = max((found.order for found in orbits), default=0)
    index = np.zeros((len(owner), max(width, 1), supercell.n_cells), np.int32)
    c = 0
    for found in orbits:
        for sites, functions in zip(found.clusters, found.functions, strict=True):
            if sites:
                place = supercell.neighbours(np.array(sites))
                index[c, : len(sites)] = (place * n_functions + np.array(functions)[None, :]).T
            c += 1
    return index, owner, np.array([1 / found.multiplicity for found in orbits])


@jax.jit
def _orbit_means(values: jax.Array, index: jax.Array, owner: jax.Array, weight: jax.Array) -> jax.Array:
    """Correlations (..., O) from site functions (..., n_sites * n_functions), one cluster after another."""

    def mean(place):  # (K, n_cells)
        factors = values[..., place]
        product = factors[..., 0, :]
        for k in range(1, place.shape[0]):
            product = product * factors[..., k, :]
        return jnp.mean(product, axis=-1)

    means = jax.lax.map(mean, jnp.asarray(index))  # (C, ...)
    sums = jax.ops.segment_sum(means, owner, num_segments=weight.shape[0])
    return jnp.moveaxis(sums, 0, -1) * weight.astype(values.dtype).reshape((1,) * (values.ndim - 1) + (-1,))


def _nested(array: np.ndarray) -> tuple:
    return tuple(tuple(map(float, row)) for row in array)
