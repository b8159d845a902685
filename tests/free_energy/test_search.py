from __future__ import annotations

import builtins
from dataclasses import replace

import jax
import numpy as np
import pytest

from haljax.free_energy import search as module
from haljax.free_energy.search import SearchSpace, search
from haljax.free_energy.training import TrainingSettings

from .square import exact_labels, network

DATA = exact_labels(60, 300.0)
SETTINGS = TrainingSettings(epochs=20)
SPACE = SearchSpace(layers=(1, 1), width=(8, 8), activations=("softplus",))


def pretend(monkeypatch, loss_of):
    """Training replaced by a formula for the loss; returns what was tried."""
    tried = []

    class Past:
        def __init__(self, loss):
            self.best_validation = np.array([loss])
            self.used = np.array([np.isfinite(loss)])

    def train(key, network, labels, *, members, settings):
        tried.append((network, settings))
        loss = loss_of(network, settings)
        if loss is None:
            raise RuntimeError("all members diverged")
        return (network, settings), Past(loss)

    monkeypatch.setattr(module, "train", train)
    return tried


@pytest.mark.parametrize("method", ["optuna", "random"])
def test_finds_the_best_of_what_it_tried(monkeypatch, method):
    loss = lambda net, how: abs(np.log(how.learning_rate / 6e-3)) + abs(net.widths[0] - 96) / 32 + len(net.widths)
    tried = pretend(monkeypatch, loss)
    start = replace(SETTINGS, learning_rate=1.0)
    found = search(jax.random.key(0), network(), DATA, trials=25, method=method, settings=start)
    assert len(tried) == len(found.trials) == 26 and tried[0] == (network(), start)
    assert found.improved and (found.network, found.settings) == found.surface
    best = min(found.trials, key=lambda t: t.loss)
    assert (best.network, best.settings) == (found.network, found.settings) and best.loss < 3
    space = SearchSpace()
    for net, how in tried[1:]:
        assert 2 <= len(net.widths) <= 3 and set(net.widths) <= set(range(32, 161, 32))
        assert space.learning_rate[0] <= how.learning_rate <= space.learning_rate[1]
        assert replace(net, widths=(1,), activation="tanh") == replace(network(), widths=(1,), activation="tanh")
    assert len({net.activation for net, _ in tried[1:]}) == 2
    tried.clear()
    again = search(jax.random.key(0), network(), DATA, trials=25, method=method, settings=start)
    assert again.trials == found.trials


def test_the_present_choice_stays_unless_another_is_better(monkeypatch):
    present = network()
    tried = pretend(monkeypatch, lambda net, how: 1.0 if net == present else 1.0 + how.learning_rate)
    found = search(jax.random.key(0), present, DATA, trials=6, settings=SETTINGS, method="random")
    assert len(tried) == 7 and not found.improved
    assert found.network == present and found.settings == SETTINGS


@pytest.mark.parametrize("method", ["optuna", "random"])
def test_failed_trials_lose(monkeypatch, method):
    present = network()
    pretend(monkeypatch, lambda net, how: 1.0 if net == present else (None if how.learning_rate > 8e-3 else np.inf))
    found = search(jax.random.key(0), present, DATA, trials=6, settings=SETTINGS, method=method)
    assert found.network == present and all(t.loss == np.inf for t in found.trials[1:])
    pretend(monkeypatch, lambda net, how: None)
    with pytest.raises(RuntimeError, match="all 3 trials diverged"):
        search(jax.random.key(0), present, DATA, trials=3, settings=SETTINGS, method=method)


def test_search_with_real_training():
    poor = replace(SETTINGS, learning_rate=1e-6)
    found = search(jax.random.key(0), network(widths=(8,)), DATA, trials=2, space=SPACE, settings=poor, members=2)
    assert found.improved and found.surface.members == 2 and found.surface.network == found.network
    assert min(t.loss for t in found.trials[1:]) < found.trials[0].loss


def test_optuna_is_missing(monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if name == "optuna":
            raise ModuleNotFoundError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ModuleNotFoundError, match="pip install optuna"):
        search(jax.random.key(0), network(), DATA)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(width=(64, 32)), "width is from 64 to 32"),
        (dict(learning_rate=(0.0, 1.0)), "learning_rate is from 0.0"),
        (dict(activations=("relu",)), "choose among tanh, softplus"),
        (dict(width_step=0), "width_step is 0"),
    ],
)
def test_impossible_spaces(change, message):
    with pytest.raises(ValueError, match=message):
        SearchSpace(**change)


def test_impossible_searches():
    with pytest.raises(ValueError, match="choose optuna or random"):
        search(jax.random.key(0), network(), DATA, method="grid")
    with pytest.raises(ValueError, match="0 trials"):
        search(jax.random.key(0), network(), DATA, trials=0)
