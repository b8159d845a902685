"""MBAR over umbrella windows: free energies and chemical potentials from all windows together, by pymbar.

Source: Shirts & Chodera, J. Chem. Phys. 129, 124105 (2008), doi:10.1063/1.2978177.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from haljax.lattice.monte_carlo import Conditions
from haljax.lattice.timeseries import equilibration
from haljax.lattice.units import KB
from haljax.lattice.windows import WindowResult

log = logging.getLogger(__name__)


class Reweighted(NamedTuple):
    """Independent samples of all windows, and what MBAR makes of them; NumPy. Made by `mbar`.

    Attributes
    ----------
    eta : (n, d), energy : (n,) eV per cell, of the samples. n_cells : of the supercell.
    counts : (W,) samples of each window.
    f : (W,) dimensionless free energies of the windows' biased potentials, the first 0; f_error : of f - f[0].
    estimator : the ``pymbar.MBAR``, for everything else.
    """

    eta: np.ndarray
    energy: np.ndarray
    n_cells: int
    counts: np.ndarray
    f: np.ndarray
    f_error: np.ndarray
    estimator: Any


def mbar(result: WindowResult, n_cells: int, mu: Any = 0.0) -> Reweighted:
    """Combine the windows of ``sample_windows(..., keep_series=True)``.

    ``u = (N (e - mu . eta + sum phi (eta - kappa)^2)) / kT`` for each sample in each window, samples thinned to one an
    autocorrelation time. Windows of different temperatures may be combined. Their distributions must overlap, or
    errors are large or missing.

    Parameters
    ----------
    mu : the windows' chemical potentials as in `Conditions`.

    Raises
    ------
    ValueError : the result has no series. ImportError : pymbar is not installed.
    """
    pymbar = _pymbar()
    if result.series is None:
        raise ValueError("MBAR needs the windows' series: call sample_windows with keep_series=True.")
    eta, energy, counts = [], [], []
    for series in result.series:
        observed = np.concatenate([series.eta, series.energy[:, None]], axis=1)
        start, inefficiency = equilibration(observed)
        chosen = int(start) + np.arange(0, len(observed) - int(start), inefficiency.max()).astype(int)
        eta.append(series.eta[chosen])
        energy.append(series.energy[chosen])
        counts.append(len(chosen))
    all_eta, all_energy = np.concatenate(eta), np.concatenate(energy)
    conditions = Conditions(result.temperature, result.kappa, result.phi, mu)
    with _pymbar_settings():
        estimator = pymbar.MBAR(reduced_potential(all_eta, all_energy, n_cells, conditions), np.array(counts))
        differences = estimator.compute_free_energy_differences()
    f = np.asarray(estimator.f_k)
    return Reweighted(
        all_eta, all_energy, n_cells, np.array(counts), f - f[0], np.asarray(differences["dDelta_f"])[0], estimator
    )


def reduced_potential(eta: np.ndarray, energy: np.ndarray, n_cells: int, conditions: Conditions) -> np.ndarray:
    """(W, n) the whole biased potential over kT of samples eta (n, d), energy (n,) eV per cell in W windows."""
    temperature, kappa, phi = (np.asarray(v, float) for v in conditions[:3])
    mu = np.broadcast_to(np.asarray(conditions.mu, float), kappa.shape)
    bias = np.einsum("wi,wni->wn", np.broadcast_to(phi, kappa.shape), (eta[None] - kappa[:, None]) ** 2) - mu @ eta.T
    beta = 1 / (KB * np.broadcast_to(temperature, kappa.shape[:1]))
    return n_cells * beta[:, None] * (energy[None] + bias)


def averages(data: Reweighted, conditions: Conditions) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """eta (V, d), its error, and dg/d eta (V, d) eV per cell with its error, under other conditions.

    ``dg/d eta = mu - 2 phi (eta - kappa)`` as for a window, but from the samples of all windows: an estimate that is
    independent of the window's own where others overlap it.
    """
    kappa = np.asarray(conditions.kappa, float)
    phi, mu = (np.broadcast_to(np.asarray(v, float), kappa.shape) for v in (conditions.phi, conditions.mu))
    u = reduced_potential(data.eta, data.energy, data.n_cells, conditions)
    eta, error = np.zeros(kappa.shape), np.zeros(kappa.shape)
    with _pymbar_settings():
        for v in range(len(kappa)):
            answer = data.estimator.compute_multiple_expectations(data.eta.T, u[v])
            eta[v], error[v] = answer["mu"], answer["sigma"]
    return eta, error, mu - 2 * phi * (eta - kappa), 2 * phi * error


def profile(data: Reweighted, index: int, edges: Any, temperature: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Free energy along one order parameter, the others integrated over, without any bias.

    Parameters
    ----------
    index : which order parameter. edges : (B + 1,) of its bins. temperature : K.

    Returns
    -------
    eta : (B',) middles of the bins that hold samples. g, error : (B',) eV per cell, ``-kT/N ln p``, p the probability
    of the bin among all of them. (Set to zero at its lowest point g would be too high everywhere else: the bin that
    happens to come out lowest is chosen for its error.)

    Raises
    ------
    ValueError : no sample lies within the edges.
    """
    edges = np.asarray(edges, float)
    number = np.digitize(data.eta[:, index], edges) - 1
    inside = (number >= 0) & (number < len(edges) - 1)
    bins = np.unique(number[inside])
    if not len(bins):
        raise ValueError(f"No sample of order parameter {index} lies within {edges[0]} .. {edges[-1]}.")
    d = data.eta.shape[1]
    free = Conditions(np.array([temperature]), np.zeros((1, d)), np.zeros((1, d)))
    u = reduced_potential(data.eta, data.energy, data.n_cells, free)[0]
    # a bin is a state of its own whose potential is infinite outside
    states = np.stack([np.where(inside, u, u + 1e6), *(np.where(number == b, u, u + 1e6) for b in bins)])
    with _pymbar_settings():
        answer = data.estimator.compute_perturbed_free_energies(states)
    scale = KB * temperature / data.n_cells
    middle = 0.5 * (edges[1:] + edges[:-1])[bins]
    return middle, scale * np.asarray(answer["Delta_f"])[0, 1:], scale * np.asarray(answer["dDelta_f"])[0, 1:]


def _pymbar() -> Any:
    try:
        with _pymbar_settings():
            import pymbar
    except ImportError as error:
        raise ImportError("MBAR needs pymbar: pip install 'pymbar>=4'.") from error
    return pymbar


@contextmanager
def _pymbar_settings():
    """pymbar computes with JAX, switches it to 64 bits for the whole process and relies on NumPy's promotion of ranks:
    give it what it needs, and the caller his settings back."""
    import jax

    before = jax.config.read("jax_enable_x64")
    solvers = logging.getLogger("pymbar")
    level = solvers.level
    solvers.setLevel(logging.ERROR)  # its banner about 64 bits
    try:
        with jax.numpy_rank_promotion("allow"):
            yield
    finally:
        solvers.setLevel(level)
        if jax.config.read("jax_enable_x64") != before:
            jax.config.update("jax_enable_x64", before)
