"""Search for the architecture and the settings that learn a set of labels best."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import numpy as np

from haljax.free_energy.data import Labels
from haljax.free_energy.network import ACTIVATIONS, Network, Surface
from haljax.free_energy.training import TrainingSettings, train


@dataclass(frozen=True)
class SearchSpace:
    """What is searched. Ranges are inclusive; the learning rate is drawn from its logarithm.

    Attributes
    ----------
    layers, width : range of the number of hidden layers, and of their width, which is the same in all.
    width_step : widths are the lower end plus multiples of it. Each width is compiled anew.
    learning_rate : range.
    activations : to choose among.

    Raises
    ------
    ValueError : an empty or impossible range, or an unknown activation.
    """

    layers: tuple[int, int] = (2, 3)
    width: tuple[int, int] = (32, 160)
    width_step: int = 32
    learning_rate: tuple[float, float] = (2e-3, 3e-2)
    activations: tuple[str, ...] = ("softplus", "tanh")

    def __post_init__(self) -> None:
        for name in ("layers", "width", "learning_rate"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name} is from {low} to {high}: give a range of positive numbers, the lower first")
        if self.width_step < 1:
            raise ValueError(f"width_step is {self.width_step}: give an integer >= 1")
        unknown = [a for a in self.activations if a not in ACTIVATIONS]
        if unknown or not self.activations:
            raise ValueError(f"activations are {self.activations}: choose among {', '.join(ACTIVATIONS)}")


class Trial(NamedTuple):
    """One choice and its validation loss, infinite where the training failed."""

    network: Network
    settings: TrainingSettings
    loss: float


class SearchResult(NamedTuple):
    """The best of a search.

    Attributes
    ----------
    network, settings : of the best trial.
    surface : trained with them, on the labels of the search.
    improved : False where none of the trials beat the choice at the start, which then is the result.
    trials : all, that at the start first.
    """

    network: Network
    settings: TrainingSettings
    surface: Surface
    improved: bool
    trials: tuple[Trial, ...]


def search(
    key: jax.Array,
    network: Network,
    labels: Labels,
    *,
    trials: int = 20,
    method: str = "optuna",
    space: SearchSpace | None = None,
    settings: TrainingSettings | None = None,
    members: int = 2,
) -> SearchResult:
    """Train `trials` choices of layers, width, activation and learning rate beside the present one; keep the best.

    All trials see the same splits, so that their validation losses, averaged over members, can be compared. The
    present choice is trained too and stays unless another is better, unlike in the published code, where the best
    of the new ones replaced it always.

    Parameters
    ----------
    network, settings : the present choice; what is not searched stays as in these.
    method : "optuna" (tree-structured Parzen estimator, doi:10.1145/3292500.3330701) or "random", as in
        arXiv:2503.07619.
    members : networks trained for each choice.

    Raises
    ------
    ModuleNotFoundError : optuna is not installed.
    ValueError : an unknown method, no trials, or labels that `train` refuses.
    RuntimeError : the present choice and all trials diverged.
    """
    space, settings = space or SearchSpace(), settings or TrainingSettings()
    if method not in ("optuna", "random"):
        raise ValueError(f"method is {method!r}: choose optuna or random")
    if trials < 1:
        raise ValueError(f"{trials} trials: give at least one")
    propose, report = (_optuna if method == "optuna" else _random)(key, space)
    done: list[Trial] = []
    best: tuple[int, Surface] | None = None
    for number in range(trials + 1):
        chosen, how = network, settings
        if number:
            choice = propose()
            chosen = replace(network, widths=choice["layers"] * (choice["width"],), activation=choice["activation"])
            how = replace(settings, learning_rate=choice["learning_rate"])
        surface, loss = None, np.inf
        try:
            surface, history = train(key, chosen, labels, members=members, settings=how)
            if history.used.all():
                loss = float(history.best_validation.mean())
        except RuntimeError:  # all members diverged: the worst of losses, which it keeps
            pass
        if number:
            report(loss)
        if surface is not None and (best is None or loss < done[best[0]].loss):
            best = number, surface
        done.append(Trial(chosen, how, loss))
    if best is None:
        raise RuntimeError(f"the present choice and all {trials} trials diverged: lower the range of learning_rate")
    winner = done[best[0]]
    return SearchResult(winner.network, winner.settings, best[1], best[0] > 0, tuple(done))


def _random(key: jax.Array, space: SearchSpace) -> tuple[Any, Any]:
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))

    def propose() -> dict[str, Any]:
        low, high = np.log(space.learning_rate)
        return {
            "layers": int(rng.integers(space.layers[0], space.layers[1] + 1)),
            "width": int(rng.choice(np.arange(space.width[0], space.width[1] + 1, space.width_step))),
            "activation": str(rng.choice(space.activations)),
            "learning_rate": float(np.exp(rng.uniform(low, high))),
        }

    return propose, lambda loss: None


def _optuna(key: jax.Array, space: SearchSpace) -> tuple[Any, Any]:
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the search needs optuna: pip install optuna, or search with method='random'"
        ) from error
    seed = int(np.asarray(jax.random.key_data(key)).ravel()[-1]) % 2**32
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
    optuna.logging.set_verbosity(verbosity)
    running: list[Any] = []

    def propose() -> dict[str, Any]:
        running.append(study.ask())
        return {
            "layers": running[-1].suggest_int("layers", *space.layers),
            "width": running[-1].suggest_int(
                "width", space.width[0], _last(space.width, space.width_step), step=space.width_step
            ),
            "activation": running[-1].suggest_categorical("activation", space.activations),
            "learning_rate": running[-1].suggest_float("learning_rate", *space.learning_rate, log=True),
        }

    def report(loss: float) -> None:
        if np.isfinite(loss):
            study.tell(running[-1], loss)
        else:
            study.tell(running[-1], state=optuna.trial.TrialState.FAIL)

    return propose, report


def _last(width: tuple[int, int], step: int) -> int:
    return width[0] + (width[1] - width[0]) // step * step
