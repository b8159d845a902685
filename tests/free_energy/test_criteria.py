import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haljax.free_energy import criteria
from haljax.free_energy.criteria import billiard, scoring
from haljax.free_energy.criteria.billiard import bounce, walk
from haljax.free_energy.data import labels
from haljax.free_energy.mean_field import exact_labels, mean_field
from haljax.lattice.polytope import Polytope, half_spaces

from .half_cube import DOMAIN, GROUP, IDEAL, PATTERNS, WELL, ZIGZAG, Ensemble, ordering, view

KEY = jax.random.key(0)
BOX = half_spaces(np.vstack([np.eye(3), -np.eye(3)]), [1, 2, 3, 0, 0, 0])
SIMPLEX = half_spaces(np.vstack([-np.eye(3), np.ones((1, 3))]), [0, 0, 0, 1])
CANDIDATES = criteria.fill(jax.random.key(99), DOMAIN, 320)
LABELS = exact_labels(ZIGZAG, CANDIDATES[:60], 300.0)
OTHER = mean_field(lambda eta: ordering(eta) + 0.1 * eta[0] ** 4, PATTERNS)  # differs at many vacancies
COMMITTEE = Ensemble(ZIGZAG, OTHER)
TRAINED = view(COMMITTEE, LABELS, LABELS, CANDIDATES, group=GROUP, wells=WELL, patterns=PATTERNS)
NEEDS_A_SURFACE = ("committee", "high_error", "sensitivity", "instabilities", "finding_wells", "lowest_path")


@pytest.fixture(scope="module", params=sorted(criteria.CRITERIA))
def proposal(request):
    full = TRAINED._replace(pool=CANDIDATES)
    return request.param, criteria.propose(KEY, request.param, full, 24)


def test_every_criterion_proposes_points_of_the_domain(proposal):
    name, found = proposal
    assert found.eta.shape == (24, 7) and found.reason == ""
    assert np.all(DOMAIN.contains(found.eta, 1e-9))
    again = criteria.propose(KEY, name, TRAINED._replace(pool=CANDIDATES), 24)
    np.testing.assert_array_equal(found.eta, again.eta)


@pytest.mark.parametrize("name", sorted(criteria.CRITERIA))
def test_before_the_first_round(name):
    early = view(candidates=CANDIDATES, wells=WELL, group=GROUP, pool=CANDIDATES)
    found = criteria.propose(KEY, name, early, 5)
    if name in NEEDS_A_SURFACE:
        assert len(found.eta) == 0 and "needs a trained surface" in found.reason
    else:
        assert len(found.eta) == 5


# Space filling


def five_sigma(samples, exact):
    """Whether means agree, allowing that successive points of a walk are not independent (twice the variance)."""
    error = np.sqrt(2 * samples.var(axis=0) / len(samples))
    return np.all(np.abs(samples.mean(axis=0) - exact) < 5 * error)


def test_billiard_walks_fill_a_box_uniformly():
    x = np.asarray(criteria.fill(KEY, BOX, 16384))
    size = np.array([1.0, 2, 3])
    assert np.all(BOX.contains(x, 1e-12))
    assert five_sigma(x, size / 2) and five_sigma(x**2, size**2 / 3) and five_sigma(x**4, size**4 / 5)
    assert five_sigma(np.prod(x, axis=1)[:, None], np.prod(size / 2))


def test_billiard_walks_fill_a_simplex_uniformly():
    x = np.asarray(criteria.fill(KEY, SIMPLEX, 16384))  # Dirichlet(1, 1, 1, 1)
    assert np.all(SIMPLEX.contains(x, 1e-12))
    assert five_sigma(x, 1 / 4) and five_sigma(x**2, 1 / 10) and five_sigma(x**3, 1 / 20)
    assert five_sigma((x[:, 0] * x[:, 1])[:, None], 1 / 20)


def test_successive_points_of_a_walk_are_hardly_correlated():
    x = np.asarray(walk(KEY, DOMAIN, jnp.broadcast_to(jnp.asarray(DOMAIN.chebyshev_centre()[0]), (64, 7)), 256))
    assert len(np.unique(x.reshape(-1, 7), axis=0)) == 64 * 256
    centred = x - x.mean(axis=(0, 1))
    correlation = (centred[1:] * centred[:-1]).mean(axis=(0, 1)) / (centred**2).mean(axis=(0, 1))
    assert np.all(np.abs(correlation) < 0.35)


