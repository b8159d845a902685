"""Fit, evaluate, select, update and calibrate a potential, without a campaign."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from haljax.cli.base import FILE, Command

if TYPE_CHECKING:
    from ase import Atoms

KINDS = ("energy", "forces", "stress", "virial")  # of labels


def _read(path: Path) -> list[Atoms]:
    """All structures of a file."""
    from haljax.structures import read_structures

    return read_structures(path)


def _keys(command: Callable[..., None]) -> Callable[..., None]:
    """Options that name labels, handed on as one mapping ``keys``."""

    @wraps(command)
    def with_keys(*args: Any, **options: Any) -> None:
        given = {kind: options.pop(f"{kind}_key") for kind in reversed(KINDS)}
        command(*args, keys={kind: name for kind, name in given.items() if name}, **options)

    found: Callable[..., None] = with_keys
    for kind in reversed(KINDS):
        found = click.option(f"--{kind}-key", help=f"Name of the {kind} in the file.  [default: usual ones]")(found)
    return found


@contextmanager
def _about(path: Path) -> Iterator[None]:
    """Put the file before what is said of a structure in it."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


@contextmanager
def _search_shown() -> Iterator[None]:
    """Print the steps of a search for a basis, which takes minutes."""
    import logging

    logger, handler = logging.getLogger("haljax.growth"), logging.StreamHandler()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def _check_output(path: Path) -> None:
    """Refuse before the work rather than after it."""
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise ValueError(f"{path} cannot be written: give the path of a file in a directory that exists")


def _energies(context: click.Context, parameter: click.Parameter, value: str | None) -> Any:
    if value is None or value in ("auto", "lsq", "isolated"):
        return value
    try:
        return {e.strip(): float(x) for e, x in (pair.split("=") for pair in value.split(","))}
    except ValueError as error:
        raise click.BadParameter("give auto, lsq, isolated or energies in eV such as Al=-3.1,Cu=-3.5") from error


class _OrAuto(click.ParamType):
    """A number, or "auto"."""

    def __init__(self, kind: type[int] | type[float]) -> None:
        self.kind, self.name = kind, f"{'integer' if kind is int else 'float'}|auto"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        if value == "auto":
            return value
        try:
            return self.kind(value)
        except ValueError:
            self.fail(f"{value!r} is neither a number nor 'auto'", parameter, context)


@click.command(cls=Command)
@click.argument("train", type=FILE)
@click.option("-o", "--output", type=FILE, default="model.npz", show_default=True, help="The model.")
@click.option("--elements", help="Such as Al,Cu.  [default: those in TRAIN]")
@click.option(
    "--cutoff", type=_OrAuto(float), default=5.0, show_default=True, help="Radius of an environment, Å; auto: chosen."
)
@click.option("--order", type=_OrAuto(int), default=3, show_default=True, help="Correlation order; auto: chosen.")
@click.option(
    "--max-degree",
    type=_OrAuto(int),
    default=10,
    show_default=True,
    help="Bound on the sum of n + 1.5 l; auto: as large as leave-one-out errors support.",
)
@click.option("--budget", type=float, help="Longest time of energy and forces, µs per atom, of what auto may choose.")
@click.option("--e0", callback=_energies, help="auto, lsq, isolated, or Al=-3.1,Cu=-3.5 in eV.  [default: auto]")
@click.option("--energy-weight", type=float, help="Of an energy per atom, 1/eV.")
@click.option("--force-weight", type=float, help="Of a force component, Å/eV.")
@click.option("--stress-weight", type=float, help="Of a virial component per atom, 1/eV.")
@click.option(
    "--solver",
    type=click.Choice(["auto", "brr", "ard"]),
    help="A prior learned from the data, one precision for all functions, or one each.  [default: auto]",
)
@click.option("--smoothness", type=float, help="Power of the smoothness prior of brr and ard.")
@click.option("--test", type=FILE, help="Labelled structures to evaluate the model on.")
@_keys
def fit(
    train: Path,
    output: Path,
    elements: str | None,
    cutoff: float | Literal["auto"],
    order: int | Literal["auto"],
    max_degree: int | Literal["auto"],
    budget: float | None,
    test: Path | None,
    keys: dict[str, str],
    **settings: Any,
) -> None:
    """Fit a potential to the labelled structures in TRAIN."""
    from dataclasses import replace

    import haljax as hx
    from haljax.evaluation import left_out_words

    _check_output(output)
    structures, tests = _read(train), _read(test) if test else []
    symbols = (
        elements.replace(",", " ").split() if elements else sorted({e for atoms in structures for e in atoms.symbols})
    )
    basis = hx.ace_basis(symbols, cutoff, order, max_degree, budget)
    with _about(train), _search_shown():
        model = hx.fit(basis, structures, keys=keys, **{k: v for k, v in settings.items() if v is not None})
        table = replace(hx.evaluate(model, structures, keys), note=left_out_words(model) if model.loo.groups else "")
    model.save(output)
    click.echo(f"{len(model.basis)} functions, {len(structures)} structures: {output}\n{model.choice}")
    click.echo(f"\nerrors on {train}\n{table}")
    if test:
        with _about(test):
            click.echo(f"\nerrors on {test}\n{hx.evaluate(model, tests, keys)}")


