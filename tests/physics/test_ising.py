"""The sampler against exact solutions of the Ising model: E = -J sum s s' per cell, s = 1 - 2 p."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from haljax.lattice import monte_carlo as mc
from haljax.lattice.monte_carlo import Conditions, Counters
from haljax.lattice.supercell import Supercell
from haljax.lattice.units import KB
from haljax.lattice.windows import sample_windows
from tests.lattice.enumeration import ising, staggered

J = 0.02
CRITICAL = np.log(1 + np.sqrt(2)) / 2  # K = J / kT


@pytest.mark.parametrize("sign", [1, -1])
def test_chain_at_given_magnetisation(sign):
    """beta h = asinh(m exp(-2 K) / sqrt(1 - m^2)): of the magnetisation for J > 0, of the staggered one for J < 0."""
    N, T = 192, 450.0
    cell = Supercell(np.diag([N, 1, 1]).tolist())
    weights = staggered(cell, (0,)).weights[1:] if sign < 0 else np.ones((1, N), int)
    m = np.linspace(-0.8, 0.8, 32)
    # eta = (1/N) sum w p: with w = 1 it is (1 - m) / 2, with the alternating sign -m / 2
    eta = -m / 2 + (0.5 if sign > 0 else 0.0)
    given = Conditions(np.full(32, T), eta[:, None], np.full((32, 1), 1.0))
    result = sample_windows(jax.random.key(0), ising(sign * J, axes=((1, 0, 0),)), cell, Counters(weights, (1,), N),
                            given, precision=2e-3, min_passes=3000, max_passes=20000)  # fmt: skip
    assert np.all(result.converged)
    K = J / (KB * T)
    got = 1 - 2 * result.eta[:, 0] if sign > 0 else -2 * result.eta[:, 0]
    # e = g(eta) with dg/d eta = 2 h, since d eta = -dm / 2 and the field's energy is -h m
    expected = -2 * KB * T * np.arcsinh(got * np.exp(-2 * K) / np.sqrt(1 - got**2))
    error = result.mu_error[:, 0]
    # beyond the error bar, g''' Var(eta) / 2 = O(1/N), largest at the ends
    np.testing.assert_array_less(np.abs(result.mu[:, 0] - expected), 4 * error + 0.06 / N)
    inner = np.abs(m) < 0.5
    assert abs(np.mean(((result.mu[:, 0] - expected) / error)[inner])) < 1.5
    # the Hessian is its derivative: dh/dm = kT exp(-2K) / ((1 - m^2) sqrt(1 - m^2 + m^2 exp(-4K))), times 4
    a = np.exp(-2 * K)
    slope = 4 * KB * T * a / ((1 - got**2) * np.sqrt(1 - got**2 + got**2 * a**2))
    z = (result.hessian[:, 0, 0] - slope) / result.hessian_error[:, 0, 0]
    assert np.abs(z[inner]).max() < 5


def kaufman(K, L):
    """ln Z of the L x L torus, K = J / kT. Kaufman, Phys. Rev. 76, 1232 (1949), doi:10.1103/PhysRev.76.1232."""
    r = np.arange(2 * L)
    gamma = np.arccosh(np.maximum(1, np.cosh(2 * K) ** 2 / np.sinh(2 * K) - np.cos(np.pi * r / L)))
    gamma[0] = 2 * K + np.log(np.tanh(K))  # signed
    odd, even = L * gamma[1::2] / 2, L * gamma[::2] / 2
    half = L * L / 2 * np.log(2 * np.sinh(2 * K)) - np.log(2)
    logs = [np.sum(np.log(2 * f(x))) for f, x in ((np.cosh, odd), (np.sinh, odd), (np.cosh, even))]
    sinh = 2 * np.sinh(even)
    top = max(logs)
    last = np.prod(np.sign(sinh)) * np.exp(np.sum(np.log(np.abs(sinh) + 1e-300)) - top)
    return half + top + np.log(np.sum(np.exp(np.array(logs) - top)) + last)


def exact(K, L, h=1e-3):
    """Energy per site in J, and specific heat per site in k, by differences of ln Z."""
    z = [kaufman(K + i * h, L) for i in (-2, -1, 0, 1, 2)]
    first = (z[0] - 8 * z[1] + 8 * z[3] - z[4]) / (12 * h)
    second = (-z[0] + 16 * z[1] - 30 * z[2] + 16 * z[3] - z[4]) / (12 * h**2)
    return -first / L**2, K**2 * second / L**2


def test_kaufman_against_all_states_and_onsager():
    from tests.lattice.enumeration import all_states, energies

    cell = Supercell(np.diag([4, 4, 1]).tolist())
    energy = energies(ising(1.0), cell, all_states(16)) * 16
    for K in (0.2, 0.3, CRITICAL, 0.5):
        np.testing.assert_allclose(kaufman(K, 4), np.log(np.sum(np.exp(-K * energy))), rtol=1e-11)
    np.testing.assert_allclose(exact(CRITICAL, 128)[0], -np.sqrt(2), atol=0.01)  # u(T_c) = -sqrt 2 J


def square(L, K, passes, seed=0):
    """Unbiased windows at coupling K (W,): energy per site in J, specific heat, |m|, each (W,)."""
    cell = Supercell(np.diag([L, L, 1]).tolist())
    model = mc.model(ising(J), cell, Counters(np.ones((1, L * L), int), (1,), L * L))
    W = len(K)
    given = Conditions(J / (KB * K), np.zeros((W, 1)), np.zeros((W, 1)))
    occupation = np.random.default_rng(seed).integers(0, 2, (W, L * L))
    run = jax.jit(mc.passes, static_argnames="capacity")
    state = jax.jit(mc.start)(jax.random.key(seed), model, occupation)
    state, _ = run(model, given, state, passes // 10, passes)
    _, record = run(model, given, state, passes, passes)
    energy = np.asarray(record.energy) / J
    m = np.abs(1 - 2 * np.asarray(record.counters[:, 0]) / L**2)
    return energy.mean(axis=0) / L**2, K**2 * energy.var(axis=0) / L**2, m.mean(axis=0)


@pytest.mark.parametrize(
    "L, passes",
    [(8, 4000), pytest.param(12, 20000, marks=pytest.mark.slow), pytest.param(16, 40000, marks=pytest.mark.slow)],
)
def test_square_lattice_near_the_critical_point(L, passes):
    K = np.array([0.38, CRITICAL, 0.46])
    energy, heat, m = (v.reshape(3, 32) for v in square(L, np.repeat(K, 32), passes))
    for i in range(3):
        u, c = exact(K[i], L)
        for values, expected in ((energy[i], u), (heat[i], c)):
            error = values.std(ddof=1) / np.sqrt(32)
            # the variance from a finite series is too small by its inefficiency over its length, some 2 %
            slack = 0.03 * c if expected == c else 0.0
            assert abs(values.mean() - expected) < 4 * error + slack, (K[i], values.mean(), expected, error)
    assert np.all(np.diff(m.mean(axis=1)) > 0)


def test_magnetisation_against_all_states():
    from tests.lattice.enumeration import all_states, energies

    states = all_states(16)
    cell = Supercell(np.diag([4, 4, 1]).tolist())
    energy, size = energies(ising(1.0), cell, states) * 16, np.abs(1 - 2 * states.mean(axis=1))
    K = np.array([0.3, CRITICAL])
    _, _, m = (v.reshape(2, 32) for v in square(4, np.repeat(K, 32), 4000))
    for i in range(2):
        p = np.exp(-K[i] * (energy - energy.min()))
        expected = p @ size / p.sum()
        assert abs(m[i].mean() - expected) < 4 * m[i].std(ddof=1) / np.sqrt(32)