def test_boundary_points_are_on_the_boundary_and_uniform_by_area():
    x = np.asarray(criteria.fill_boundary(KEY, BOX, 16384))
    slack = np.asarray(BOX.slack(x))
    np.testing.assert_allclose(slack.min(axis=1), 0, atol=1e-14)
    assert five_sigma((slack < 1e-14) * 1.0, np.array([6, 3, 2, 6, 3, 2]) / 22)
    top = x[slack[:, 2] < 1e-14]
    assert five_sigma(top[:, :2], [0.5, 1.0]) and five_sigma(top[:, :2] ** 2, [1 / 3, 4 / 3])
    y = np.asarray(criteria.fill_boundary(KEY, DOMAIN, 2000))
    np.testing.assert_allclose(np.asarray(DOMAIN.slack(y)).min(axis=1), 0, atol=1e-14)


def test_a_line_has_two_boundary_points():
    line = half_spaces([[1.0], [-1.0]], [2.0, -1.0])
    assert set(np.asarray(criteria.fill_boundary(KEY, line, 200)).ravel()) == {1.0, 2.0}
    inner = np.asarray(criteria.fill(KEY, line, 4096))
    assert five_sigma(inner, 1.5) and five_sigma((inner - 1.5) ** 2, 1 / 12)


def test_walks_vmap_and_float32():
    start = jnp.full((4, 3), 0.2)
    both = jax.vmap(lambda key: walk(key, SIMPLEX, start, 3))(jax.random.split(KEY))
    one = walk(jax.random.split(KEY)[1], SIMPLEX, start, 3)
    np.testing.assert_allclose(both[1], one, atol=1e-9)  # chaos amplifies rounding by some 10 each of 53 flights
    half = bounce(KEY, Polytope(*(a.astype(np.float32) for a in SIMPLEX)), start.astype(jnp.float32), 50)
    assert half.dtype == jnp.float32 and np.all(SIMPLEX.contains(half, 1e-6))


def test_the_share_on_the_boundary():
    found = billiard(KEY, TRAINED, 40, boundary=0.25)
    on = np.asarray(DOMAIN.slack(found.eta)).min(axis=1) < 1e-12
    assert on.sum() == 10 and not on[:30].all() and on[:30].any()  # in random order
    with pytest.raises(ValueError, match="boundary = 2"):
        billiard(KEY, TRAINED, 40, boundary=2)


def test_a_share_in_the_plane_of_two():
    found = np.asarray(criteria.mixed(KEY, TRAINED, 40, share=0.5, axes=(0, 2), noise=0.04, boundary=0.0).eta)
    flat = np.abs(found[:, [1, 3, 4, 5, 6]]).max(axis=1) <= 0.02
    assert flat.sum() == 20 and np.abs(found[flat][:, 2]).max() > 0.1
    sharp = np.asarray(criteria.mixed(KEY, TRAINED, 40, share=1.0, axes=(0, 2), noise=0.0).eta)
    np.testing.assert_array_equal(sharp[:, [1, 3, 4, 5, 6]], 0)
    for axes in ((0, 0), (0, 7), (0,)):
        with pytest.raises(ValueError, match="two different order parameters"):
            criteria.mixed(KEY, TRAINED, 4, axes=axes)


@pytest.mark.parametrize("name", ["sobol", "latin_hypercube"])
def test_low_discrepancy_sequences_are_more_even_than_chance(name):
    simplex = TRAINED._replace(domain=SIMPLEX)
    x = np.asarray(criteria.propose(KEY, name, simplex, 1024).eta)
    assert np.all(SIMPLEX.contains(x))
    error = np.abs(x.mean(axis=0) - 0.25) / (np.sqrt(3 / 80) / 32)  # in standard errors of random points
    assert np.sqrt(np.mean(error**2)) < (0.5 if name == "sobol" else 2)
    other = np.asarray(criteria.propose(jax.random.key(1), name, simplex, 1024).eta)
    assert not np.any(np.all(x == other, axis=1))


def test_sobol_in_a_needle_says_so():
    needle = half_spaces([[1, -1.0], [-1, 1], [1, 0], [-1, 0]], [1e-9, 1e-9, 1, 0])
    with pytest.raises(ValueError, match="use the billiard walk"):
        criteria.sobol(KEY, TRAINED._replace(domain=needle), 10)


