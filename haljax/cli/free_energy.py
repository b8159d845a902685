"""A free energy at the command line, and what one sees of it while it is learned."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from haljax.cli.base import Command, Event, campaign_options, interruptible, live, say

if TYPE_CHECKING:
    from rich.console import Console, RenderableType


@click.command("free-energy", cls=Command)
@campaign_options
@click.pass_context
def free_energy(
    context: click.Context,
    config: Path,
    resume: bool,
    dry_run: bool,
    max_labels: int | None,
    max_iterations: int | None,
) -> None:
    """A free energy of order parameters, by lattice Monte Carlo and active learning, as CONFIG says."""
    from rich.console import Console

    from haljax.config import FreeEnergyConfig

    settings = FreeEnergyConfig.load(config)
    from haljax.free_energy.campaign import FreeEnergy

    if dry_run:
        click.echo(FreeEnergy(settings).plan())
        return
    console = Console()
    with interruptible(context, config), (_screen if console.is_terminal else _log)(console) as progress:
        result = FreeEnergy(settings, resume=resume, progress=progress).run(max_labels, max_iterations)
    if result.errors is not None:
        click.echo("\nRMSE of the chemical potentials on the test set (meV)")
        for i, error in enumerate(result.errors):
            click.echo(f"  mu_{i}  {1e3 * error:8.3g}")
    click.echo(f"\n{result.reason}\n{settings.directory / 'surface.npz'}\n{settings.directory / 'report.html'}")


@contextmanager
def _log(console: Console) -> Iterator[Callable[[Event], None]]:
    """Progress where nobody watches: one line for what is worth one."""

    def progress(event: Event) -> None:
        if event["stage"] == "iteration":
            say(_iteration_line(event))
        elif event["stage"] == "stop":
            say(f"stop: {event['reason']}")
        elif event["stage"] == "sample":
            if event["error"]:
                say(f"windows failed: {event['error']}")
            if event["done"] + event["failed"] == event["total"]:
                say(_window_line(event))

    yield progress


@contextmanager
def _screen(console: Console) -> Iterator[Callable[[Event], None]]:
    """Progress at a terminal: a few lines that are drawn anew several times a second."""
    screen = _Screen(console)
    with live(console, screen.render):
        yield screen.take


class _Screen:
    """What is known of a campaign under way, and how it looks."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.stage, self.since = "start", time.monotonic()
        self.iteration = 0
        self.windows: Event = {}

    def take(self, event: Event) -> None:
        stage = event["stage"]
        if stage == "iteration":
            self.console.print(_iteration_line(event), highlight=False)
            return
        if stage != self.stage:
            self.stage, self.since = stage, time.monotonic()
        self.iteration = event.get("iteration", self.iteration)
        if stage == "sample":
            self.windows = event
            if event["error"]:
                self.console.print(f"windows failed: {event['error']}", highlight=False, markup=False)

    def render(self) -> RenderableType:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.text import Text

        where = "test set" if self.iteration < 0 else f"iteration {self.iteration}"
        lines: list[Any] = [Text(f"{where}   {self.stage} {time.monotonic() - self.since:.0f} s")]
        if self.windows:
            done = self.windows["done"] + self.windows["failed"]
            lines += [ProgressBar(self.windows["total"], done, width=40), Text(_window_line(self.windows))]
        return Group(*lines)


def _window_line(event: Event) -> str:
    where = "test set" if event["iteration"] < 0 else f"iteration {event['iteration']}"
    parts = [f"{where}: {event['done']} of {event['total']} windows sampled"]
    parts += [f"{event[what]} {words}" for what, words in (("unconverged", "not converged"), ("failed", "failed"))
              if event[what]]  # fmt: skip
    return ", ".join(parts)


def _iteration_line(event: Event) -> str:
    parts = [f"iteration {event['iteration']}: {event['labels']} windows"]
    for name, words in (("ahead", "mu_0 ahead"), ("test", "mu_0 test")):
        if event[name]:
            others = event[name][1:]
            rest = f", others {1e3 * (sum(x * x for x in others) / len(others)) ** 0.5:.3g}" if others else ""
            parts.append(f"{words} {1e3 * event[name][0]:.3g}{rest} meV")
    if event["outside"]:
        parts.append(f"{event['outside']} too near the boundary to learn from")
    if event["unconverged"]:
        parts.append(f"{event['unconverged']} not converged")
    parts.append(f"{sum(event['seconds'].values()):.0f} s")
    return "; ".join(parts)


COMMANDS = (free_energy,)
