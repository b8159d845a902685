"""The command line: an application, so it sets what the library leaves to its caller: x64 and a cache.

Everything heavy is imported inside the commands, so that ``haljax --help`` is fast.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from haljax import __version__

if TYPE_CHECKING:
    from ase import Atoms
    from rich.console import Console, RenderableType

    from haljax.config import HALConfig

Event = Mapping[str, Any]  # of a campaign's progress

_FILE = click.Path(path_type=Path)
_DEBUG = click.Option(
    ["--debug"],
    is_flag=True,
    expose_value=False,
    help="Show the traceback of an error.",
    callback=lambda context, _, value: context.meta.__setitem__("debug", value or context.meta.get("debug")),
)


class _Command(click.Command):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.append(_DEBUG)


class _Group(click.Group):
    command_class = _Command

    def invoke(self, context: click.Context) -> Any:
        """Run a command; what can be expected to go wrong is one message, not a traceback."""
        try:
            return super().invoke(context)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            context.exit(130)
        except (ValueError, RuntimeError, OSError) as error:
            if isinstance(error, click.exceptions.Exit | click.exceptions.Abort):  # RuntimeErrors, for click's use
                raise
            if context.meta.get("debug") or not str(error):
                traceback.print_exc()
            click.echo(f"error: {_words(error)}", err=True)
            context.exit(1)


def _words(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__


@click.group(cls=_Group, params=[_DEBUG], context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="haljax")
def main() -> None:
    """Machine-learned potentials that know what they do not know.

    haljax finds out where a model of a material is uncertain, goes there, asks the truth, and learns.
    """
    os.environ.setdefault("JAX_ENABLE_X64", "1")
    if (cache := _cache_directory()) is not None:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")


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


def _read(path: Path) -> list[Atoms]:
    """All structures of a file."""
    from ase.io import read

    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    try:
        structures = read(path, ":")
    except Exception as error:  # ASE's readers raise what they like
        problem = f"{type(error).__name__}: {error}"
        raise ValueError(f"{path} cannot be read as structures ({problem})") from error
    if not structures:
        raise ValueError(f"{path} holds no structures")
    return list(structures)


@contextmanager
def _about(path: Path) -> Iterator[None]:
    """Put the file before what is said of a structure in it."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _check_output(path: Path) -> None:
    """Refuse before the work rather than after it."""
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise ValueError(f"{path} cannot be written: give the path of a file in a directory that exists")


# ----------------------------------------------------------------------------------------- without a campaign


def _energies(context: click.Context, parameter: click.Parameter, value: str | None) -> Any:
    if value is None or value in ("lsq", "isolated"):
        return value
    try:
        return {e.strip(): float(x) for e, x in (pair.split("=") for pair in value.split(","))}
    except ValueError as error:
        raise click.BadParameter("give lsq, isolated or energies in eV such as Al=-3.1,Cu=-3.5") from error


@main.command()
@click.argument("train", type=_FILE)
@click.option("-o", "--output", type=_FILE, default="model.npz", show_default=True, help="The model.")
@click.option("--elements", help="Such as Al,Cu.  [default: those in TRAIN]")
@click.option("--cutoff", type=float, default=5.0, show_default=True, help="Radius of an environment, Å.")
@click.option("--order", type=int, default=3, show_default=True, help="Correlation order.")
@click.option("--max-degree", type=int, default=10, show_default=True, help="Bound on the sum of n + 1.5 l.")
@click.option("--e0", callback=_energies, help="lsq, isolated, or Al=-3.1,Cu=-3.5 in eV.  [default: lsq]")
@click.option("--energy-weight", type=float, help="Of an energy per atom, 1/eV.")
@click.option("--force-weight", type=float, help="Of a force component, Å/eV.")
@click.option("--stress-weight", type=float, help="Of a virial component per atom, 1/eV.")
@click.option("--solver", type=click.Choice(["brr", "ard"]), help="One prior precision, or one each.")
@click.option("--smoothness", type=float, help="Power of the smoothness prior.")
@click.option("--test", type=_FILE, help="Labelled structures to evaluate the model on.")
def fit(
    train: Path,
    output: Path,
    elements: str | None,
    cutoff: float,
    order: int,
    max_degree: int,
    test: Path | None,
    **settings: Any,
) -> None:
    """Fit a potential to the labelled structures in TRAIN."""
    import haljax as hx

    _check_output(output)
    structures, tests = _read(train), _read(test) if test else []
    symbols = (
        elements.replace(",", " ").split() if elements else sorted({e for atoms in structures for e in atoms.symbols})
    )
    basis = hx.ace_basis(symbols, cutoff, order, max_degree)
    with _about(train):
        model = hx.fit(basis, structures, **{k: v for k, v in settings.items() if v is not None})
        table = hx.evaluate(model, structures)
    model.save(output)
    click.echo(f"{len(basis)} functions, {len(structures)} structures: {output}\n\nerrors on {train}\n{table}")
    if test:
        with _about(test):
            click.echo(f"\nerrors on {test}\n{hx.evaluate(model, tests)}")


