"""The truth of a free energy: Monte Carlo in umbrella windows, in a worker process."""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from haljax.free_energy.data import Labels, labels
from haljax.free_energy.problem import hamiltonian, order_parameters_of

if TYPE_CHECKING:
    from haljax.config.free_energy import LatticeModel, OrderParameters, Sampling
    from haljax.lattice.expansion import ClusterExpansion
    from haljax.lattice.order import OrderParameters as LatticeOrder
    from haljax.lattice.supercell import Supercell


class Windows:
    """A callable for the oracle: umbrella windows -> labels.

    The payload has "temperature" (W,) in K, "kappa" and "phi" (W, d) in eV, "seed", and in "ids" (W,) each window's own
    random stream. The result's "windows" are W dicts of plain data: "label" has the fields of
    `haljax.free_energy.Labels` for one point, None where unknown, beside "converged", "passes", "equilibration" and
    "acceptance".
    """

    def __init__(self, lattice: LatticeModel, order_parameters: OrderParameters, sampling: Sampling) -> None:
        self._lattice, self._order_parameters, self._sampling = lattice, order_parameters, sampling
        self._made: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_made": None}

    def _problem(self) -> tuple[ClusterExpansion, Supercell, LatticeOrder]:
        if self._made is None:
            expansion, supercell = hamiltonian(self._lattice)
            self._made = expansion, supercell, order_parameters_of(expansion.lattice, self._order_parameters)
        return self._made

    def __call__(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        import jax

        from haljax.lattice.monte_carlo import Conditions
        from haljax.lattice.windows import sample_windows

        if multiprocessing.parent_process() is not None:  # a worker: the campaign says what did not converge
            logging.getLogger(sample_windows.__module__).setLevel(logging.ERROR)
        with jax.enable_x64(True):  # a worker process does not inherit what the campaign's process has set
            expansion, supercell, order = self._problem()
            s = self._sampling
            found = sample_windows(
                jax.random.key(payload["seed"]),
                expansion,
                supercell,
                order,
                Conditions(*(np.asarray(payload[name], float) for name in ("temperature", "kappa", "phi"))),
                precision=s.precision if len(s.precision) > 1 else s.precision[0],
                min_passes=s.min_passes,
                max_passes=s.max_passes,
                ids=payload["ids"],
                aliasing=self._lattice.allow_aliasing,
                devices=s.devices,
            )
        error = label_error(found.eta_error, found.hessian, found.phi)
        windows = [
            {
                "label": {"mu_error": plain(error[w])} | {
                    name: plain(getattr(found, name)[w])
                    for name in ("eta", "temperature", "mu", "energy", "energy_error", "hessian", "hessian_error")
                },
                "converged": bool(found.converged[w]),
                "passes": int(found.n_passes[w]),
                "equilibration": int(found.equilibration[w]),
                "acceptance": float(found.acceptance[w]),
            }
            for w in range(len(found.eta))
        ]  # fmt: skip
        return {"windows": windows}


def label_error(eta_error: Any, hessian: Any, phi: Any) -> np.ndarray:
    """Standard error (n, d) eV of windows' mu as that of the free energy at the eta that they report.

    An eta that is off by delta takes mu = -2 phi (eta - kappa) along, by -2 phi delta, while dg/d eta there changes by
    H delta: the label is off by -(H + 2 phi) delta. The covariance of delta is proportional to the inverse of
    A = H + 2 phi, so that of the label is to A. Where H is not known, or A not positive, it is taken for 0.

    Parameters
    ----------
    eta_error : (n, d). hessian : (n, d, d) eV. phi : (n, d) eV.
    """
    eta_error, phi = np.asarray(eta_error, float), np.asarray(phi, float)
    error = 2 * phi * eta_error
    for w, A in enumerate(np.asarray(hessian, float) + 2 * phi[:, :, None] * np.eye(phi.shape[1])):
        if np.isfinite(A).all() and np.linalg.eigvalsh(A).min() > 0:
            error[w] = eta_error[w] * np.sqrt(np.diagonal(A) / np.diagonal(np.linalg.inv(A)))
    return error


def check_windows(payload: Mapping[str, Any], result: Mapping[str, Any]) -> None:
    """Refuse a result that is not one window for each that was asked for, with what `Labels` has of one point.

    Raises
    ------
    ValueError : windows, their eta or mu, or "converged" are missing; shapes, errors or temperatures do not fit.
    """
    windows, W = result["windows"], len(payload["kappa"])
    if len(windows) != W:
        raise ValueError(f"{len(windows)} windows came back of {W} that were asked for")
    for w, (window, kappa, kelvin) in enumerate(zip(windows, payload["kappa"], payload["temperature"], strict=True)):
        label = window["label"]
        for name in ("eta", "mu"):
            if np.shape(label[name]) != (len(kappa),):
                raise ValueError(f"window {w} has {name} = {label[name]}: give {len(kappa)} numbers")
        if not isinstance(window.get("converged"), bool):
            raise ValueError(f"window {w} does not say whether it has converged: give converged = True or False")
        if label.get("temperature") not in (None, kelvin):
            raise ValueError(f"window {w} is at {label['temperature']} K, and was asked for at {kelvin} K")
        if unknown(label) is None:
            try:
                stacked([label | {"temperature": kelvin}])
            except (TypeError, ValueError) as error:
                raise ValueError(f"window {w}: {error}") from error


def stacked(found: Sequence[Mapping[str, Any]]) -> Labels:
    """Labels of windows, each with the fields of `Labels` for one point; None and what is left out become NaN."""
    n, d = len(found), len(found[0]["eta"])
    shapes: dict[str, tuple[int, ...]] = {"energy": (), "energy_error": (), "mu_error": (d,)}
    shapes |= {"hessian": (d, d), "hessian_error": (d, d)}
    known = {name: np.full((n, *shape), np.nan) for name, shape in shapes.items()}
    for row, label in enumerate(found):
        for name, values in known.items():
            if label.get(name) is not None:
                values[row] = np.array(label[name], float)
    eta, temperature, mu = (np.array([label[name] for label in found], float) for name in ("eta", "temperature", "mu"))
    return labels(eta, temperature, mu, **known)


def unknown(label: Mapping[str, Any]) -> str | None:
    """Why a window's label teaches nothing, None where it does."""
    for name in ("eta", "mu"):
        if not np.isfinite(np.asarray(label[name], float)).all():
            return f"{name} = {label[name]}: an order parameter never changed, or the sampler failed"
    return None


def plain(values: Any) -> Any:
    """Nested lists with None for what is not finite, as JSON has it."""
    array = np.asarray(values, float)
    if array.ndim:
        return [plain(value) for value in array]
    return float(array) if np.isfinite(array) else None


def published(path: str | Path, d: int) -> Labels:
    """Windows from a text file with a header line that names columns kappa_i, eta_i, phi_i, T and mu_i.

    Raises
    ------
    ValueError : a column is missing, or the rows do not fit the header.
    """
    with open(path) as file:
        names = file.readline().lstrip("#").split()
    wanted = [f"{name}_{i}" for name in ("eta", "mu") for i in range(d)] + ["T"]
    if missing := [name for name in wanted if name not in names]:
        raise ValueError(f"{path} has no column {', '.join(missing)}: its first line must name the columns")
    rows = np.loadtxt(path, skiprows=1, ndmin=2)
    if rows.shape[1] != len(names):
        raise ValueError(f"{path} has rows of {rows.shape[1]} numbers under a header of {len(names)} names")
    column = {name: rows[:, i] for i, name in enumerate(names)}
    eta, mu = (np.stack([column[f"{name}_{i}"] for i in range(d)], axis=1) for name in ("eta", "mu"))
    return labels(eta, column["T"], mu)
