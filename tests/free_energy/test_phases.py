import jax
import numpy as np
import pytest
from scipy.optimize import brentq

from haljax.free_energy.mean_field import mean_field, regular_solution
from haljax.free_energy.phases import (
    coexistence,
    lower_hull,
    path_of,
    phase_diagram,
    relaxed,
    seeds,
    spinodals,
    voltage,
)
from haljax.lattice.polytope import from_sublattices
from haljax.lattice.units import KB

from .half_cube import DOMAIN, GROUP, IDEAL, PATTERNS, WELL, ZIGZAG, Ensemble, ordering

T_C = 1000.0
REGULAR = regular_solution(T_C)
LINE = from_sublattices([[1.0]])
NO_ORDER = seeds(jax.random.key(0), LINE)
X = np.linspace(0.01, 0.99, 99)


def binodal(T, T_c=T_C):
    """The left end of the gap: m = tanh(m T_c / T), x = (1 - m) / 2."""
    return (1 - brentq(lambda m: m - np.tanh(m * T_c / T), 1e-3, 1, xtol=1e-15)) / 2


@pytest.mark.parametrize("T", [500.0, 800.0, 950.0])
def test_regular_solution_binodal_and_spinodal(T):
    path = relaxed(REGULAR, LINE, T, X, NO_ORDER)
    pairs = coexistence(REGULAR, LINE, T, path)
    assert pairs.converged.tolist() == [True]
    np.testing.assert_allclose(pairs.composition[0], [binodal(T), 1 - binodal(T)], atol=1e-9)
    np.testing.assert_allclose(pairs.potential, 0, atol=1e-12)
    s = (1 - np.sqrt(1 - T / T_C)) / 2
    for relax in (True, False):
        found = spinodals(REGULAR, LINE, T, path, relax=relax)
        np.testing.assert_allclose(found.composition, [s, 1 - s], atol=1e-9)


def test_regular_solution_is_one_phase_above_its_critical_temperature():
    path = relaxed(REGULAR, LINE, T_C + 0.1, X, NO_ORDER)
    assert len(coexistence(REGULAR, LINE, T_C + 0.1, path).potential) == 0
    assert len(spinodals(REGULAR, LINE, T_C + 0.1, path).composition) == 0
    fine = np.linspace(0.45, 0.55, 51)  # the gap just below is narrow
    path = relaxed(REGULAR, LINE, T_C - 1, fine, NO_ORDER)
    pairs = coexistence(REGULAR, LINE, T_C - 1, path, tolerance=1e-13)
    np.testing.assert_allclose(pairs.composition[0], [binodal(T_C - 1), 1 - binodal(T_C - 1)], atol=1e-7)


def test_a_binodal_beyond_the_grid():
    x = np.linspace(0.05, 0.95, 19)  # at 300 K the gap reaches from 0.0014 to 0.9986
    path = relaxed(REGULAR, LINE, 300.0, x, NO_ORDER)
    pairs = coexistence(REGULAR, LINE, 300.0, path)
    np.testing.assert_allclose(pairs.composition[0], [binodal(300.0), 1 - binodal(300.0)], atol=1e-9)


def test_ideal_solution_has_no_gap():
    ideal = mean_field(lambda eta: 0.0 * eta[0], [[1.0]])
    path = relaxed(ideal, LINE, 300.0, X, NO_ORDER)
    assert len(coexistence(ideal, LINE, 300.0, path).potential) == 0
    np.testing.assert_allclose(path.potential, KB * 300 * np.log(X / (1 - X)), atol=1e-12)
    np.testing.assert_allclose(path.curvature, KB * 300 / (X * (1 - X)), rtol=1e-10)


def test_the_ideal_solution_stays_disordered():
    directions = seeds(jax.random.key(0), DOMAIN, GROUP, WELL, random=2)
    x = np.array([0.1, 0.5, 0.7])
    path = relaxed(IDEAL, DOMAIN, 300.0, x, directions, group=GROUP)
    np.testing.assert_allclose(path.eta[:, 1:], 0, atol=1e-7)
    np.testing.assert_allclose(path.curvature, KB * 300 / (x * (1 - x)), rtol=1e-7)


def zigzag_order(x, T):
    """Order parameter of one zigzag variant at composition x: two kinds of sublattices, x + e and x - e."""
    slope = lambda e: -0.7 * e + KB * T / 2 * np.log((x + e) * (1 - x + e) / ((1 - x - e) * (x - e)))
    largest = min(x, 1 - x)
    return brentq(slope, 1e-6, largest * (1 - 1e-13), xtol=1e-15)


