"""The command line: an application, so it sets what the library leaves to its caller: x64 and a cache.

Everything heavy is imported inside the commands, so that ``haljax --help`` is fast.
"""

from __future__ import annotations

import gc
import hashlib
import os
import platform
import sys
from pathlib import Path

import click

from haljax import __version__
from haljax.cli import check, free_energy, hal, potential
from haljax.cli.base import DEBUG, FILE, Group


@click.group(cls=Group, params=[DEBUG], context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="haljax")
def main() -> None:
    """Models of materials that know what they do not know.

    haljax finds out where a model of a material is uncertain, goes there, asks the truth, and learns.
    """
    if (here := os.getcwd()) not in sys.path:  # as python -m has it: a calculator or criterion of the user's own
        sys.path.insert(0, here)
    gc.set_threshold(50_000, 20, 20)  # tracing makes millions of lasting objects; Python's 700 costs a tenth of a start
    os.environ.setdefault("JAX_ENABLE_X64", "1")
    # The processes that sample windows or label may use the same GPU, of which JAX else takes three quarters at once.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if (cache := _cache_directory()) is not None:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


def _cache_directory() -> Path | None:
    """Where compiled programs are kept between runs; None for nowhere.

    HALJAX_CACHE_DIR names another directory, or is "off". One folder for each kind of CPU, since a program
    compiled for another may end in an illegal instruction. Before 0.12, jax takes its own programs for those
    of another CPU and fills the screen with errors that say so.
    """
    from importlib.metadata import version

    given = os.environ.get("HALJAX_CACHE_DIR")
    if given == "off" or tuple(map(int, version("jax").split(".")[:2])) < (0, 12):
        return None
    home = Path(given or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "haljax").expanduser()
    try:
        with open("/proc/cpuinfo") as file:
            cpu = next(line for line in file if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        cpu = platform.processor()
    return home / f"xla-{hashlib.sha256(cpu.encode()).hexdigest()[:8]}"


@main.command()
@click.argument("run_dir", type=FILE)
def report(run_dir: Path) -> None:
    """Write the report of the campaign in RUN_DIR anew."""
    if not (run_dir / "journal.jsonl").is_file():
        raise ValueError(f"{run_dir} holds no campaign: give the run directory, in which there is a journal.jsonl")
    from haljax.report import write_report

    click.echo(write_report(run_dir))


for module in (hal, free_energy, potential, check):
    for command in module.COMMANDS:
        main.add_command(command)
