"""Linear atomic cluster expansion: what functions there are, and their values."""

from haljax.ace.basis import ACEBasis, Label, ace_basis
from haljax.ace.density import densities, density_features, mean_densities, n_density
from haljax.ace.features import closeness, core_energy, descriptor, descriptor_gradient, energy_and_features

__all__ = [
    "ACEBasis",
    "Label",
    "ace_basis",
    "closeness",
    "core_energy",
    "densities",
    "density_features",
    "descriptor",
    "descriptor_gradient",
    "energy_and_features",
    "mean_densities",
    "n_density",
]
