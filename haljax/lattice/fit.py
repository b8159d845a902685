"""Cluster expansions from labelled structures, by the Bayesian linear model of `haljax.bayes`.

Correlations are the features, energies per primitive cell the targets, ECIs the coefficients (Mueller & Ceder, Phys.
Rev. B 80, 024103 (2009), doi:10.1103/PhysRevB.80.024103, is the Bayesian view of this fit).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular

from haljax import bayes
from haljax.bayes import Posterior, Statistics
from haljax.lattice.clusters import Orbit
from haljax.lattice.crystal import Lattice
from haljax.lattice.expansion import ClusterExpansion, SiteFunctions, correlations
from haljax.lattice.expansion import site_functions as checked_tables
from haljax.lattice.supercell import Supercell, determinant

if TYPE_CHECKING:
    from ase import Atoms

Array = Any  # numpy or JAX
Structure = Any  # ase.Atoms, or a pair of a Supercell and an occupation

VACANCIES = ("Va", "X", "Vac", "vacancy")  # names of a species that is no atom
UNIT = 1e-3  # eV: of the targets inside the fit, so that the weak hyper-priors of `bayes` are weak on their scale
MAX_STRAIN = 0.15  # of a structure's cell against the ideal one, beside a change of volume where that is known


@dataclass(frozen=True, eq=False)
class FittedExpansion:
    """A cluster expansion with the posterior of its ECIs.

    Attributes
    ----------
    lattice, orbits, site_functions : as of `ClusterExpansion`.
    posterior : of the ECIs (O,), eV per primitive cell, multiplicity inside.
    active : (O,) False where `ard` pruned the orbit.
    residuals : (n,) energy - fit of each structure, eV per primitive cell.
    leave_one_out : (n,) the residual of each structure when it is left out, at the same hyperparameters.
    """

    lattice: Lattice
    orbits: tuple[Orbit, ...]
    site_functions: SiteFunctions
    posterior: Posterior
    active: np.ndarray
    residuals: np.ndarray
    leave_one_out: np.ndarray

    @property
    def expansion(self) -> ClusterExpansion:
        """The expansion with the mean ECIs."""
        return self._with(self.posterior.mean)

    @property
    def eci_error(self) -> np.ndarray:
        """(O,) standard deviations of the ECIs, eV per primitive cell."""
        return np.asarray(jnp.linalg.norm(self.posterior.factor, axis=1))

    @property
    def noise(self) -> float:
        """Standard deviation of what the expansion cannot say about an energy, eV per primitive cell."""
        return float(1 / jnp.sqrt(self.posterior.noise_precision))

    def draw(self, key: jax.Array, n: int) -> list[ClusterExpansion]:
        """`n` expansions with ECIs drawn from the posterior, to carry their uncertainty on."""
        return [self._with(eci) for eci in np.asarray(bayes.committee(key, self.posterior, n))]

    def energies(self, structures: Sequence[Structure]) -> tuple[np.ndarray, np.ndarray]:
        """Energies (n,) of structures and their standard errors (n,), eV per primitive cell.

        The error is that of a label: of the ECIs, and of what the expansion cannot say (`noise`).
        """
        rows = jnp.asarray(features(self.lattice, self.orbits, structures, self.site_functions))
        variance = bayes.variance(self.posterior, rows) + 1 / self.posterior.noise_precision
        return np.asarray(rows @ self.posterior.mean), np.sqrt(np.asarray(variance))

    def _with(self, eci: Array) -> ClusterExpansion:
        return ClusterExpansion(self.lattice, self.orbits, tuple(np.asarray(eci).tolist()), self.site_functions)


def fit_expansion(
    lattice: Lattice,
    orbits: Sequence[Orbit],
    structures: Sequence[Structure],
    energies: Array | None = None,
    solver: str = "brr",
    site_functions: SiteFunctions | None = None,
    scale: Array | None = None,
) -> FittedExpansion:
    """Fit the ECIs of orbits to energies of structures by maximum evidence.

    The empty and the point orbits have a flat prior, since they carry the energies of the pure phases; all others
    share one prior width (`solver` "brr") or have one each ("ard", which prunes).

    Parameters
    ----------
    structures : labelled ase.Atoms, ideal or slightly relaxed (see `map_structure`), or pairs of a Supercell and an
        occupation.
    energies : (n,) eV per primitive cell; default: the label of each of the Atoms, divided by its number of cells.
    site_functions : tables as of `ClusterExpansion`.
    scale : (O,) orbits expected to have small ECIs get a large one: the prior precision is lambda * scale**2.

    Raises
    ------
    ValueError : no structures, a structure that does not map onto the lattice, an energy missing or not finite, an
        unknown solver, no orbit beside empty and points, structures that cannot tell those apart.
    RuntimeError : x64 is off.
    """
    bayes.require_x64()
    orbits = tuple(orbits)
    if solver not in _SOLVERS:
        raise ValueError(f"solver must be 'brr' or 'ard', not {solver!r}")
    if not len(structures):
        raise ValueError("there is nothing to fit: give at least one structure")
    tables = checked_tables(lattice, site_functions)
    pairs = [_mapped(lattice, structure, i) for i, structure in enumerate(structures)]
    if energies is None:
        energies = [_label(s, i) / pair[0].n_cells for i, (s, pair) in enumerate(zip(structures, pairs, strict=True))]
    targets = np.asarray(energies, float)
    if targets.shape != (len(structures),):
        raise ValueError(f"{len(structures)} structures but energies of shape {targets.shape}: give one for each")
    if not np.all(np.isfinite(targets)):
        raise ValueError(f"the energy of structure {int(np.argmin(np.isfinite(targets)))} is NaN or infinite")
    rows = features(lattice, orbits, pairs, tables)
    flat = np.array([found.order < 2 for found in orbits])
    if flat.all():
        raise ValueError("there is no orbit of two or more sites to fit: make some with `orbits`")
    scale = np.ones(len(orbits)) if scale is None else np.asarray(scale, float)
    if scale.shape != (len(orbits),) or not np.all(scale > 0):
        raise ValueError(f"scale must be {len(orbits)} positive numbers, one for each orbit")
    posterior, active = _solve(rows, targets / UNIT, flat, scale, solver)
    posterior = posterior._replace(
        mean=posterior.mean * UNIT,
        factor=posterior.factor * UNIT,
        noise_precision=posterior.noise_precision / UNIT**2,
        prior_precision=posterior.prior_precision / UNIT**2,
        log_evidence=posterior.log_evidence - len(targets) * np.log(UNIT),
    )
    residuals = targets - rows @ np.asarray(posterior.mean)
    leverage = float(posterior.noise_precision) * np.asarray(bayes.variance(posterior, jnp.asarray(rows)))
    left_out = residuals / np.maximum(1 - leverage, 1e-9)
    return FittedExpansion(lattice, orbits, tables, posterior, active, residuals, left_out)


def features(
    lattice: Lattice, orbits: Sequence[Orbit], structures: Sequence[Structure], tables: SiteFunctions | None = None
) -> np.ndarray:
    """Correlations (n, O) of structures, ase.Atoms or pairs of a Supercell and an occupation."""
    pairs = [_mapped(lattice, structure, i) for i, structure in enumerate(structures)]
    rows = [np.asarray(correlations(lattice, orbits, *pair, site_functions=tables)) for pair in pairs]
    return np.array(rows).reshape(len(rows), len(orbits))


def map_structure(lattice: Lattice, atoms: Atoms, tolerance: float | None = None) -> tuple[Supercell, np.ndarray]:
    """The supercell and the occupation (n_sites,) of a periodic structure on the lattice.

    The cell must lie as the lattice does; it may be strained a little, and where the lattice has no vacancies its
    volume may differ at will. Atoms go to the nearest sites, after the strain and a common shift are taken off; sites
    without an atom hold a vacancy (a species named "Va", "X", "Vac" or "vacancy"), as do atoms "X".

    Parameters
    ----------
    tolerance : Å, how far from its site an atom may be (default: 0.4 of the shortest distance between sites).

    Raises
    ------
    ValueError : a cell that is no supercell of the lattice's, an atom too far from every site, two on one site, an
        element that its site does not have, an empty site that cannot hold a vacancy.
    """
    name = f"structure {atoms.get_chemical_formula()}"
    if not np.all(atoms.pbc):
        raise ValueError(f"{name} is not periodic in all directions (pbc = {atoms.pbc.tolist()}), as a lattice is")
    cell, positions = np.array(lattice.cell), np.array(lattice.positions)
    vacancy = [next((names.index(v) for v in VACANCIES if v in names), None) for names in lattice.species]
    given = np.array(atoms.cell)
    if all(v is None for v in vacancy):
        n_cells, rest = divmod(len(atoms), lattice.n_sites)
        if rest or not n_cells:
            raise ValueError(
                f"{name} has {len(atoms)} atoms, no multiple of the lattice's {lattice.n_sites} sites, none of which "
                "can be vacant"
            )
        given = given / np.cbrt(abs(np.linalg.det(given) / np.linalg.det(cell)) / n_cells)
    exact = given @ np.linalg.inv(cell)
    rows = np.round(exact).astype(int)  # supercell vectors in primitive ones
    if determinant(rows) == 0 or np.max(np.abs(np.linalg.solve(rows @ cell, given) - np.eye(3))) > MAX_STRAIN:
        raise ValueError(
            f"{name}: its cell vectors are {np.round(exact, 3).tolist()} in the lattice's primitive vectors, too far "
            "from integers. Turn and scale the structure as the lattice, or give the lattice the structure's size"
        )
    supercell = Supercell(tuple((int(a), int(b), int(c)) for a, b, c in rows.T), lattice.n_sites)
    shortest = _shortest_distance(cell, positions)
    tolerance = 0.4 * shortest if tolerance is None else tolerance
    fractional = atoms.get_scaled_positions(wrap=False) @ rows
    shift = np.zeros(3)
    for _ in range(2):  # once to find the common shift
        sites, displacement = _nearest(fractional - shift, cell, positions)
        shift = shift + displacement.mean(axis=0) if len(atoms) else shift
    distance = np.linalg.norm(displacement @ cell, axis=1)
    if np.any(distance > tolerance):
        i = int(np.argmax(distance))
        raise ValueError(
            f"{name}: atom {i} ({atoms.symbols[i]}) is {distance[i]:.2f} Å from the nearest site of the lattice, more "
            f"than {tolerance:.2f}: it is relaxed too far, or its origin is another than the lattice's"
        )
    return supercell, _occupation(lattice, supercell, sites, list(atoms.symbols), vacancy, name)


def _occupation(
    lattice: Lattice,
    supercell: Supercell,
    sites: np.ndarray,
    symbols: list[str],
    vacancy: list[int | None],
    name: str,
) -> np.ndarray:
    place = supercell.index(sites)
    occupation = np.full(supercell.n_sites, -1, np.int32)
    holder: dict[int, int] = {}
    for i, (at, s, symbol) in enumerate(zip(place.tolist(), sites[:, 3].tolist(), symbols, strict=True)):
        if at in holder:
            raise ValueError(f"{name}: atoms {holder[at]} and {i} are on the same site of the lattice")
        holder[at] = i
        empty = vacancy[s] if symbol == "X" else None
        if symbol not in lattice.species[s] and empty is None:
            raise ValueError(
                f"{name}: atom {i} is {symbol}, but its site (basis site {s}) holds {' or '.join(lattice.species[s])}"
            )
        occupation[at] = lattice.species[s].index(symbol) if empty is None else empty
    for at in np.flatnonzero(occupation < 0).tolist():
        s = at // supercell.n_cells
        empty = vacancy[s]
        if empty is None:
            raise ValueError(f"{name}: no atom on a site (basis site {s}) that cannot be vacant: {lattice.species[s]}")
        occupation[at] = empty
    return occupation


def _nearest(fractional: np.ndarray, cell: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Nearest sites (n, 4) of positions (n, 3) in primitive coordinates, and displacements (n, 3) from them."""
    around = np.array(list(product((-1, 0, 1), repeat=3)))
    difference = fractional[:, None] - positions[None]  # (n, S, 3)
    cells = np.round(difference)[:, :, None] + around[None, None]  # (n, S, 27, 3)
    apart = difference[:, :, None] - cells
    length = np.linalg.norm(apart @ cell, axis=3).reshape(len(fractional), -1)
    best = np.argmin(length, axis=1)
    pick = (np.arange(len(fractional)), best // len(around), best % len(around))
    return np.concatenate([cells[pick], pick[1][:, None]], axis=1).astype(int), apart[pick]


def _shortest_distance(cell: np.ndarray, positions: np.ndarray) -> float:
    cells = np.array(list(product((-1, 0, 1), repeat=3)))
    apart = positions[:, None, None] - positions[None, :, None] + cells[None, None]
    length = np.linalg.norm(apart @ cell, axis=3)
    return float(np.min(length[length > 1e-6]))


def _mapped(lattice: Lattice, structure: Structure, i: int) -> tuple[Supercell, np.ndarray]:
    if isinstance(structure, tuple):
        return structure
    try:
        return map_structure(lattice, structure)
    except ValueError as error:
        raise ValueError(f"structure {i} does not map onto the lattice: {error}") from error


def _label(structure: Structure, i: int) -> float:
    if isinstance(structure, tuple):
        raise ValueError("structures given as occupations carry no label: give their energies, eV per primitive cell")
    from haljax.structures import labels

    return labels(structure, i).energy


def _solve(
    rows: np.ndarray, targets: np.ndarray, flat: np.ndarray, scale: np.ndarray, solver: str
) -> tuple[Posterior, np.ndarray]:
    """The posterior with a flat prior on some coefficients: those are integrated out, then put back.

    With the flat columns first, the triangle of a QR says about the others alone what its lower right block says.
    """
    order = np.argsort(~flat, kind="stable")
    p = int(flat.sum())
    with bayes.one_blas_thread():
        data = bayes.absorb(bayes.empty(len(flat)), jnp.asarray(rows[:, order]), jnp.asarray(targets))
        R11, R12, R22 = data.R[:p, :p], data.R[:p, p:], data.R[p:, p:]
        if not np.linalg.cond(R11) < 1e8:
            raise ValueError(
                f"the {len(rows)} structures do not determine the {p} empty and point ECIs: add structures of other "
                "compositions, or leave out the point orbits"
            )
        rest = Statistics(R22, data.z[p:], data.rss, data.n - p)
        found, info = jax.block_until_ready(_SOLVERS[solver](rest, jnp.asarray(scale[order][p:])))
    if not np.isfinite(float(found.log_evidence)):
        raise ValueError("the fit is not finite: look for extreme energies among the structures")
    back = solve_triangular(R11, jnp.concatenate([R12, data.z[:p, None], jnp.eye(p)], axis=1))
    onto, constant, inverse = back[:, : -p - 1], back[:, -p - 1], back[:, -p:]
    mean = jnp.concatenate([constant - onto @ found.mean, found.mean])
    factor = jnp.block(
        [
            [inverse / jnp.sqrt(found.noise_precision), -onto @ found.factor],
            [jnp.zeros((len(flat) - p, p)), found.factor],
        ]
    )
    precision = jnp.concatenate([jnp.zeros(p), found.prior_precision])
    inverse_order = np.argsort(order)
    active = np.concatenate([np.ones(p, bool), np.asarray(info.active)])[inverse_order]
    combined = Posterior(
        mean[inverse_order], factor[inverse_order], found.noise_precision, precision[inverse_order], found.log_evidence
    )
    return combined, active


_SOLVERS = {"brr": jax.jit(bayes.brr), "ard": jax.jit(bayes.ard)}
