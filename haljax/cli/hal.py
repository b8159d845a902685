"""Hyperactive learning at the command line, and what one sees of it while it runs."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from haljax.cli.base import Command, Event, campaign_options, interruptible, live, say

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from haljax.config import HALConfig


@click.command(cls=Command)
@campaign_options
@click.option("--drop", multiple=True, metavar="ID", help="With --resume: go on without this label; may be repeated.")
@click.pass_context
def hal(
    context: click.Context,
    config: Path,
    resume: bool,
    dry_run: bool,
    max_labels: int | None,
    max_iterations: int | None,
    drop: tuple[str, ...],
) -> None:
    """Hyperactive learning: from a dozen structures to a potential, as CONFIG says."""
    from rich.console import Console

    from haljax.config import HALConfig

    settings = HALConfig.load(config)
    from haljax.hal.campaign import HAL  # brings jax, which a wrong config need not wait for

    if dry_run:
        click.echo(HAL(settings).plan())
        return
    console = Console()
    with interruptible(context, config), (_screen if console.is_terminal else _log)(console, settings) as progress:
        result = HAL(settings, resume=resume, progress=progress, drop=drop).run(max_labels, max_iterations)
    import jax

    if jax.process_index() > 0:  # of several processes one speaks
        return
    if result.errors is not None:
        click.echo(f"\nerrors on the test set\n{result.errors}")
    if result.calibration is not None:
        click.echo(f"\n{result.calibration}")
    click.echo(f"\n{result.reason}\n{settings.directory / 'model.npz'}\n{settings.directory / 'report.html'}")


@contextmanager
def _log(console: Console, config: HALConfig) -> Iterator[Callable[[Event], None]]:
    """Progress where nobody watches: one line for what is worth one."""

    def progress(event: Event) -> None:
        if event["stage"] == "iteration":
            say(_iteration_line(event))
        elif event["stage"] == "stop":
            say(f"stop: {event['reason']}")
        elif event["stage"] == "label":
            if event.get("error"):
                say(f"label {event['id']} failed: {event['error']}")
            if event["total"] and event["done"] + event["failed"] == event["total"]:
                say(_label_line(event))

    yield progress


@contextmanager
def _screen(console: Console, config: HALConfig) -> Iterator[Callable[[Event], None]]:
    """Progress at a terminal: a table of replicas that is drawn anew several times a second."""
    screen = _Screen(console, config)
    with live(console, screen.render):
        yield screen.take


class _Screen:
    """What is known of a campaign under way, and how it looks."""

    def __init__(self, console: Console, config: HALConfig) -> None:
        self.console, self.config = console, config
        self.stage, self.since = "start", time.monotonic()
        self.iteration, self.labels = 0, 0
        self.dynamics: Event = {}
        self.labelling: Event = {}
        self.errors: Mapping[str, Any] = {}

    def take(self, event: Event) -> None:
        stage = event["stage"]
        if stage == "iteration":
            self.iteration, self.labels, self.errors = event["iteration"], event["labels"], event["errors"]
            self.console.print(_iteration_line(event), highlight=False)
            return
        if stage != self.stage:
            self.stage, self.since = stage, time.monotonic()
        if stage == "dynamics":
            self.dynamics, self.iteration, self.labels = event, event["iteration"], event["labels"]
        elif stage == "label":
            self.labelling = event
            if event.get("error"):
                self.console.print(f"label {event['id']} failed: {event['error']}", highlight=False, markup=False)

    def render(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        seconds = time.monotonic() - self.since
        lines = [f"iteration {self.iteration}   {self.labels} labels   {self.stage} {seconds:.0f} s"]
        if bolder := _bolder(self.dynamics):
            lines[0] += f"   {bolder}"
        if self.labelling:
            lines.append(_label_line(self.labelling))
        if self.errors:
            lines.append(_error_words(self.errors))
        return Group(*self._replicas(), *map(Text, lines))

    def _replicas(self) -> Iterator[RenderableType]:
        from rich.table import Table
        from rich.text import Text

        if not self.dynamics:
            return
        table = Table("replica", "status", box=None, pad_edge=False)
        tolerance = _digits(self.dynamics.get("tolerance", self.config.dynamics.tolerance), ".3g")
        n_steps = round(self.config.dynamics.n_steps * self.dynamics.get("boldness", {}).get("n_steps", 1))
        for heading in ("step", f"f / {tolerance or 'tolerance'}", "T / K", "P / GPa"):
            table.add_column(heading, justify="right")
        names = ("status", "step", "criterion", "temperature_K", "pressure_GPa")
        rows = list(zip(*(self.dynamics[name] for name in names), strict=True))
        room = max(4, self.console.height - 8)
        for i, (status, step, f, temperature, pressure) in enumerate(rows[:room]):
            word = _status(status)
            table.add_row(
                str(i),
                Text(word, style=_STYLES.get(word, "red")),
                "" if step is None else f"{step}/{n_steps}",
                _digits(f, ".3f"),
                _digits(temperature, ".0f"),
                _digits(pressure, ".2f"),
            )
        yield table
        if len(rows) > room:
            counts = Counter(_status(row[0]) for row in rows[room:])
            yield Text(f"and {', '.join(f'{n} {word}' for word, n in counts.items())}")


_STYLES = {"running": "green", "uncertain": "yellow", "finished": "dim", "waiting": "dim"}


def _status(status: int | str | None) -> str:
    if isinstance(status, int):
        from haljax.md import Status

        status = Status(status).name.lower()
    return (status or "waiting").replace("_", " ")


def _digits(value: float | None, form: str) -> str:
    return "" if value is None or value != value else format(value, form)


def _bolder(event: Event) -> str:
    """How much bolder than ``[dynamics]`` a round explores, in words; empty where it does not."""
    factors = event.get("boldness", {})
    words = ", ".join(f"{name} x {factor:.3g}" for name, factor in factors.items() if name != "level" and factor != 1)
    return f"bolder: {words}" if words else ""


def _label_line(event: Event) -> str:
    failed = f", {event['failed']} failed" if event["failed"] else ""
    return f"labels: {event['done']} of {event['total']} done{failed}"


def _error_words(errors: Mapping[str, Mapping[str, float | None]]) -> str:
    row = list(errors.values())[-1]  # the total
    energy, force = _digits(row["energy_rmse"], ".3g"), _digits(row["force_rmse"], ".3g")
    return f"test RMSE {energy or '-'} meV/atom, {force or '-'} eV/Å"


def _iteration_line(event: Event) -> str:
    parts = [f"iteration {event['iteration']}: {event['labels']} labels"]
    if basis := event.get("basis"):
        parts[0] += f", {basis['functions']} functions"
    if replicas := event["replicas"]:
        counts = Counter(_status(replica["status"]) for replica in replicas)
        parts.append("replicas " + ", ".join(f"{n} {word}" for word, n in counts.most_common()))
    if score := _digits(event["score"], ".3g"):
        tolerance = _digits(event.get("tolerance"), ".3g")
        parts.append(f"f {score}" + (f" / {tolerance}" if tolerance else ""))
    if bolder := _bolder(event):
        parts.append(bolder)
    if event.get("found") == 0:
        parts.append("nothing found")
    if event["errors"]:
        parts.append(_error_words(event["errors"]))
    parts.append(" + ".join(f"{stage} {seconds:.0f}" for stage, seconds in event["seconds"].items()) + " s")
    return "; ".join(parts)


COMMANDS = (hal,)
