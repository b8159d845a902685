"""Order-parameter mean field: a free energy known exactly, in any number of order parameters.

The energy of N cells depends on the order parameters alone, ``E = N Phi(eta)``, and states are counted exactly, so
that for N -> infinity

    g(eta, T) = Phi(eta) + kT / n_s sum_k [x_k ln x_k + (1 - x_k) ln(1 - x_k)]

with the sublattices' fractions x of greatest entropy at this eta (`haljax.lattice.ideal`).

One sublattice and a quadratic Phi is the regular solution of Bragg & Williams, Proc. R. Soc. A 145, 699 (1934),
doi:10.1098/rspa.1934.0132; Phi of invariant polynomials has the wells, walls and symmetry of a real ordering system,
and every label costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from haljax.free_energy.data import Labels, labels
from haljax.free_energy.minimise import minimise
from haljax.lattice.ideal import TINY, checked, fractions, negentropy
from haljax.lattice.polytope import half_spaces, pull_inside
from haljax.lattice.units import KB


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MeanField:
    """A surface like a trained one, exact. Make it with `mean_field`.

    Energies are eV per cell; eta has shape (..., d), temperatures (K) are () or (...). On the boundary of the domain
    and beyond, g goes on as `haljax.lattice.ideal.fields` says.

    Attributes
    ----------
    interaction : eta (d,) -> () eV, the energy Phi; static: the same function is the same program.
    patterns : (d, n_s), eta = patterns @ x / n_s.
    """

    interaction: Callable[[jax.Array], jax.Array] = field(metadata={"static": True})
    patterns: Any

    def energy(self, eta: Any) -> jax.Array:
        """Phi (...)."""
        return _batched(self.interaction, jnp.asarray(eta))

    @jax.jit
    def free_energy(self, eta: Any, temperature: Any) -> jax.Array:
        """g (...)."""
        return _batched(self._one, *self._broadcast(eta, temperature))

    @jax.jit
    def chemical_potential(self, eta: Any, temperature: Any) -> jax.Array:
        """dg/d eta (..., d)."""
        return _batched(jax.grad(self._one), *self._broadcast(eta, temperature))

    @jax.jit
    def hessian(self, eta: Any, temperature: Any) -> jax.Array:
        """d^2 g/d eta^2 (..., d, d)."""
        return _batched(jax.hessian(self._one), *self._broadcast(eta, temperature))

    def _one(self, eta: jax.Array, temperature: jax.Array) -> jax.Array:
        return self.interaction(eta) + KB * temperature * negentropy(self.patterns, eta)

    def _broadcast(self, eta: Any, temperature: Any) -> tuple[jax.Array, jax.Array]:
        eta = jnp.asarray(eta)
        return eta, jnp.broadcast_to(jnp.asarray(temperature, eta.dtype), eta.shape[:-1])


def mean_field(interaction: Callable[[jax.Array], jax.Array], patterns: Any) -> MeanField:
    """The mean field of an energy Phi: eta (d,) -> () eV per cell, of order parameters with patterns (d, n_s).

    Raises
    ------
    ValueError
        `patterns` is no finite matrix of independent rows, or Phi does not take (d,) to a scalar.
    """
    patterns = checked(patterns)
    shape = jax.eval_shape(interaction, jax.ShapeDtypeStruct((len(patterns),), float)).shape
    if shape != ():
        raise ValueError(f"the interaction gives shape {shape} for one eta of shape ({len(patterns)},): give a scalar")
    return MeanField(interaction, patterns)


def regular_solution(critical_temperature: float) -> MeanField:
    """The symmetric regular solution in one composition, ``Phi = 2 k T_c x (1 - x)``.

    Below T_c it separates into x and 1 - x with ``2 x - 1 = tanh((2 x - 1) T_c / T)``; it is unstable where
    ``4 x (1 - x) > T / T_c``.
    """
    w = 2 * KB * critical_temperature
    return mean_field(lambda eta: w * eta[0] * (1 - eta[0]), [[1.0]])


def exact_labels(
    field: MeanField, eta: Any, temperature: Any, *, key: jax.Array | None = None, mu_error: Any = 0.0
) -> Labels:
    """Labels of `field` at points (n, d): mu, with Gaussian noise of standard error `mu_error` if a key is given,
    energies and Hessians.

    Raises
    ------
    ValueError
        Points outside the domain or on its boundary.
    """
    x = np.asarray(jax.vmap(lambda e: fractions(field.patterns, e))(jnp.asarray(eta)))
    missed = np.abs(x @ np.transpose(field.patterns) / x.shape[1] - eta).max(axis=1)
    outside = np.flatnonzero(~((missed <= 1e-6) & (np.minimum(x, 1 - x).min(axis=1) >= 10 * TINY)))
    if outside.size:
        raise ValueError(
            f"{outside.size} points are not inside the domain, first row {outside[0]}: every sublattice's fraction "
            "must lie between 0 and 1"
        )
    mu = np.asarray(field.chemical_potential(eta, temperature))
    error = np.broadcast_to(np.asarray(mu_error, float), mu.shape)
    if key is not None:
        mu = mu + error * np.asarray(jax.random.normal(key, mu.shape))
    return labels(eta, temperature, mu, error, field.energy(eta), 0.0, field.hessian(eta, temperature), 0.0)


class _Biased(NamedTuple):
    field: MeanField
    kappa: Any  # (n, d)
    phi: Any  # (n, d)

    def free_energy(self, eta: jax.Array, temperature: Any) -> jax.Array:
        return self.field.free_energy(eta, temperature) + jnp.sum(self.phi * (eta - self.kappa) ** 2, axis=-1)

    def chemical_potential(self, eta: jax.Array, temperature: Any) -> jax.Array:
        return self.field.chemical_potential(eta, temperature) + 2 * self.phi * (eta - self.kappa)

    def hessian(self, eta: jax.Array, temperature: Any) -> jax.Array:
        return self.field.hessian(eta, temperature) + jax.vmap(jnp.diag)(2 * self.phi)


def biased_labels(
    key: jax.Array,
    field: MeanField,
    kappa: Any,
    phi: Any,
    temperature: float,
    *,
    n_cells: int = 6912,
    samples: int = 1000,
) -> Labels:
    """What umbrella windows ``g + sum_i phi_i (eta_i - kappa_i)^2`` would measure on `n_cells` cells.

    Every window stands at its most probable eta and fluctuates with covariance ``kT/N (H + 2 phi)^-1``; the mean of
    so many independent `samples` gives eta, and ``mu = -2 phi (<eta> - kappa)``, which is off from mu at this eta by
    ``(H + 2 phi)`` times what eta is off, with covariance ``kT/N (H + 2 phi) / samples``. In a
    window that the bias does not make convex the labels are those of one of its minima.

    Parameters
    ----------
    kappa : (n, d); phi : (d,) or (n, d), eV.
    """
    kappa = jnp.asarray(kappa)
    phi = jnp.broadcast_to(jnp.asarray(phi, kappa.dtype).reshape(-1, kappa.shape[-1]), kappa.shape)
    patterns = np.asarray(field.patterns)
    lower, upper = (np.mean(part, axis=1) for part in (np.minimum(patterns, 0), np.maximum(patterns, 0)))
    # A box around all fillings: what holds a window inside is the free energy.
    box = half_spaces(np.vstack([np.eye(len(lower)), -np.eye(len(lower))]), np.concatenate([upper, -lower]))
    start = jnp.asarray(pull_inside(box, (lower + upper)[None] / 2, np.asarray(kappa), margin=0.01))
    biased = _Biased(field, kappa, phi)
    eta = minimise(biased, box, start, temperature).eta
    hessian = field.hessian(eta, temperature)
    bend, scale = biased.hessian(eta, temperature), KB * temperature / n_cells / samples
    covariance = scale * jnp.linalg.inv(bend)
    noise = jax.random.normal(key, eta.shape)
    eta = eta + jnp.einsum("nij,nj->ni", jnp.linalg.cholesky(covariance), noise)
    error = jnp.sqrt(scale * jnp.diagonal(bend, axis1=1, axis2=2))
    return labels(eta, temperature, -2 * phi * (eta - kappa), error, field.energy(eta), None, hessian, 0.0)


def _batched(function: Callable[..., jax.Array], eta: jax.Array, *others: jax.Array) -> jax.Array:
    lead = eta.shape[:-1]
    values = jax.vmap(function)(eta.reshape(-1, eta.shape[-1]), *(a.reshape(-1) for a in others))
    return values.reshape(lead + values.shape[1:])
