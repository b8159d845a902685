"""Linear atomic cluster expansion: what functions there are, and their values."""

from haljax.ace.basis import ACEBasis, Label, ace_basis
from haljax.ace.features import core_energy, descriptor, descriptor_gradient, energy_and_features

__all__ = ["ACEBasis", "Label", "ace_basis", "core_energy", "descriptor", "descriptor_gradient", "energy_and_features"]