def test_a_pool_is_used_up_without_repetition():
    pool = np.concatenate([CANDIDATES[:10], CANDIDATES[:2], [[np.nan] * 7], [[2.0] * 7]])
    proposed, sizes = np.zeros((0, 7)), []
    for _ in range(4):
        found = criteria.propose(KEY, "pool", TRAINED._replace(pool=pool, proposed=proposed), 4)
        proposed = np.concatenate([proposed, found.eta])
        sizes.append(len(found.eta))
    assert sizes == [4, 4, 2, 0]
    np.testing.assert_array_equal(proposed, CANDIDATES[:10])
    assert found.reason.startswith("the pool of 14 has run out: 0 new points were left, 2 lie outside")
    with pytest.raises(ValueError, match="has no pool"):
        criteria.propose(KEY, "pool", TRAINED, 4)
    with pytest.raises(ValueError, match="the pool has shape"):
        criteria.propose(KEY, "pool", TRAINED._replace(pool=np.ones((3, 2))), 4)


# Uncertainty


def test_the_committee_goes_where_members_differ_most():
    found = criteria.committee(KEY, TRAINED, 10)
    spread = np.abs(0.4 * np.asarray(CANDIDATES[:, 0]) ** 3)  # they differ in mu_0 alone
    np.testing.assert_array_equal(found.eta, CANDIDATES[np.argsort(-spread)[:10]])
    with pytest.raises(ValueError, match="needs an ensemble"):
        criteria.committee(KEY, TRAINED._replace(surface=ZIGZAG), 10)


def test_the_committee_weighs_components_by_their_own_scale():
    # members differ by 1 meV in mu_0, whose labels vary by far more, and by 1 meV in mu_1 on the other half
    halves = Ensemble(
        IDEAL,
        mean_field(lambda e: 2e-3 * jnp.where(e[1] > 0, e[1], 0) + 2e-3 * jnp.where(e[1] > 0, 0, e[0]), PATTERNS),
    )
    found = criteria.committee(KEY, TRAINED._replace(surface=halves), 50).eta
    assert LABELS.mu[:, 0].std() > 2 * LABELS.mu[:, 1].std() and np.all(found[:, 1] > 0)


def test_high_error_goes_back_to_the_worst_labels():
    off = LABELS.mu.copy()
    off[7] += 0.3
    off[21, 3] += 0.2
    off[33] += 1.0
    noise = np.zeros_like(off)
    noise[33] = 2.0  # nothing to learn there
    worse = LABELS.replace(mu=off, mu_error=noise)
    found = criteria.high_error(KEY, TRAINED._replace(surface=ZIGZAG, latest=worse), 4, repeat=2, perturb=0.01)
    np.testing.assert_allclose(found.eta, LABELS.eta[[7, 7, 21, 21]], atol=0.005)
    assert len(np.unique(np.asarray(found.eta), axis=0)) == 4
    none = criteria.propose(KEY, "high_error", TRAINED._replace(latest=LABELS.select(slice(0, 0))), 4)
    assert none.reason == "needs labels of the last round, and there are none"
    few = criteria.propose(KEY, "high_error", TRAINED._replace(latest=LABELS.select(slice(0, 1))), 9, repeat=3)
    assert len(few.eta) == 3 and few.reason == "only 1 labels to go back to"


def test_sensitivity_is_sorted_by_the_largest_eigenvalue():
    surface = mean_field(lambda eta: 40 * eta[3] ** 4, PATTERNS)
    found = criteria.sensitivity(KEY, TRAINED._replace(surface=surface), 10, repeat=1, perturb=0.0)
    np.testing.assert_allclose(found.eta, CANDIDATES[np.argsort(-np.abs(CANDIDATES[:, 3]))[:10]], rtol=1e-12)
    ideal = scoring.curvatures(TRAINED._replace(surface=IDEAL), CANDIDATES)
    np.testing.assert_allclose(ideal, 0, atol=1e-9)  # the ideal solution's own curvature is left out
    whole = scoring.curvatures(TRAINED._replace(surface=IDEAL, patterns=None), CANDIDATES)
    assert np.all(whole > 0) and np.all(np.diff(whole, axis=1) >= 0)


def test_instabilities_come_by_their_strength():
    eigenvalues = np.asarray(scoring.eigenvalues(ZIGZAG.hessian(CANDIDATES, 300.0)))[:, 0]
    found = criteria.instabilities(KEY, TRAINED._replace(surface=ZIGZAG), 10, repeat=1, perturb=0.0)
    assert (eigenvalues < 0).sum() > 10
    np.testing.assert_allclose(found.eta, CANDIDATES[np.argsort(eigenvalues)[:10]], rtol=1e-12)
    none = criteria.propose(KEY, "instabilities", TRAINED._replace(surface=IDEAL), 10)
    assert len(none.eta) == 0 and none.reason == "no candidates that are unstable"
    few = criteria.propose(KEY, "instabilities", TRAINED._replace(surface=ZIGZAG), 900, repeat=1)
    assert len(few.eta) == (eigenvalues < 0).sum() and few.reason.startswith("only")


