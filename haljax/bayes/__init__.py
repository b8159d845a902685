"""The linear Gaussian model: compressed data, evidence, posterior, selection, calibration."""

from __future__ import annotations

from haljax.bayes.calibrate import calibration, coverage
from haljax.bayes.evidence import Info, ard, brr
from haljax.bayes.posterior import Posterior, committee, posterior, triangular_blocks, update, variance
from haljax.bayes.select import select
from haljax.bayes.statistics import Statistics, absorb, accumulate, empty, one_blas_thread, require_x64, seen_rows

__all__ = [
    "Info",
    "Posterior",
    "Statistics",
    "absorb",
    "accumulate",
    "ard",
    "brr",
    "calibration",
    "committee",
    "coverage",
    "empty",
    "one_blas_thread",
    "posterior",
    "require_x64",
    "seen_rows",
    "select",
    "triangular_blocks",
    "update",
    "variance",
]
