import jax.numpy as jnp
import numpy as np

from haljax.md import Guards, Status, guard

GUARDS = Guards(min_distance=0.6, max_force=50.0, max_temperature=0.4, max_pressure=0.3)
FINE = {"shortest": 0.9, "largest_force": 3.0, "kT": 0.1, "pressure": -0.1, "finite": True, "too_fast": False}


def judged(**changed):
    return int(guard(GUARDS, **{name: jnp.asarray(value) for name, value in (FINE | changed).items()}))


def test_every_guard_sets_its_status():
    assert judged() == Status.RUNNING
    assert judged(shortest=0.59) == Status.TOO_CLOSE
    assert judged(largest_force=50.1) == Status.LARGE_FORCE
    assert judged(kT=0.41) == Status.TOO_HOT
    assert judged(pressure=0.31) == judged(pressure=-0.31) == Status.HIGH_PRESSURE
    assert judged(finite=False) == Status.NOT_FINITE
    assert judged(too_fast=True) == Status.TOO_FAST
    assert judged(shortest=np.inf, pressure=0.0) == Status.RUNNING  # a lone atom


def test_the_gravest_is_reported():
    """NaN hides every comparison, and a list outrun every distance; a close pair explains force and heat."""
    bad = {"shortest": 0.1, "largest_force": 1e9, "kT": 1e3, "pressure": 1e3}
    assert judged(**bad) == Status.TOO_CLOSE
    assert judged(**bad, too_fast=True) == Status.TOO_FAST
    assert judged(**{name: np.nan for name in bad}, finite=False, too_fast=True) == Status.NOT_FINITE
