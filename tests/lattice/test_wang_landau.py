from __future__ import annotations

import logging

import jax
import numpy as np
import pytest

from haljax.lattice import monte_carlo as mc
from haljax.lattice.supercell import Supercell
from haljax.lattice.units import KB
from haljax.lattice.wang_landau import canonical, wang_landau

from .enumeration import all_states, energies, ising

CELL = Supercell(np.diag([4, 4, 1]).tolist())
J = 0.02
EDGES = J * np.arange(-34.0, 35.0, 4.0)  # levels every 4 J, in the middle of their bins


def test_density_of_states_of_the_4x4_ising_model():
    model = mc.model(ising(J), CELL)
    level, number = np.unique(np.round(energies(ising(J), CELL, all_states(16)) * 16 / J), return_counts=True)
    result = wang_landau(jax.random.key(0), model, EDGES, final_log_f=1e-4, check_passes=200)
    assert result.converged and result.log_f <= 1e-4
    np.testing.assert_allclose(result.energy, level * J, atol=1e-9)
    # 1/t leaves an error of order sqrt(log f) a walker, 32 of which are averaged
    np.testing.assert_allclose(result.log_g, np.log(number), atol=0.05)
    assert np.all(result.error < 0.02) and np.all(np.abs(result.log_g - np.log(number)) < 6 * result.error + 2e-3)

    temperature = J / (KB * np.array([0.2, 0.44, 0.8]))
    free, energy, heat = canonical(result, temperature)
    weight = number * np.exp(-level[None] * J / (KB * temperature[:, None]))
    p = weight / weight.sum(axis=1, keepdims=True)
    mean = p @ level * J
    np.testing.assert_allclose(free, -KB * temperature * np.log(weight.sum(axis=1)), rtol=2e-3)
    np.testing.assert_allclose(energy, mean, rtol=1e-2)
    variance = p @ (level * J) ** 2 - mean**2
    np.testing.assert_allclose(heat, variance / (KB * temperature**2), rtol=5e-2)


def test_a_bin_that_some_walkers_missed_is_kept_and_said(caplog):
    """Walkers of four passes each: not all find the two ground states, whose bin must not vanish."""
    with caplog.at_level(logging.WARNING):
        result = wang_landau(
            jax.random.key(0),
            mc.model(ising(J), CELL),
            EDGES,
            walkers=32,
            max_passes=4,
            check_passes=2,
            final_log_f=1.0,
        )
    assert not result.converged and "bins were seen by some walkers only" in caplog.text
    assert np.any(np.isclose(result.energy, -32 * J)) and np.all(np.isfinite(result.log_g))


def test_unfinished_is_said(caplog):
    with caplog.at_level(logging.WARNING):
        result = wang_landau(jax.random.key(0), mc.model(ising(J), CELL), EDGES, max_passes=50, check_passes=25)
    assert not result.converged and "asked for 1e-06" in caplog.text


@pytest.mark.parametrize(
    "edges, moves, message",
    [
        (EDGES[::-1], "flip", "ascend"),
        (EDGES**3, "flip", "equal steps"),
        (EDGES - 5.0, "flip", "outside the edges"),
        (EDGES, "exchange", "flips sites"),
    ],
)
def test_bad_input(edges, moves, message):
    with pytest.raises(ValueError, match=message):
        wang_landau(jax.random.key(0), mc.model(ising(J), CELL, moves=moves), edges)


def test_x64_is_needed():
    """In float32 a count of tries ends at 2^24, and log_g takes no small increments."""
    with jax.enable_x64(False), pytest.raises(RuntimeError, match="needs float64.*JAX_ENABLE_X64=1"):
        wang_landau(jax.random.key(0), mc.model(ising(J), CELL), EDGES)
