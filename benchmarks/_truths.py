"""The truths of free_energy_al.py: what samples windows, and labels to judge by over the domain, in wells, on the path.

`mean_field` is a mean field on LixCoO2's seven order parameters with twelve zigzag wells, measured with the noise of
umbrella windows on 6912 cells; `lixcoo2` is LixCoO2 itself at 300 K, by Monte Carlo in such cells, judged on windows
of 2000 passes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from haljax.config import FreeEnergyConfig
from haljax.free_energy.criteria import fill
from haljax.free_energy.data import Labels, concatenate, labels
from haljax.free_energy.mean_field import biased_labels, exact_labels, mean_field
from haljax.free_energy.phases import relaxed, seeds
from haljax.free_energy.problem import problem
from haljax.free_energy.sampling import Windows, plain, unknown
from haljax.free_energy.training import TrainingSettings, train
from haljax.lattice import load_expansion, zigzag
from haljax.lattice.polytope import pull_inside

EXPANSION = Path(__file__).resolve().parents[1] / "examples" / "lixcoo2_eci.json"
T = 300.0
PHI = {  # eV
    "mean_field": [50.0, *[0.3] * 6],  # strong enough for a window anywhere, also where the free energy is not convex
    "lixcoo2": [50.0, *[0.05] * 6],  # as in the example
}
KEY = jax.random.key(12345)  # of the tests: the same for all campaigns
WELL = np.array([0.5, 0.46, 0, 0, 0, 0, 0])

Sampler = Callable[[Mapping[str, Any]], dict[str, Any]]


def ordering(eta: jax.Array) -> jax.Array:
    """eV: favours one order parameter at a time, at half filling, as zigzag order does; disordered above 580 K."""
    square = eta[1:] ** 2
    return 0.24 * (eta[0] - 0.5) ** 2 - 0.1 * jnp.sum(square) + 0.12 * (jnp.sum(square) ** 2 - jnp.sum(square**2))


ORDER = zigzag(load_expansion(EXPANSION).lattice)
FIELD = mean_field(ordering, ORDER.patterns)


def settings(truth: str, min_passes: int = 300, max_passes: int = 600) -> dict[str, Any]:
    """The tables of a config that say what is sampled."""
    return {
        "lattice": {"expansion": str(EXPANSION), "supercell": [[24, 12, 0], [0, 12, 24], [0, -12, 0]]},
        "order_parameters": {
            "species": "Va",
            "cell": [[4, 4, 2], [-4, 0, -2], [0, 0, 2]],
            "patterns": np.array(ORDER.patterns, float).tolist(),
            "wells": [[0.5, 0.5, 0, 0, 0, 0, 0]],
        },
        "sampling": {
            "temperature_K": [T],
            "phi": PHI[truth],
            "precision": [2e-3],
            "min_passes": min_passes,
            "max_passes": max_passes,
            "windows_per_job": 512,
            "workers": 1,
        },
    }


def sampler(truth: str, errors: bool = True, passes: tuple[int, int] = (300, 600)) -> Sampler:
    """What a campaign calls for its windows; without `errors` the labels' error bars are left out."""
    if truth == "lixcoo2":
        config = _config(truth, *passes)
        sample: Sampler = Windows(config.lattice, config.order_parameters, config.sampling)
    else:
        sample = _field_windows
    return sample if errors else lambda payload: _without_errors(sample(payload))


def _config(truth: str, *passes: int) -> FreeEnergyConfig:
    rest = {"directory": "unused", "criteria": {"billiard": {"points": 1}}, "stop": {"max_iterations": 1}}
    return FreeEnergyConfig.load(rest | settings(truth, *passes))


def _field_windows(payload: Mapping[str, Any]) -> dict[str, Any]:
    kappa, phi = np.array(payload["kappa"]), np.array(payload["phi"])
    found = biased_labels(jax.random.key(payload["seed"]), FIELD, kappa, phi, T)
    windows = [
        {"label": {name: plain(np.asarray(values)[w]) for name, values in vars(found).items()}, "converged": True}
        for w in range(len(found))
    ]
    return {"windows": windows}


def _without_errors(result: dict[str, Any]) -> dict[str, Any]:
    for window in result["windows"]:
        window["label"]["mu_error"] = [None] * len(window["label"]["mu"])
    return result


def tests(truth: str, kept: Path | None = None) -> dict[str, Labels]:
    """Labels over the domain, in the wells and along the path of lowest free energy; sampled ones from a file `kept`.

    Where the truth is sampled, the path is that of a surface trained on the other windows.
    """
    if truth == "mean_field":
        places = _places(everywhere=400, around_each_well=20) | {"path": _path(FIELD)}
        return {name: exact_labels(FIELD, _inside(at), T) for name, at in places.items()}
    if kept is not None and kept.exists():
        with np.load(kept) as file:
            return {
                name: Labels(**{k.split(".")[1]: v for k, v in file.items() if k.startswith(f"{name}.")})
                for name in ("domain", "wells", "path")
            }
    sample = sampler(truth, passes=(2000, 2000))
    known = problem(_config(truth))

    def sampled(kappa: np.ndarray) -> Labels:
        n = len(kappa)
        found = sample({"temperature": [T] * n, "kappa": kappa, "phi": [PHI[truth]] * n, "seed": n})["windows"]
        rows = [window["label"] for window in found if unknown(window["label"]) is None]
        rows = [label for label in rows if known.resolved(np.array(label["eta"]))]
        return labels(**{name: np.array([label[name] for label in rows], float) for name in rows[0]})

    found = {name: sampled(at) for name, at in _places(everywhere=160, around_each_well=8).items()}
    surface, _ = train(KEY, known.network, concatenate(list(found.values())), members=4, settings=TrainingSettings())
    found["path"] = sampled(_inside(_path(surface)))
    if kept is not None:
        np.savez(kept, **{f"{name}.{k}": v for name, part in found.items() for k, v in vars(part).items()})
    return found


def _places(everywhere: int, around_each_well: int) -> dict[str, np.ndarray]:
    images = np.unique(np.round(ORDER.group @ WELL, 9), axis=0)
    noise = 0.03 * np.asarray(jax.random.normal(KEY, (around_each_well, len(images), 7)))
    wells = (images[None] + noise * np.array([0.5, *[1.0] * 6])).reshape(-1, 7)
    return {"domain": _inside(np.asarray(fill(KEY, ORDER.polytope, everywhere))), "wells": _inside(wells)}


def _path(surface: Any) -> np.ndarray:
    ways = seeds(KEY, ORDER.polytope, ORDER.group, wells=WELL[None])
    return relaxed(surface, ORDER.polytope, T, np.linspace(0.03, 0.97, 48), ways, group=ORDER.group).eta


def _inside(points: np.ndarray) -> np.ndarray:
    centre = np.asarray(ORDER.polytope.chebyshev_centre()[0])[None, :]
    return pull_inside(ORDER.polytope, centre, points, margin=0.01)
