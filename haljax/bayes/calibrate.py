"""Are the predicted uncertainties true? Judge on data that the fit has not seen; not inside jit."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def calibration(residuals: jax.Array, sigmas: jax.Array) -> float:
    """The factor that makes sigmas (n,) fit the residuals (n,): ``sqrt(mean((residual / sigma)^2))``.

    It maximises the Gaussian likelihood of the residuals; below 1 the model was too cautious, above 1 too
    sure. ValueError where a sigma is not positive or a value not finite.
    """
    return float(jnp.sqrt(jnp.mean(_normalised(residuals, sigmas) ** 2)))


def coverage(residuals: jax.Array, sigmas: jax.Array, levels: Sequence[float] = (0.5, 0.68, 0.9, 0.95)) -> jax.Array:
    """The fraction of residuals (n,) inside the central Gaussian interval of each level.

    Well calibrated sigmas (n,) give the levels back. ValueError where a sigma is not positive, a value not
    finite, or a level not between 0 and 1.
    """
    if not all(0 < level < 1 for level in levels):
        raise ValueError(f"coverage levels must lie between 0 and 1, not {levels}")
    half_widths = jax.scipy.special.ndtri((1 + jnp.asarray(levels)) / 2)
    return jnp.mean(jnp.abs(_normalised(residuals, sigmas))[None, :] <= half_widths[:, None], axis=1)


def _normalised(residuals: jax.Array, sigmas: jax.Array) -> jax.Array:
    residuals, sigmas = jnp.asarray(residuals), jnp.asarray(sigmas)
    if residuals.shape != sigmas.shape or residuals.ndim != 1 or residuals.size == 0:
        raise ValueError(f"residuals {residuals.shape} and sigmas {sigmas.shape} must have one shape (n,), n > 0")
    wrong = ~(jnp.isfinite(residuals) & jnp.isfinite(sigmas) & (sigmas > 0))
    if jnp.any(wrong):
        raise ValueError(
            f"{int(jnp.sum(wrong))} of {wrong.size} items, the first at index {int(jnp.argmax(wrong))}, have "
            "a sigma that is not positive or a value that is not finite: leave them out (where features are "
            "zero sigma is), or add the noise, sqrt(sigma^2 + 1/noise_precision)"
        )
    return residuals / sigmas