@main.command()
@click.argument("model", type=_FILE)
@click.argument("test", type=_FILE)
@click.option("--json", "as_json", is_flag=True, help="JSON rather than a table.")
def evaluate(model: Path, test: Path, as_json: bool) -> None:
    """Errors of MODEL on the labelled structures in TEST."""
    import json

    import haljax as hx

    loaded, structures = hx.load(model), _read(test)
    with _about(test):
        table = hx.evaluate(loaded, structures)
    known = {g: {k: None if x != x else x for k, x in row.items()} for g, row in table.rows.items()}  # JSON has no NaN
    click.echo(json.dumps(known) if as_json else table)


@main.command()
@click.argument("model", type=_FILE)
@click.argument("pool", type=_FILE)
@click.option("-n", "n", type=click.IntRange(min=1), required=True, help="How many.")
@click.option("-o", "--output", type=_FILE, default="picked.xyz", show_default=True, help="The structures picked.")
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


@main.command()
@click.argument("model", type=_FILE)
@click.argument("new", type=_FILE)
@click.option("-o", "--output", type=_FILE, default="model.npz", show_default=True, help="The updated model.")
def update(model: Path, new: Path, output: Path) -> None:
    """Teach MODEL the labelled structures in NEW, at fixed hyperparameters."""
    import haljax as hx

    _check_output(output)
    loaded, structures = hx.load(model), _read(new)
    with _about(new):
        updated = hx.update(loaded, structures)
        before, after = (hx.evaluate(m, structures) for m in (loaded, updated))
    updated.save(output)
    click.echo(f"{updated.n_structures} structures: {output}")
    click.echo(f"\nerrors on {new} before\n{before}\n\nafter\n{after}")


@main.command()
@click.argument("model", type=_FILE)
@click.argument("held_out", type=_FILE)
@click.option("-o", "--output", type=_FILE, default="model.npz", show_default=True, help="The calibrated model.")
def calibrate(model: Path, held_out: Path, output: Path) -> None:
    """Scale the uncertainties of MODEL to its errors on the labelled structures in HELD_OUT."""
    import haljax as hx

    _check_output(output)
    loaded, structures = hx.load(model), _read(held_out)
    with _about(held_out):
        calibrated, calibration = hx.calibrate(loaded, structures)
    calibrated.save(output)
    click.echo(f"{calibration}\n{output}")


# ----------------------------------------------------------------------------------------------- the campaign


@main.command()
@click.argument("config", type=_FILE)
@click.option("--resume", is_flag=True, help="Go on with what the run directory holds.")
@click.option("--dry-run", is_flag=True, help="Say what would run.")
@click.option("--max-labels", type=click.IntRange(min=1), help="In place of stop.max_labels.")
@click.option("--max-iterations", type=click.IntRange(min=1), help="In place of stop.max_iterations.")
@click.pass_context
def hal(
    context: click.Context,
    config: Path,
    resume: bool,
    dry_run: bool,
    max_labels: int | None,
    max_iterations: int | None,
) -> None:
    """Hyperactive learning: from a dozen structures to a potential, as CONFIG says."""
    from rich.console import Console

    from haljax.config import load_config

    settings = load_config(config)
    from haljax.hal.campaign import HAL  # brings jax, which a wrong config need not wait for

    if dry_run:
        click.echo(HAL(settings).plan())
        return
    console = Console()
    try:
        with (_screen if console.is_terminal else _log)(console, settings) as progress:
            result = HAL(settings, resume=resume, progress=progress).run(
                max_labels=max_labels, max_iterations=max_iterations
            )
    except KeyboardInterrupt:
        command = f"haljax hal {config} --resume"
        click.echo(f"interrupted; nothing labelled is lost: {command} continues", err=True)
        context.exit(130)
    if result.errors is not None:
        click.echo(f"\nerrors on the test set\n{result.errors}")
    if result.calibration is not None:
        click.echo(f"\n{result.calibration}")
    click.echo(f"\n{result.reason}\n{settings.directory / 'model.npz'}\n{settings.directory / 'report.html'}")


