"""haljax: find out where a model of a material is uncertain, go there, ask the truth, and learn.

The names below are the front door; they are loaded when first used, so that ``import haljax`` is light and
initialises no backend.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "ACEBasis": "haljax.ace",
    "GrowingBasis": "haljax.ace",
    "ace_basis": "haljax.ace",
    "Model": "haljax.model",
    "load": "haljax.model_file",
    "fit": "haljax.training",
    "refit": "haljax.training",
    "select": "haljax.training",
    "update": "haljax.training",
    "calibrate": "haljax.evaluation",
    "evaluate": "haljax.evaluation",
    "potential": "haljax.potentials",
    "Calculator": "haljax.interop.ase",
    "HAL": "haljax.hal",
    "FreeEnergy": "haljax.free_energy.campaign",
}

__all__ = sorted([*_HOME, "__version__"])


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'haljax' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
