from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest

from haljax.config import FreeEnergyConfig
from haljax.free_energy.choice import choose, judged, spread
from haljax.free_energy.data import empty
from haljax.free_energy.mean_field import exact_labels, mean_field
from haljax.free_energy.problem import problem

from .test_campaign import _energy, config, folder  # noqa: F401  (a fixture)

S = np.array([[1.0, 1.0], [1.0, -1.0]])
FIELD = mean_field(_energy, S)


@pytest.fixture
def settings(folder):  # noqa: F811
    return FreeEnergyConfig.load(config(folder, "chosen"))


def ask(settings, iteration=1, surface=FIELD, weights=None, known=None):
    known = empty(2) if known is None else known
    weights = dict.fromkeys(settings.criteria, 1.0) if weights is None else weights
    return choose(
        jax.random.key(1), settings, problem(settings), iteration, surface, known, known, np.zeros((0, 2)), weights
    )


def test_a_window_is_aimed_so_that_it_ends_at_its_target(settings):
    found = ask(settings)
    mu = np.asarray(FIELD.chemical_potential(found.target, 300.0))
    step = mu / (2 * np.array(settings.sampling.phi))
    inside = np.all(np.abs((found.target + step) @ S.T - 0.5) < 0.5, axis=1)
    assert inside.sum() >= 3
    np.testing.assert_allclose(found.kappa[inside], (found.target + step)[inside], rtol=1e-12)
    # Beside the boundary, where mu diverges, kappa stays near: sample_windows refuses it beyond 0.1.
    x = found.kappa @ S.T
    assert x.min() > -0.0901 and x.max() < 1.0901
    first = ask(settings, iteration=0, surface=None)
    np.testing.assert_array_equal(first.kappa, first.target)


def test_targets_are_what_the_cell_can_resolve(settings):
    """64 cells have 32 sites a sublattice: two of them are x = 1/16, where mu is finite. Wells lie on the boundary."""
    x = ask(settings).target @ S.T
    assert np.all((x > 1 / 16 - 1e-9) & (x < 15 / 16 + 1e-9)) and np.any(np.isclose(x, 1 / 16))


def test_a_cell_with_one_site_a_sublattice_keeps_different_targets(settings):
    tiny = settings.model_copy(
        update={"lattice": settings.lattice.model_copy(update={"supercell": ((1, 1, 0), (1, -1, 0), (0, 0, 1))})}
    )
    target = ask(tiny).target
    assert len(np.unique(target.round(6), axis=0)) == len(target) >= 10


def test_a_criterion_of_one_point_serves_the_temperatures_in_turn(settings):
    several = settings.model_copy(
        update={
            "criteria": {"billiard": settings.criteria["billiard"].model_copy(update={"points": 1})},
            "sampling": settings.sampling.model_copy(update={"temperature_K": (250.0, 300.0, 350.0)}),
        }
    )
    found = [ask(several, iteration=i, surface=None).temperature.tolist() for i in range(3)]
    assert sorted(found) == [[250.0], [300.0], [350.0]]


def test_points_are_shared_by_weight_and_are_new(settings):
    found = ask(settings, weights={"billiard": 0.5, "setting_wells": 2.0})
    assert found.criterion.count("billiard") + found.criterion.count("setting_wells") == 14
    assert found.criterion.count("setting_wells") > 4
    domain = problem(settings).order_parameters.polytope
    assert np.all(domain.contains(found.target, 1e-9))
    apart = np.linalg.norm(found.target[:, None] - found.target[None], axis=-1) + np.eye(len(found.target))
    assert apart.min() > 1e-3
    again = ask(settings, weights={"billiard": 0.5, "setting_wells": 2.0})
    np.testing.assert_array_equal(found.target, again.target)


def test_nothing_to_propose_says_what_to_do(settings):
    only = settings.model_copy(update={"criteria": {"committee": settings.criteria["billiard"]}})
    with pytest.raises(RuntimeError, match="give points to one that needs no model, such as billiard"):
        ask(only, iteration=0, surface=None, weights={"committee": 1.0})


def test_weights_follow_what_points_taught(settings):
    eta = np.asarray(spread(jax.random.key(2), problem(settings), [300.0], 6).target)
    known = exact_labels(FIELD, 0.8 * (eta - 0.5 * np.eye(2)[0]) + 0.5 * np.eye(2)[0], 300.0)
    wrong = mean_field(lambda eta: 2 * _energy(eta), S)
    weights = {"billiard": 1.0, "setting_wells": 1.0}
    assert judged(weights, None, FIELD, {"billiard": known}) == weights
    new = judged(weights, wrong, FIELD, {"billiard": known, "setting_wells": known.select(slice(0, 0))})
    assert new["setting_wells"] == 1.0 and new["billiard"] == 1.0  # the only one judged keeps the sum
    both = judged(weights, wrong, FIELD, {"billiard": known, "setting_wells": known.replace(mu=known.mu + 1.0)})
    assert both["billiard"] != both["setting_wells"] and abs(sum(both.values()) - 2.0) < 1e-12


def test_what_is_resolved_is_judged_by_the_fractions_that_order_takes():
    known = problem(FreeEnergyConfig.load(Path(__file__).parents[2] / "examples" / "lixcoo2.toml"))
    mixed = np.array([0.5, *[0.12] * 6])  # one sublattice filled to 0.5 - 0.72 < 0, were there no order beside these
    assert (known.order_parameters.S @ mixed).min() < -0.2 and known.resolved(mixed)
    assert not known.targets().contains(mixed)
    for x, enough in ((0.004, False), (0.006, True)):  # 216 sites a sublattice
        assert known.resolved(np.eye(7)[0] * x) == known.resolved(np.eye(7)[0] * (1 - x)) == enough
