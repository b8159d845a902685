"""Labels of a free energy: derivatives at points, with their error bars."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import jax
import numpy as np


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Labels:
    """n points in d order parameters; ``len()`` is n. A pytree: every leaf has the leading axis n.

    Attributes
    ----------
    eta : (n, d) where the averages were taken.
    temperature : (n,) K.
    mu : (n, d) dg/d eta, eV per primitive cell.
    mu_error : (n, d) standard error of mu at this eta, eV; 0 or NaN where unknown.
    energy : (n,) eV per primitive cell, NaN where unknown; energy_error : (n,) alike.
    hessian : (n, d, d) d^2 g/d eta^2, eV, NaN where unknown; hessian_error : (n, d, d) alike.
    """

    eta: Any
    temperature: Any
    mu: Any
    mu_error: Any
    energy: Any
    energy_error: Any
    hessian: Any
    hessian_error: Any

    def __len__(self) -> int:
        return self.eta.shape[0]

    def replace(self, **changes: Any) -> Labels:
        """The same labels with some fields replaced, unchecked."""
        return replace(self, **changes)

    def select(self, index: Any) -> Labels:
        """The rows that `index` (slice, boolean mask or integers) takes out of every field."""
        return jax.tree.map(lambda a: a[index], self)


def labels(
    eta: Any,
    temperature: Any,
    mu: Any,
    mu_error: Any = None,
    energy: Any = None,
    energy_error: Any = None,
    hessian: Any = None,
    hessian_error: Any = None,
) -> Labels:
    """Checked `Labels` as numpy arrays; what is not given is NaN; the temperature may be one number for all.

    Raises
    ------
    ValueError
        Shapes that do not fit, eta or mu that are not finite, temperatures that are not positive, negative errors.
    """
    eta, mu = np.asarray(eta, float), np.asarray(mu, float)
    if eta.ndim != 2:
        raise ValueError(f"eta has shape {eta.shape}: give (points, order parameters)")
    n, d = eta.shape
    given = dict(temperature=temperature, mu_error=mu_error, energy=energy, energy_error=energy_error)
    given |= dict(hessian=hessian, hessian_error=hessian_error)
    shapes = dict(temperature=(n,), mu_error=(n, d), energy=(n,), energy_error=(n,))
    shapes |= dict(hessian=(n, d, d), hessian_error=(n, d, d))
    filled = {}
    for name, shape in shapes.items():
        value = np.asarray(np.nan if given[name] is None else given[name], float)
        if value.shape not in (shape, ()):
            raise ValueError(f"{name} has shape {value.shape} for eta of shape {eta.shape}: give {shape}")
        filled[name] = np.array(np.broadcast_to(value, shape))
    if mu.shape != (n, d):
        raise ValueError(f"mu has shape {mu.shape} for eta of shape {eta.shape}: give one value per order parameter")
    for name, value in (("eta", eta), ("mu", mu)):
        bad = np.flatnonzero(~np.isfinite(value).all(axis=1))
        if bad.size:
            raise ValueError(f"{name} is not finite in {bad.size} of {n} labels, first in row {bad[0]}: drop such rows")
    bad = np.flatnonzero(~(filled["temperature"] > 0))
    if bad.size:
        raise ValueError(
            f"temperature is {filled['temperature'][bad[0]]} K in row {bad[0]}: give a positive number of kelvin"
        )
    for name in ("mu_error", "energy_error", "hessian_error"):
        if np.any(filled[name] < 0):
            raise ValueError(f"{name} has negative entries: give standard errors, 0 or NaN where unknown")
    return Labels(eta=eta, mu=mu, **filled)


def empty(d: int) -> Labels:
    """No labels, of d order parameters."""
    return labels(np.zeros((0, d)), np.zeros(0), np.zeros((0, d)))


def concatenate(parts: Sequence[Labels]) -> Labels:
    """The rows of all parts, in their order.

    Raises
    ------
    ValueError
        No part at all, or parts that differ in the number of order parameters.
    """
    if not parts:
        raise ValueError("nothing to concatenate: give at least one Labels, or empty(d)")
    widths = sorted({part.eta.shape[1] for part in parts})
    if len(widths) > 1:
        raise ValueError(f"labels of {' and '.join(map(str, widths))} order parameters cannot be put together")
    return Labels(
        **{f.name: np.concatenate([np.asarray(getattr(p, f.name)) for p in parts], axis=0) for f in fields(Labels)}
    )