# Physics


def test_setting_wells_go_round_all_kinds_and_images():
    found = np.asarray(criteria.setting_wells(KEY, TRAINED, 300, perturb=0.0).eta)
    order = np.abs(found[:, 1:])
    zigzag = order.max(axis=1) > 0.4
    assert zigzag.sum() == 100 and (found[:, 0] < 0.1).sum() == 100 and (found[:, 0] > 0.9).sum() == 100
    np.testing.assert_allclose(order[zigzag].max(axis=1), 0.475, rtol=1e-12)
    assert len(np.unique(np.round(found[zigzag], 6), axis=0)) == 12
    moved = np.asarray(criteria.setting_wells(KEY, TRAINED, 300, perturb=0.1, ends=False).eta)
    assert np.all(DOMAIN.contains(moved)) and len(np.unique(moved, axis=0)) == 300
    assert np.asarray(DOMAIN.slack(moved)).min(axis=1).mean() > 1e-3  # they do not pile up on the boundary


def test_setting_vertices_are_between_wells():
    found = np.asarray(criteria.setting_vertices(KEY, TRAINED, 200, perturb=0.0).eta)
    np.testing.assert_allclose(found[:, 0], 0.5, atol=1e-12)
    order = np.sort(np.abs(found[:, 1:]), axis=1)
    np.testing.assert_allclose(order[:, :-2], 0, atol=1e-12)
    opposite = order[:, -2] < 1e-12  # of one order parameter: any magnitude; else t and 1 - t of two
    np.testing.assert_allclose(order[~opposite].sum(axis=1), 0.5, rtol=1e-12)
    assert 0 < opposite.sum() < 60
    single = TRAINED._replace(wells=[[0.5, 0, 0, 0, 0, 0, 0]])
    assert "only one ordered state" in criteria.propose(KEY, "setting_vertices", single, 5).reason


@pytest.mark.parametrize("name", ["setting_wells", "setting_vertices"])
@pytest.mark.parametrize(
    "wells, message",
    [(None, "no ordered states"), ([[0.5, 0.7, 0, 0, 0, 0, 0]], "well 0"), ([[0.5, 0.5]], "wells have shape")],
)
def test_wells_that_are_none(name, wells, message):
    with pytest.raises(ValueError, match=message):
        criteria.propose(KEY, name, TRAINED._replace(wells=wells), 5)


def test_finding_wells_finds_the_zigzags():
    tilt = mean_field(lambda eta: ordering(eta) + 5.0 * eta[0], PATTERNS)  # an arbitrary reference of composition
    for surface in (ZIGZAG, tilt):
        found = criteria.finding_wells(KEY, TRAINED._replace(surface=surface), 60, repeat=10, perturb=0.0)
        first = np.asarray(found.eta)[:10]  # the deepest
        np.testing.assert_allclose(np.abs(first[:, 1:]).max(axis=1), 0.5, atol=1e-4)
        np.testing.assert_allclose(first[:, 0], 0.5, atol=1e-4)
        assert len(np.unique(np.round(first, 4), axis=0)) > 3  # of different images


def test_the_lowest_path_is_that_of_the_zigzag():
    found = np.asarray(criteria.lowest_path(KEY, TRAINED._replace(surface=ZIGZAG), 24, repeat=1, perturb=0.0).eta)
    assert len(np.unique(np.round(found[:, 0] * 24 - 0.5))) >= 23  # one in each part of the range
    middle = np.abs(found[:, 0] - 0.5) < 0.3
    order = np.sort(np.abs(found[middle, 1:]), axis=1)
    np.testing.assert_allclose(order[:, -1], np.minimum(found[middle, 0], 1 - found[middle, 0]), atol=1e-3)
    np.testing.assert_allclose(order[:, :-1], 0, atol=1e-4)


# What they share


def test_perturbations_stay_inside():
    base = np.repeat(0.999 * (WELL - [0.5, 0, 0, 0, 0, 0, 0]) + [0.5, 0, 0, 0, 0, 0, 0], 2000, axis=0)
    moved = np.asarray(scoring.perturbed(KEY, DOMAIN, base, 0.2))
    assert np.all(DOMAIN.contains(moved)) and np.all(np.abs(moved - base) <= 0.1)
    centre = np.repeat([[0.5, 0, 0, 0, 0, 0, 0]], 2000, axis=0)
    free = np.asarray(scoring.perturbed(KEY, DOMAIN, centre, 0.1))  # no boundary within reach
    np.testing.assert_allclose(free.std(axis=0), 0.1 / np.sqrt(12), rtol=0.1)


