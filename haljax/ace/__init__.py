"""Linear atomic cluster expansion: what functions there are, and their values."""

from haljax.ace.basis import ACEBasis, Label
from haljax.ace.density import densities, density_features, density_gradient, mean_densities, n_density
from haljax.ace.features import closeness, core_energy, descriptor, descriptor_gradient, energy_and_features
from haljax.ace.growth import GrowingBasis, ace_basis

__all__ = [
    "ACEBasis",
    "GrowingBasis",
    "Label",
    "ace_basis",
    "closeness",
    "core_energy",
    "densities",
    "density_features",
    "density_gradient",
    "descriptor",
    "descriptor_gradient",
    "energy_and_features",
    "mean_densities",
    "n_density",
]
