"""When a campaign has done enough, and where its time went."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import NamedTuple


@dataclass(frozen=True)
class Limits:
    """Where to stop; a limit that is None never stops anything.

    Attributes
    ----------
    max_labels, max_iterations
        Stop once so many are done.
    tolerance, patience
        Stop once the criterion was below `tolerance` in each of the last `patience` iterations, or once `patience`
        iterations in a row found nothing although they explored as boldly as allowed.
    max_wall_s
        Stop once the campaign has run so many seconds.

    Raises
    ------
    ValueError
        A limit is not positive.
    """

    max_labels: int | None = None
    max_iterations: int | None = None
    tolerance: float | None = None
    patience: int = 3
    max_wall_s: float | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and not value > 0:
                raise ValueError(f"{field.name} = {value}: give a positive number, or leave the limit out")


class Progress(NamedTuple):
    """What a campaign has done so far.

    Attributes
    ----------
    scores : criterion of each iteration, oldest first.
    idle : iterations in a row, up to the last, that explored as boldly as allowed and found nothing.
    """

    labels: int
    iterations: int
    scores: Sequence[float]
    wall_s: float
    idle: int = 0


def why_stop(limits: Limits, progress: Progress) -> str | None:
    """The reason to stop now, in words, or None to go on."""
    tolerance, patience = limits.tolerance, limits.patience
    last = progress.scores[-patience:]
    # Every score has to be below, so that a NaN counts as not converged.
    if tolerance is not None and len(last) == patience and all(score < tolerance for score in last):
        return f"converged: the criterion was below {tolerance:g} in the last {patience} iterations"
    if progress.idle >= patience:
        return f"nothing left to find: the boldest exploration found nothing in the last {progress.idle} iterations"
    if limits.max_labels is not None and progress.labels >= limits.max_labels:
        return f"{progress.labels} labels done (max_labels = {limits.max_labels})"
    if limits.max_iterations is not None and progress.iterations >= limits.max_iterations:
        return f"{progress.iterations} iterations done (max_iterations = {limits.max_iterations})"
    if limits.max_wall_s is not None and progress.wall_s >= limits.max_wall_s:
        return f"{progress.wall_s:.0f} s of wall time used (max_wall_s = {limits.max_wall_s:g})"
    return None


@contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Add the wall time spent within to ``seconds[stage]``."""
    start = time.perf_counter()
    yield
    seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - start