@click.command(cls=Command)
@click.argument("model", type=FILE)
@click.argument("test", type=FILE)
@click.option("--json", "as_json", is_flag=True, help="JSON rather than a table.")
@_keys
def evaluate(model: Path, test: Path, as_json: bool, keys: dict[str, str]) -> None:
    """Errors of MODEL on the labelled structures in TEST."""
    import json

    import haljax as hx

    loaded, structures = hx.load(model), _read(test)
    with _about(test):
        table = hx.evaluate(loaded, structures, keys)
    known = {g: {k: None if x != x else x for k, x in row.items()} for g, row in table.rows.items()}  # JSON has no NaN
    click.echo(json.dumps(known) if as_json else table)


@click.command(cls=Command)
@click.argument("model", type=FILE)
@click.argument("pool", type=FILE)
@click.option("-n", "n", type=click.IntRange(min=1), required=True, help="How many.")
@click.option("-o", "--output", type=FILE, default="picked.xyz", show_default=True, help="The structures picked.")
def select(model: Path, pool: Path, n: int, output: Path) -> None:
    """Pick the N structures of POOL that MODEL would learn most from; no labels needed."""
    from ase.io import write

    import haljax as hx

    _check_output(output)
    loaded, structures = hx.load(model), _read(pool)
    with _about(pool):
        picked = hx.select(loaded, structures, n)
    write(output, [structures[i] for i in picked], format="extxyz")
    click.echo(f"picked {', '.join(map(str, picked))} (counted from 0): {output}")


@click.command(cls=Command)
@click.argument("model", type=FILE)
@click.argument("new", type=FILE)
@click.option("-o", "--output", type=FILE, required=True, help="The updated model; it may be MODEL itself.")
@_keys
def update(model: Path, new: Path, output: Path, keys: dict[str, str]) -> None:
    """Teach MODEL the labelled structures in NEW, at fixed hyperparameters."""
    import haljax as hx

    _check_output(output)
    loaded, structures = hx.load(model), _read(new)
    with _about(new):
        updated = hx.update(loaded, structures, keys)
        before, after = (hx.evaluate(m, structures, keys) for m in (loaded, updated))
    updated.save(output)
    click.echo(f"{updated.n_structures} structures: {output}")
    click.echo(f"\nerrors on {new} before\n{before}\n\nafter\n{after}")


@click.command(cls=Command)
@click.argument("model", type=FILE)
@click.argument("held_out", type=FILE)
@click.option("-o", "--output", type=FILE, required=True, help="The calibrated model; it may be MODEL itself.")
@_keys
def calibrate(model: Path, held_out: Path, output: Path, keys: dict[str, str]) -> None:
    """Scale the uncertainties of MODEL to its errors on the labelled structures in HELD_OUT."""
    import haljax as hx

    _check_output(output)
    loaded, structures = hx.load(model), _read(held_out)
    with _about(held_out):
        calibrated, calibration = hx.calibrate(loaded, structures, keys)
    calibrated.save(output)
    click.echo(f"{calibration}\n{output}")


COMMANDS = (fit, evaluate, select, update, calibrate)
