"""Hyperactive learning: biased dynamics, the criterion that stops it, and the campaign around both."""

from haljax.hal.campaign import HAL, Result

__all__ = ["HAL", "Result"]
