"""Growing data compile nothing again: as many programs of a function as there are shapes, and few of those."""

import logging
import re
from collections import Counter

import jax
import pytest

import haljax as hx

from .test_campaign import config, no_pictures  # noqa: F401  (a fixture)


class Compilations(logging.Handler):
    """What jax compiles: (function, shapes of its arguments), one entry each time."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def emit(self, record):
        if found := re.match(
            r"Compiling (\S+) with global shapes and types (.*)\. Argument", record.getMessage(), re.DOTALL
        ):
            self.seen.append((found[1], found[2]))


@pytest.fixture
def compilations():
    handler, logger = Compilations(), logging.getLogger("jax._src.interpreters.pxla")
    before = logger.propagate
    jax.config.update("jax_log_compiles", True)
    logger.addHandler(handler)
    logger.propagate = False
    yield handler.seen
    logger.removeHandler(handler)
    logger.propagate = before
    jax.config.update("jax_log_compiles", False)


def test_ten_iterations_compile_as_many_programs_as_there_are_shapes(tmp_path, compilations, no_pictures):  # noqa: F811
    given = config(tmp_path, dynamics={"n_steps": 20, "replicas_per_batch": 3}, reference={"workers": 1})
    hx.HAL(given).run(max_iterations=10)
    large = (
        "_begin", "_block", "all_rows", "all_features", "absorb", "_shrunk", "joint_posterior", "joined",
        "spread_factor", "_narrowed", "_greedy", "_evaluate", "_stds", "_criterion_of",
    )  # fmt: skip
    times = Counter(entry for entry in compilations if re.sub(r"jit\((.*)\)", r"\1", entry[0]) in large)
    seen = {re.sub(r"jit\((.*)\)", r"\1", name) for name, _ in times}
    assert seen >= {"_begin", "_block", "all_rows", "spread_factor", "joint_posterior"}, times
    assert set(times.values()) == {1}, "compiled again for shapes that it had been compiled for"
    programs = Counter(name for name, _ in times)
    # Structures have one size, but a fit has rows of 4 to 24 of them, and a structure on its way one or two.
    assert programs.pop("jit(all_rows)") <= 2, programs
    assert max(programs.values()) <= 3, programs