def test_best_passes_over_what_is_not_finite():
    assert scoring.best([1.0, np.nan, 3.0, np.inf, 2.0, -np.inf], 5).tolist() == [2, 4, 0]


def test_candidates_that_are_not_finite_are_passed_over():
    broken = np.asarray(CANDIDATES).copy()
    broken[::2] = np.nan
    found = criteria.propose(KEY, "instabilities", TRAINED._replace(candidates=broken), 20)
    assert len(found.eta) == 20
    with pytest.raises(ValueError, match="none of the 3 candidates is a finite point"):
        criteria.propose(KEY, "instabilities", TRAINED._replace(candidates=np.full((3, 7), np.nan)), 20)


def test_a_surface_of_nan_has_no_best_points():
    nan = mean_field(lambda eta: jnp.nan * jnp.sum(eta**4), PATTERNS)
    view = TRAINED._replace(surface=Ensemble(nan, nan))
    for name in NEEDS_A_SURFACE:
        found = criteria.propose(KEY, name, view, 5)
        assert len(found.eta) == 0 and found.reason, name


# The register


def test_unknown_criteria_and_bad_requests():
    with pytest.raises(ValueError, match="no criterion 'comittee'; did you mean 'committee'.*Known are billiard, comm"):
        criteria.propose(KEY, "comittee", TRAINED, 5)
    with pytest.raises(ValueError, match="no criterion 'xyz'. Known are"):
        criteria.find("xyz")
    for n in (0, -3):
        with pytest.raises(ValueError, match=f"billiard: {n} points"):
            criteria.propose(KEY, "billiard", TRAINED, n)
    with pytest.raises(ValueError, match="nowhere:mine"):
        criteria.find("nowhere:mine")
    with pytest.raises(ValueError, match="there is a criterion 'billiard' already"):
        criteria.register("billiard", lambda key, view, n: None)
    with pytest.raises(ValueError, match="is not a function"):
        criteria.register("mine", 3)
    with pytest.raises(ValueError, match="repeat = 0"):
        criteria.propose(KEY, "instabilities", TRAINED, 5, repeat=0)
    with pytest.raises(ValueError, match="perturb = nan"):
        criteria.propose(KEY, "instabilities", TRAINED, 5, perturb=float("nan"))


@pytest.mark.parametrize(
    "result, message",
    [
        (np.zeros((2, 7)), "returned ndarray"),
        (criteria.Proposal(np.zeros((2, 3))), "it must be"),
        (criteria.Proposal(np.zeros((9, 7))), "at most 5"),
        (criteria.Proposal(np.full((2, 7), np.nan)), "2 points outside the domain or not finite"),
        (criteria.Proposal(np.full((1, 7), 2.0)), "1 points outside"),
    ],
)
def test_what_a_criterion_may_not_return(result, message):
    with pytest.raises(ValueError, match=message):
        criteria.propose(KEY, lambda key, view, n: result, TRAINED, 5)


def test_the_example_of_the_docstring(monkeypatch):
    monkeypatch.setattr(criteria, "CRITERIA", dict(criteria.CRITERIA))
    example = [line[4:] for line in criteria.__doc__.splitlines() if line.startswith("    ")]
    assert len([line for line in example if line]) <= 10
    module = types.ModuleType("steep")
    exec("\n".join(example), module.__dict__)
    monkeypatch.setitem(sys.modules, "steep", module)
    size = np.linalg.norm(np.asarray(ZIGZAG.chemical_potential(CANDIDATES, 300.0)), axis=1)
    for way in ("steepest", module.steepest, "steep:steepest"):
        found = criteria.propose(KEY, way, TRAINED._replace(surface=ZIGZAG), 6)
        np.testing.assert_array_equal(found.eta, CANDIDATES[np.argsort(-size)[:6]])
    early = criteria.propose(KEY, "steepest", TRAINED._replace(surface=None), 6)
    assert len(early.eta) == 0 and early.reason == "there is no surface yet"


@pytest.mark.slow
def test_criteria_in_one_order_parameter():
    line = half_spaces([[1.0], [-1.0]], [1.0, 0.0])
    from haljax.free_energy.data import empty
    from haljax.free_energy.mean_field import regular_solution

    surface = regular_solution(1000.0)
    points = np.linspace(0.01, 0.99, 99)[:, None]
    v = criteria.View(line, 600.0, points, empty(1), labels(points, 600.0, points), surface, wells=[[0.5]], pool=points)
    for name in set(criteria.CRITERIA) - {"mixed", "committee", "setting_vertices"}:
        found = criteria.propose(KEY, name, v, 6)
        assert found.eta.shape == (6, 1), name