@pytest.fixture(scope="module")
def zigzag_path():
    directions = seeds(jax.random.key(0), DOMAIN, GROUP, WELL, random=4)
    x = np.linspace(0.04, 0.96, 24)
    return directions, x, relaxed(ZIGZAG, DOMAIN, 600.0, x, directions, group=GROUP)


def test_the_order_of_the_zigzag(zigzag_path):
    _, x, path = zigzag_path
    assert path.converged.all()
    for i, composition in enumerate(x):
        ordered = 0.7 > KB * 600 / (composition * (1 - composition))  # else disorder is stable
        expected = np.eye(7)[0] * composition
        expected[1] = zigzag_order(composition, 600.0) if ordered else 0.0
        if i in (2, 21):  # where order sets in, a second variant comes with it
            assert path.free_energy[i] < ZIGZAG.free_energy(expected, 600.0) - 1e-6
        else:
            np.testing.assert_allclose(path.eta[i], expected, atol=1e-7 if ordered else 1e-6)
    np.testing.assert_allclose(path.potential, -path.potential[::-1], atol=1e-8)  # x -> 1 - x


def test_curvature_is_that_of_the_relaxed_free_energy(zigzag_path):
    directions, _, _ = zigzag_path
    h = 1e-4
    x = np.array([0.3 - h, 0.3, 0.3 + h])
    path = relaxed(ZIGZAG, DOMAIN, 600.0, x, directions, group=GROUP)
    np.testing.assert_allclose((path.free_energy[2] - path.free_energy[0]) / (2 * h), path.potential[1], rtol=1e-6)
    np.testing.assert_allclose((path.potential[2] - path.potential[0]) / (2 * h), path.curvature[1], rtol=1e-5)


def test_all_twelve_zigzags_are_equal():
    from haljax.free_energy.minimise import minimise

    starts = 0.9 * np.unique(np.round(GROUP @ WELL[0], 9) + 0.0, axis=0)
    starts[:, 0] = 0.5
    found = minimise(ZIGZAG, DOMAIN, starts, 300.0, fixed=(0,))
    assert len(starts) == 12
    np.testing.assert_allclose(found.free_energy, found.free_energy[0], rtol=1e-12)
    np.testing.assert_allclose(np.abs(found.eta[:, 1:]).sum(axis=1), zigzag_order(0.5, 300.0), atol=1e-8)


def test_coexistence_of_order_and_disorder():
    # strong attraction at half filling beside order: the ordered phase near 1/2 coexists with dilute disorder
    field = mean_field(lambda eta: ordering(eta) - 1.6 * (eta[0] - 0.5) ** 2, PATTERNS)
    directions = seeds(jax.random.key(0), DOMAIN, GROUP, WELL, random=2)
    x = np.linspace(0.02, 0.98, 25)
    path = relaxed(field, DOMAIN, 600.0, x, directions, group=GROUP)
    pairs = coexistence(field, DOMAIN, 600.0, path)
    assert len(pairs.potential) >= 1 and pairs.converged.all()
    for eta, slope in zip(pairs.eta, pairs.potential, strict=True):
        mu = np.asarray(field.chemical_potential(eta, 600.0))
        np.testing.assert_allclose(mu[:, 0], slope, atol=1e-9)
        np.testing.assert_allclose(mu[:, 1:], 0, atol=1e-9)
        g = np.asarray(field.free_energy(eta, 600.0))
        np.testing.assert_allclose(g[1] - g[0], slope * (eta[1, 0] - eta[0, 0]), atol=1e-12)
        tangent = g[0] + slope * (x - eta[0, 0])
        assert np.all(path.free_energy > tangent - 1e-9)  # no point lies below


def test_disorder_loses_stability_to_order():
    # along the disordered line the ordering eigenvalue kT / (x (1 - x)) - 0.7 changes sign
    x = np.linspace(0.01, 0.99, 50)
    line = path_of(ZIGZAG, np.column_stack([x, np.zeros((50, 6))]), 600.0)
    found = spinodals(ZIGZAG, DOMAIN, 600.0, line, relax=False)
    s = (1 - np.sqrt(1 - 4 * KB * 600 / 0.7)) / 2
    np.testing.assert_allclose(found.composition, [s, 1 - s], atol=1e-9)


