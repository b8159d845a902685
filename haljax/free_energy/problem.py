"""What a config describes: the Hamiltonian, its order parameters, and the network that fits them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from haljax.config.free_energy import FreeEnergyConfig, LatticeModel
from haljax.config.free_energy import OrderParameters as OrderParametersTable
from haljax.free_energy.network import Network
from haljax.interop.icet import read_icet
from haljax.interop.smol import read_smol
from haljax.lattice.crystal import Lattice
from haljax.lattice.expansion import ClusterExpansion, check_range, load_expansion
from haljax.lattice.ideal import fractions
from haljax.lattice.order import OrderParameters, Wave, check_inside, order_parameters
from haljax.lattice.polytope import Polytope, half_spaces
from haljax.lattice.supercell import Supercell
from haljax.lattice.symmetry import invariants


class Problem(NamedTuple):
    """The static parts of a campaign; ``d`` is the number of order parameters."""

    expansion: ClusterExpansion
    supercell: Supercell
    order_parameters: OrderParameters
    network: Network
    d: int

    def resolved(self, eta: np.ndarray) -> bool:
        """Whether every sublattice has a site of either kind, in the simulated cell, at one eta (d,).

        Nearer to the boundary than that, mu only measures how far outside kappa is.
        """
        x = np.asarray(fractions(np.array(self.order_parameters.patterns, float), eta))
        return bool(np.minimum(x, 1 - x).min() >= self._share(1))

    def targets(self) -> Polytope:
        """The part of the domain to aim at: two sites from the boundary, where windows that end short are resolved."""
        op, share = self.order_parameters, self._share(2)
        return half_spaces(np.vstack([op.S, -op.S]), np.repeat([1 - share, -share], op.n_sub))

    def _share(self, sites: int) -> float:
        """So many sites as a fraction of a sublattice; where it has a few only, something must be left."""
        op = self.order_parameters
        return min(sites * op.n_sub / (self.supercell.n_cells * len(op.sites)), sites / 8)


def problem(config: FreeEnergyConfig) -> Problem:
    """Build what a config describes.

    Raises
    ------
    ValueError : the expansion cannot be read, its clusters do not fit the supercell, the order parameters are not
        commensurate with it or not closed under the space group, or a well lies outside their domain.
    """
    expansion, supercell = hamiltonian(config.lattice)
    op = order_parameters_of(expansion.lattice, config.order_parameters)
    op.counters(supercell)  # fail here rather than in every worker
    if len(set(op.patterns[0])) > 1:
        raise ValueError(
            "order_parameters: the first one must be the composition, to which phases, voltages and criteria look: "
            "begin with the wave { q = [0, 0, 0] }, or a pattern of ones"
        )
    if wells := config.order_parameters.wells:
        try:
            check_inside(op, np.array(wells))
        except ValueError as error:
            raise ValueError(f"order_parameters.wells: {error}; give eta between full and empty") from error
    c = config.network
    several = len(config.sampling.temperature_K) > 1
    if several and c.ideal and not _counted(expansion.lattice, op):
        raise ValueError(
            "network.ideal at several temperatures takes eta = 0 for one pure state, but here other species still mix "
            "there; set network.ideal = false, or learn one temperature"
        )
    network = Network(
        invariants=invariants(op.group, c.degree),
        patterns=op.patterns if c.ideal else None,
        widths=c.widths,
        activation=c.activation,
        temperature=several,
        dimension=op.d,
        separate=c.separate,
        sites=len(op.sites),
    )
    return Problem(expansion, supercell, op, network, len(op.patterns))


def _counted(lattice: Lattice, op: OrderParameters) -> bool:
    """Whether the order parameters count one of two species on every site that may hold several."""
    return all(s in op.sites and len(lattice.species[s]) == 2 for s in lattice.active)


_READERS = {".ce": read_icet, ".mson": read_smol}


def hamiltonian(table: LatticeModel) -> tuple[ClusterExpansion, Supercell]:
    """The cluster expansion and the simulated cell."""
    expansion = _READERS.get(Path(table.expansion).suffix, load_expansion)(table.expansion)
    supercell = Supercell(table.supercell, expansion.lattice.n_sites)
    check_range(expansion, supercell, allow_aliasing=table.allow_aliasing)
    return expansion, supercell


def order_parameters_of(lattice: Lattice, table: OrderParametersTable) -> OrderParameters:
    """The order parameters that a table describes, counted on every site that may hold the species."""
    sites = [s for s in lattice.active if table.species in lattice.species[s]]
    if not sites:
        choices = sorted({name for s in lattice.active for name in lattice.species[s]})
        raise ValueError(
            f"order_parameters.species = {table.species!r} is not a species that any site may hold or not; "
            f"choose one of {', '.join(choices)}"
        )
    species = lattice.species[sites[0]].index(table.species)
    waves = None if table.waves is None else [Wave(wave.q, wave.offset, wave.values) for wave in table.waves]
    return order_parameters(lattice, table.cell, waves, table.patterns, species, sites)