@main.command()
@click.argument("run_dir", type=_FILE)
def report(run_dir: Path) -> None:
    """Write the report of the campaign in RUN_DIR anew."""
    if not (run_dir / "journal.jsonl").is_file():
        raise ValueError(f"{run_dir} holds no campaign: give the run directory, in which there is a journal.jsonl")
    from haljax.report import write_report

    click.echo(write_report(run_dir))


@contextmanager
def _log(console: Console, config: HALConfig) -> Iterator[Callable[[Event], None]]:
    """Progress where nobody watches: one line for what is worth one."""

    def progress(event: Event) -> None:
        if event["stage"] == "iteration":
            print(_iteration_line(event), flush=True)
        elif event["stage"] == "stop":
            print(f"stop: {event['reason']}", flush=True)
        elif event["stage"] == "label":
            if event.get("error"):
                print(f"label {event['id']} failed: {event['error']}", flush=True)
            if event["total"] and event["done"] + event["failed"] == event["total"]:
                print(_label_line(event), flush=True)

    yield progress


@contextmanager
def _screen(console: Console, config: HALConfig) -> Iterator[Callable[[Event], None]]:
    """Progress at a terminal: a table of replicas that is drawn anew several times a second."""
    from rich.live import Live

    screen = _Screen(console, config)
    with Live(get_renderable=screen.render, console=console, refresh_per_second=4, transient=True):
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
        for heading in ("step", f"f / {self.config.dynamics.tolerance:g}", "T / K", "P / GPa"):
            table.add_column(heading, justify="right")
        names = ("status", "step", "criterion", "temperature_K", "pressure_GPa")
        rows = list(zip(*(self.dynamics[name] for name in names), strict=True))
        room = max(4, self.console.height - 8)
        for i, (status, step, f, temperature, pressure) in enumerate(rows[:room]):
            word = _status(status)
            table.add_row(
                str(i),
                Text(word, style=_STYLES.get(word, "red")),
                "" if step is None else f"{step}/{self.config.dynamics.n_steps}",
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


def _label_line(event: Event) -> str:
    failed = f", {event['failed']} failed" if event["failed"] else ""
    return f"labels: {event['done']} of {event['total']} done{failed}"


def _error_words(errors: Mapping[str, Mapping[str, float | None]]) -> str:
    row = list(errors.values())[-1]  # the total
    energy, force = _digits(row["energy_rmse"], ".3g"), _digits(row["force_rmse"], ".3g")
    return f"test RMSE {energy or '-'} meV/atom, {force or '-'} eV/Å"


def _iteration_line(event: Event) -> str:
    parts = [f"iteration {event['iteration']}: {event['labels']} labels"]
    if replicas := event["replicas"]:
        counts = Counter(_status(replica["status"]) for replica in replicas)
        parts.append("replicas " + ", ".join(f"{n} {word}" for word, n in counts.most_common()))
    if score := _digits(event["score"], ".3g"):
        parts.append(f"f {score}")
    if event["errors"]:
        parts.append(_error_words(event["errors"]))
    parts.append(f"{sum(event['seconds'].values()):.0f} s")
    return "; ".join(parts)


# --------------------------------------------------------------------------------------------- the self-check


@main.command()
@click.pass_context
def check(context: click.Context) -> None:
    """Check the installation: versions, arithmetic, a small fit and a round of biased dynamics."""
    failed = 0
    for what, examine in _CHECKS:
        try:
            outcome = f"ok      {what}: {examine()}"
        except Exception as error:
            if context.meta.get("debug"):
                traceback.print_exc()
            failed += 1
            outcome = f"FAILED  {what}: {_words(error) if str(error) else type(error).__name__}"
        click.echo(outcome)
    if failed:
        click.echo(f"error: {failed} of {len(_CHECKS)} checks failed", err=True)
        context.exit(1)


def _check_versions() -> str:
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version(), "haljax": __version__}
    missing = []
    for package in ("jax", "jaxlib", "jax-md", "numpy", "scipy", "ase", "pydantic", "matplotlib"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            missing.append(package)
    if missing:
        raise RuntimeError(f"{', '.join(missing)} not installed: pip install haljax brings all of them")
    if "0.10.2" in (found["jax"], found["jaxlib"]):
        raise RuntimeError("jax 0.10.2 computes wrong numbers on CPUs: pip install 'jax>=0.10.1,!=0.10.2'")
    return ", ".join(f"{package} {number}" for package, number in found.items())


def _check_x64() -> str:
    from haljax.bayes import require_x64

    require_x64()
    return "on"


def _check_devices() -> str:
    import jax

    return ", ".join(f"{d.platform} {d.id} ({d.device_kind})" for d in jax.devices())


def _check_arithmetic() -> str:
    """jit against numpy on many rows, where jax 0.10.2 goes wrong (jax-ml/jax#39103)."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    rng = np.random.default_rng(0)
    matrix, rows = rng.normal(size=(3, 3)), rng.normal(size=(100_000, 3))
    for kind, tolerance in (("float64", 1e-12), ("float32", 1e-4)):
        m, x = matrix.astype(kind), rows.astype(kind)

        def norms(m: jax.Array, x: jax.Array) -> jax.Array:
            return jax.vmap(lambda row: jnp.sum((m @ row) ** 2))(x)

        with jax.default_matmul_precision("highest"):
            eager, jitted = norms(jnp.asarray(m), jnp.asarray(x)), jax.jit(norms)(m, x)
        exact = np.sum((x @ m.T) ** 2, axis=1)
        for name, values in (("eager", eager), ("jit", jitted)):
            wrong = ~np.isclose(np.asarray(values), exact, rtol=tolerance, atol=tolerance)
            if wrong.any():
                raise RuntimeError(
                    f"{name} computes {wrong.sum()} of {len(rows)} rows in {kind} wrong: do not use "
                    f"jax {jax.__version__} on this machine; install another version"
                )
    return f"{len(rows)} rows under jit and eagerly are right"


def _examples(n: int) -> list[Atoms]:
    """Rattled copper with EMT's labels."""
    from ase.build import bulk
    from ase.calculators.emt import EMT

    structures = []
    for seed in range(n):
        atoms = bulk("Cu", cubic=True) * (2, 1, 1)
        atoms.rattle(0.1, seed=seed)
        atoms.calc = EMT()
        atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()
        structures.append(atoms)
    return structures


def _check_fit() -> str:
    import haljax as hx

    structures = _examples(8)
    model = hx.fit(hx.ace_basis(["Cu"], cutoff=4.5, order=2, max_degree=6), structures[:6])
    error = hx.evaluate(model, structures[6:])["total"]["force_rmse"]
    if not error < 0.1:
        raise RuntimeError(f"the force error of a small fit is {error:.3g} eV/Å, far above the 0.01 expected")
    return f"force error {error:.3g} eV/Å"


def _check_campaign() -> str:
    from tempfile import TemporaryDirectory

    from ase.io import write

    from haljax.hal.campaign import HAL

    with TemporaryDirectory() as folder:
        write(start := Path(folder) / "start.xyz", _examples(4), format="extxyz")
        result = HAL(
            {
                "directory": str(Path(folder) / "run"),
                "reference": {"calculator": "ase.calculators.emt.EMT", "workers": 1},
                "start": {"structures": str(start)},
                "basis": {"elements": ["Cu"], "cutoff": 4.5, "order": 2, "max_degree": 6},
                "dynamics": {"replicas": 2, "temperature_K": 600, "n_steps": 50, "replicas_per_batch": 2},
                "labels": {"per_iteration": 1},
                "stop": {"max_iterations": 1},
            }
        ).run()
    return result.reason


_CHECKS: Sequence[tuple[str, Callable[[], str]]] = (
    ("versions", _check_versions),
    ("double precision", _check_x64),
    ("devices", _check_devices),
    ("arithmetic", _check_arithmetic),
    ("fit", _check_fit),
    ("biased dynamics and a label", _check_campaign),
)


if __name__ == "__main__":
    sys.exit(main())