def test_voltage_of_a_regular_solution():
    T = 600.0
    found = voltage(REGULAR, LINE, T, X, NO_ORDER, constant=3.9)
    gap = (X > binodal(T)) & (X < 1 - binodal(T))
    mu = np.where(gap, 0, 2 * KB * T_C * (1 - 2 * X) + KB * T * np.log(X / (1 - X)))
    np.testing.assert_allclose(found.voltage, 3.9 + mu, atol=1e-9)
    np.testing.assert_array_equal(found.plateau, gap)
    np.testing.assert_allclose(found.lithium, 1 - X)
    assert np.all(np.diff(found.voltage) >= -1e-9) and np.isnan(found.error).all()  # falls as lithium goes in
    lithium = voltage(REGULAR, LINE, T, X, NO_ORDER, constant=3.9, vacancies=False, sites=2)
    np.testing.assert_allclose(lithium.voltage, 3.9 - mu / 2, atol=1e-9)
    np.testing.assert_allclose(lithium.lithium, X)


def test_phase_diagram_with_the_members_spread():
    # the same form of energy, so one program serves the members: w enters as data through the sublattices' weight
    members = [regular_solution(T_c) for T_c in (980.0, 1020.0)]
    surface = Ensemble(*members)
    found = phase_diagram(surface, LINE, [600.0, 1000.5, 1100.0], X[::2], NO_ORDER)
    np.testing.assert_array_equal(found.temperature, [600.0])  # the mean has T_c = 1000 K
    np.testing.assert_allclose(found.composition[0], [binodal(600.0), 1 - binodal(600.0)], atol=1e-9)
    ends = [binodal(600.0, T_c) for T_c in (980.0, 1020.0)]
    np.testing.assert_allclose(found.composition_error[0], np.std(ends), rtol=1e-6)
    assert found.found.tolist() == [1.0] and found.converged.all()
    assert found.two_phase.shape == (3, 50)
    assert found.two_phase[0, 25] == 1 and found.two_phase[1, 25] == 0.5 and found.two_phase[2].max() == 0
    assert [len(s.composition) for s in found.spinodals] == [2, 0, 0]
    curve = voltage(surface, LINE, 1100.0, X[::10], NO_ORDER)
    exact = [2 * KB * T_c * (1 - 2 * X[::10]) for T_c in (980.0, 1020.0)]
    np.testing.assert_allclose(curve.error, np.std(exact, axis=0), atol=1e-10)


def test_an_empty_phase_diagram_keeps_its_shapes():
    found = phase_diagram(REGULAR, LINE, [2000.0], X[::10], NO_ORDER)
    assert found.composition.shape == (0, 2) and found.eta.shape == (0, 2, 1) and found.temperature.shape == (0,)


def test_lower_hull():
    rng = np.random.default_rng(0)
    x = np.sort(rng.random(60))
    f = rng.random(60) + (x - 0.5) ** 2
    corners = lower_hull(x, f)
    hull = np.interp(x, x[corners], f[corners])
    assert np.all(hull <= f + 1e-12) and {0, 59} <= set(corners)
    assert np.all(np.diff(np.diff(f[corners]) / np.diff(x[corners])) > 0)
    assert lower_hull([0, 1, 2], [0, np.nan, 1]).tolist() == [0, 2]


def test_seeds_differ_by_more_than_symmetry():
    directions = seeds(jax.random.key(0), DOMAIN, GROUP, WELL, random=3)
    np.testing.assert_array_equal(directions[0], 0)
    np.testing.assert_allclose(directions[1], [0, 1, 0, 0, 0, 0, 0], atol=1e-12)
    assert len(directions) == 1 + 1 + 3  # none, the zigzag, to which every axis is equivalent, and the random ones
    assert len(seeds(jax.random.key(0), DOMAIN, random=3)) == 1 + 12 + 3


def test_bad_input():
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        relaxed(REGULAR, LINE, 300.0, [0.0, 0.5], NO_ORDER)
    with pytest.raises(ValueError, match="temperature is 0"):
        relaxed(REGULAR, LINE, 0.0, [0.5], NO_ORDER)
    path = relaxed(REGULAR, LINE, 300.0, [0.5, 0.4], NO_ORDER)
    with pytest.raises(ValueError, match="compositions must rise"):
        coexistence(REGULAR, LINE, 300.0, path)
