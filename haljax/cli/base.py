"""What all commands share: errors in words, the option --debug, the options of a campaign."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console

Event = Mapping[str, Any]  # of a campaign's progress

FILE = click.Path(path_type=Path)
DEBUG = click.Option(
    ["--debug"],
    is_flag=True,
    expose_value=False,
    help="Show the traceback of an error.",
    callback=lambda context, _, value: context.meta.__setitem__("debug", value or context.meta.get("debug")),
)


class Command(click.Command):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.append(DEBUG)


class Group(click.Group):
    command_class = Command

    def invoke(self, context: click.Context) -> Any:
        """Run a command; what can be expected to go wrong is one message, not a traceback."""
        try:
            return super().invoke(context)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            context.exit(130)
        except (ValueError, RuntimeError, OSError, AssertionError) as error:
            if isinstance(error, AssertionError) and not _no_device(error):
                raise
            if isinstance(error, click.exceptions.Exit | click.exceptions.Abort):  # RuntimeErrors, for click's use
                raise
            if context.meta.get("debug") or not (str(error) or _no_device(error)):
                traceback.print_exc()
            click.echo(f"error: {words(error)}", err=True)
            context.exit(1)


def _no_device(error: BaseException) -> bool:
    """Whether JAX found none of the devices that it was told to use, of which it says nothing."""
    if not isinstance(error, AssertionError) or str(error) or "JAX_PLATFORMS" not in os.environ:
        return False
    import jax

    try:
        return not jax.devices()
    except Exception:  # the same again
        return True


def words(error: Exception) -> str:
    if _no_device(error):
        return (
            f"there is no device of the kind that JAX_PLATFORMS={os.environ['JAX_PLATFORMS']} asks for: unset "
            "JAX_PLATFORMS, or install the JAX and the driver for it"
        )
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__


def campaign_options(command: Callable) -> Callable:
    """The argument CONFIG and the options of a command that runs a campaign."""
    for decorate in (
        click.option("--max-iterations", type=click.IntRange(min=1), help="In place of stop.max_iterations."),
        click.option("--max-labels", type=click.IntRange(min=1), help="In place of stop.max_labels."),
        click.option("--dry-run", is_flag=True, help="Say what would run."),
        click.option("--resume", is_flag=True, help="Go on with what the run directory holds."),
        click.argument("config", type=FILE),
    ):
        command = decorate(command)
    return command


@contextmanager
def interruptible(context: click.Context, config: Path) -> Iterator[None]:
    """Say after Ctrl-C how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        again = f"haljax {context.info_name} {config} --resume"
        click.echo(f"interrupted; nothing labelled is lost: {again} continues", err=True)
        context.exit(130)


def say(line: str) -> None:
    """Print a line of progress; where nobody reads any more (``| head -1``) or a disk is full, the campaign goes on."""
    try:
        print(line, flush=True)
    except OSError as error:
        if not isinstance(error, BrokenPipeError):
            click.echo(f"standard output cannot be written ({error.strerror}): going on without it", err=True)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def live(console: Console, render: Callable[[], Any]) -> Iterator[None]:
    """Draw what ``render`` returns anew several times a second."""
    from rich.live import Live

    with Live(get_renderable=render, console=console, refresh_per_second=4, transient=True):
        yield
