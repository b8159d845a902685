"""Configs of campaigns: typed, validated TOML, one class a table, one attribute a key.

The string under an attribute says what it means, and is what an error shows. Relative paths are relative to the
TOML file.
"""

from __future__ import annotations

from haljax.config.free_energy import MAY_CHANGE_FREE_ENERGY, FreeEnergyConfig
from haljax.config.hal import MAY_CHANGE, Basis, Dynamics, HALConfig, Ramp, per_replica
from haljax.config.tables import ConfigError

__all__ = [
    "MAY_CHANGE",
    "MAY_CHANGE_FREE_ENERGY",
    "Basis",
    "ConfigError",
    "Dynamics",
    "FreeEnergyConfig",
    "HALConfig",
    "Ramp",
    "per_replica",
]
