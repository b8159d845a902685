"""The campaign of hyperactive learning: explore, choose, label, learn, repeat; durable and resumable."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from haljax.ace import ACEBasis, GrowingBasis
from haljax.bayes import require_x64
from haljax.campaign import (
    Background,
    Journal,
    Ledger,
    Limits,
    Oracle,
    Outcome,
    Progress,
    clear_disk_errors,
    open_campaign,
    recorded,
    recorded_config,
    timed,
    why_stop,
    write_atomic,
)
from haljax.config import MAY_CHANGE, HALConfig
from haljax.evaluation import Calibration, ErrorTable, calibrate, evaluate
from haljax.hal.acquisition import (
    GUARDS,
    TOLERANCE_FACTOR,
    Explored,
    Round,
    default_tolerance,
    explore,
    follow,
    room_for,
)
from haljax.hal.boldness import found_by, level_of, levels, next_level
from haljax.hal.reference import WEIGHTS, Reference, decode, encode
from haljax.model import Model
from haljax.processes import gather, heed, join, telling_failures
from haljax.structures import candidates, from_atoms, labels, read_structures, renamed, strange, unused
from haljax.training import fit, informed, refit, select

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from ase import Atoms

log = logging.getLogger(__name__)

MD_STARTS = 4  # start structures that reference dynamics of the test set sets out from, at each temperature
GROWTH = 1.25  # factor of the number of structures after which a larger basis is tried
_GUARDS = {status.name.lower() for status in GUARDS}
MIN_HELD_OUT = 5  # labels below which the error bars are judged by the test set too


class Result(NamedTuple):
    """What a campaign ended with.

    Attributes
    ----------
    reason : why it stopped. model : the last one.
    errors : on the test set, None without one. calibration : how true the standard deviations are on held-out and test
        labels, which the model has not seen; None without such labels.
    """

    reason: str
    model: Model
    errors: ErrorTable | None
    calibration: Calibration | None


class HAL:
    """Hyperactive learning after van der Oord et al., npj Comput Mater 9, 168 (2023).

    Parameters
    ----------
    config : path of a TOML file, or the same as a dict; see `haljax.config`.
    calculator : an ASE calculator, in place of ``reference.calculator``. It is sent to worker processes by pickle.
    executor : any `concurrent.futures.Executor` (or a function that makes one) for the labels; default: processes.
    resume : go on with what the run directory holds.
    progress : called with a dict at each event.
    drop : ids of labels to go on without; needs ``resume``. They stay in the journal and are not asked for again.

    Raises
    ------
    haljax.config.ConfigError : the config is not valid.
    ValueError : ``drop`` without ``resume``.
    """

    def __init__(
        self,
        config: str | Path | Mapping[str, Any] | HALConfig,
        calculator: Any = None,
        executor: Executor | Callable[[], Executor] | None = None,
        resume: bool = False,
        progress: Callable[[dict[str, Any]], Any] | None = None,
        drop: Iterable[str] = (),
    ) -> None:
        given = calculator is not None
        self.config = config if isinstance(config, HALConfig) else HALConfig.load(config, calculator_given=given)
        self._executor, self._resume, self._drop = executor, resume, tuple(drop)
        if self._drop and not resume:
            raise ValueError("labels are dropped from a campaign that is resumed: pass resume=True (--resume) too")
        self._progress = progress or (lambda event: None)
        reference = self.config.reference
        self._reference = Reference(
            calculator if given else reference.calculator,
            reference.arguments,
            folder=Path(self.config.directory).resolve() / "reference",
        )

    def plan(self) -> str:
        """What would run, in words; checks everything that can be checked without labelling."""
        c, basis = self.config, self.config.ace_basis()
        starts, test = self._starts(), self._test()
        unlabelled, sizes = sum(map(_unlabelled, starts)), [len(atoms) for atoms in starts]
        limits = {k: v for k, v in c.stop.model_dump().items() if v is not None and k != "patience"}
        ends = [f"{k} = {v:g}" for k, v in limits.items()]
        if not c.labels.within_tolerance:
            ends.append(f"nothing found in {c.stop.patience} of the boldest iterations")
        return "\n".join(
            [
                f"run directory   {c.directory}",
                f"reference       {c.reference.calculator or 'a calculator object'}, {c.reference.workers} at once",
                f"basis           {'-'.join(basis.elements)}, {basis.words()}",
                f"start           {len(starts)} structures of {min(sizes)} to {max(sizes)} atoms, "
                f"{unlabelled} to be labelled",
                f"each iteration  {c.dynamics.replicas} replicas of at most {c.dynamics.n_steps} steps of "
                f"{c.dynamics.timestep_fs:g} fs, at most {c.labels.per_iteration} labels",
                f"tolerance       {_tolerance_words(c.dynamics.tolerance)}",
                f"if none found   {_bolder_words(c)}",
                f"test set        {_test_words(c.test, len(test))}",
                f"stop            {', or '.join(ends)}",
                *(f"note            {line}" for line in self._cautions(starts, test)),
            ]
        )

    def _cautions(self, starts: list[Atoms], test: list[Atoms]) -> list[str]:
        """What a user may not expect of these structures with this config."""
        c, lines = self.config, []
        if partly := sum(bool(_held(atoms)["energy"]) and _unlabelled(atoms) for atoms in starts + test):
            lines.append(f"{partly} structures have an energy and no forces: they will be labelled again, with forces")
        free = sum(not atoms.pbc.all() for atoms in starts)
        if c.dynamics.pressure_GPa is not None and free:
            lines.append(f"pressure_GPa does nothing for {free} start structures that are not periodic along all axes")
        if (most := c.stop.max_labels) is not None and most <= len(starts):
            lines.append(
                f"stop.max_labels = {most} is no more than the {len(starts)} start structures: nothing will be explored"
            )
        for path, keys, structures in (
            (c.start.structures, c.start.keys, starts),
            *([(c.test.structures, c.test.keys, test)] if c.test is not None and test else []),
        ):
            at = [i for i, atoms in enumerate(structures) if any(_held(atoms).values())]
            labelled = [structures[i] for i in at]
            lines += [
                f"{path}: {line}"
                for line in (*unused(structures, keys), *strange(labelled, list(map(labels, labelled)), at))
            ]
        return lines

    def run(self, max_labels: int | None = None, max_iterations: int | None = None) -> Result:
        """Run until nothing is left to find, or a limit of ``[stop]`` is met.

        The arguments replace those limits of the config.

        Where `jax.distributed` has more than one process, each of them calls this. Process 0 runs the campaign, the
        others step replicas for it; all return its result.

        Raises
        ------
        JournalError : the run directory belongs to another campaign, is in use, or cannot be written.
        RuntimeError : x64 is off, no structure of the start or of an iteration could be labelled, another process
            has failed, or there are others than ``dynamics.processes``.
        ValueError : a structure of the start or of the test set cannot be described by the basis.
        """
        with telling_failures():
            join(self.config.dynamics.processes)
            heed()  # what failed before
            require_x64()
            if jax.process_index() > 0:
                return follow()
            result = self._lead(max_labels, max_iterations)
            gather(result)
        return result

    def _lead(self, max_labels: int | None, max_iterations: int | None) -> Result:
        if self._resume and (begun := recorded_config(self.config.directory)) is not None:
            self.config = self.config.continued(begun, MAY_CHANGE)
        starts, test = self._starts(), self._test()
        for line in self._cautions(starts, test):
            log.warning("%s", line)
        stop = self.config.stop.model_dump()
        stop |= {k: v for k, v in (("max_labels", max_labels), ("max_iterations", max_iterations)) if v is not None}
        directory = Path(self.config.directory)
        c = self.config

        def oracle(calls: int = 1) -> Oracle:
            """Labels by jobs of so many calls of the calculator each."""
            return Oracle(
                self._reference,
                self._executor,
                workers=c.reference.workers,
                timeout_s=c.reference.timeout_s and c.reference.timeout_s * calls,
                max_attempts=c.reference.max_attempts,
            )

        # A reference that has made no label yet may be mended in any way.
        may_change = MAY_CHANGE if _made_labels(directory) else MAY_CHANGE | {"reference"}
        identity = c.as_json() | {"start and test structures": _digest(starts + test)}
        with (
            open_campaign(directory, identity, resume=self._resume, may_change=may_change) as journal,
            clear_disk_errors(directory),
        ):
            return _Campaign(c, directory, journal, oracle, starts, test, self._progress).run(
                Limits(**stop), self._drop
            )

    def _starts(self) -> list[Atoms]:
        starts = self._read(self.config.start.structures, self.config.start.keys)
        for i, atoms in enumerate(starts):
            try:
                self.config.dynamics.overridden(atoms.info)
            except ValueError as error:
                raise ValueError(f"{self.config.start.structures}, structure {i}: {error}") from error
        return starts

    def _test(self) -> list[Atoms]:
        test = self.config.test
        return [] if test is None or test.structures is None else self._read(test.structures, test.keys)

    def _read(self, path: Path, keys: Mapping[str, str] | None) -> list[Atoms]:
        """Structures of a file; what the basis cannot describe is refused before anything is labelled."""
        structures = read_structures(path)
        try:
            structures = renamed(structures, keys)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        for i, atoms in enumerate(structures):
            try:
                from_atoms(atoms, self.config.basis.elements, index=i)
                if any(_held(atoms).values()):
                    labels(atoms, index=i)
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from error
        return structures


class _Campaign(Ledger):
    """A campaign under way: its records, and the steps that add to them.

    Attributes
    ----------
    growing : the basis that the labels choose; None where the config has it.
    searched : number of structures at the last search for a basis.
    since : first iteration with the present ``[dynamics]``, which may be changed on resumption.
    """

    since, searched = 1, 0
    _dynamics: Mapping[str, Any] | None = None

    def __init__(
        self,
        config: HALConfig,
        directory: Path,
        journal: Journal,
        oracle: Callable[..., Oracle],
        starts: list[Atoms],
        given_test: list[Atoms],
        progress: Callable[[dict[str, Any]], Any],
    ) -> None:
        super().__init__(directory, journal, progress)
        self.config, self.oracle, self.starts, self.given_test = config, oracle, starts, given_test
        basis = config.ace_basis()
        self.growing = basis if isinstance(basis, GrowingBasis) else None
        self.levels = levels(config.dynamics)
        self.key = jax.random.key(config.seed)
        self.outstanding: set[str] = set()  # labels that are on their way
        self.take: Callable[[], None] = lambda: None  # those that have arrived
        self.arrived = {"done": 0, "failed": 0}

    def kept(self, record: dict[str, Any]) -> tuple[str, Atoms]:
        atoms = decode(record)
        atoms.info["label"] = record["id"]  # its name in messages
        if record["iteration"] > 0:  # labels of one batch are alike, so that they are left out together
            atoms.info["group"] = f"iteration {record['iteration']}"
        return record["role"], atoms

    def _remember(self, record: dict[str, Any]) -> None:
        super()._remember(record)
        if record["type"] in ("start", "resume"):
            dynamics = record["config"].get("dynamics")
            if self._dynamics is not None and dynamics != self._dynamics:
                self.since = max(self.requests, default=0) + 1
            self._dynamics = dynamics

    # ------------------------------------------------------------------------------------------ the whole

    def run(self, limits: Limits, drop: Iterable[str] = ()) -> Result:
        started = time.perf_counter() - self.spent_s()
        seconds: dict[str, float] = {}
        self.drop(drop)
        with timed(seconds, "label"):
            self._label_before_the_first_fit()
        self.test = self._with_role("test")
        with timed(seconds, "fit"):
            model = self._first_model()
        if not self.iterations:
            self._finish_iteration(0, model, seconds, self._unlearned())
        for done in self.iterations[1:]:
            model = self._learned_before(model, done)
        with self._labeller() as oracle:
            if isinstance(oracle, Background):
                self._go_on_with(oracle)
            while True:
                reason = why_stop(limits, self._so_far(time.perf_counter() - started))
                if reason is None or len(self.iterations) in self.requests:  # one that was interrupted is finished
                    model = self._iterate(model, len(self.iterations), oracle)
                elif self.outstanding or self._unlearned():
                    model = self._wait(model, len(self.iterations), oracle)
                else:
                    break
        return self._conclude(model, reason)

    def _labeller(self) -> Oracle | Background:
        """What labels are asked of: it brings them all, or those that are ready."""
        if not self.config.labels.asynchronous:
            return self.oracle()
        # As many are left to the workers while the dynamics go on.
        at_most = max(self.config.reference.workers, self.config.labels.per_iteration)
        background = Background(self.oracle(), self._arrived, at_most)
        self.outstanding, self.take = background.outstanding, background.take
        return background

    def _go_on_with(self, oracle: Background) -> None:
        """Ask again for what was on its way when an asynchronous campaign was interrupted."""
        for iteration, request in self.requests.items():
            jobs = request["jobs"]
            if iteration < len(self.iterations):
                self._label(self.waiting(jobs), oracle)

    def _iterate(self, model: Model, iteration: int, oracle: Oracle | Background) -> Model:
        seconds: dict[str, float] = {}
        if iteration not in self.requests:  # else it was interrupted after the dynamics
            with timed(seconds, "dynamics"):
                round_ = self._round(model, iteration)
                explored = self._explore(round_, iteration)
            with timed(seconds, "select"):
                self._request(round_, iteration, explored)
        with timed(seconds, "label"):
            self._label(self.waiting(self.requests[iteration]["jobs"]), oracle, iteration)
        return self._learn_and_finish(model, iteration, oracle, seconds)

    def _wait(self, model: Model, iteration: int, oracle: Oracle | Background) -> Model:
        """An iteration without dynamics: for the labels that are on their way, or were not learned yet."""
        seconds: dict[str, float] = {}
        with timed(seconds, "label"):
            if isinstance(oracle, Background):
                oracle.finish()
        return self._learn_and_finish(model, iteration, oracle, seconds)

    def _learn_and_finish(
        self, model: Model, iteration: int, oracle: Oracle | Background, seconds: dict[str, float]
    ) -> Model:
        for number, request in self.requests.items():
            jobs = request["jobs"]
            missing = not any(id in self.labels or id in self.outstanding for id in jobs)
            if missing and self.given_up(jobs) < set(jobs) and not self._may_fail(number):
                if isinstance(oracle, Background):
                    oracle.finish()  # others may be good, and were paid for
                raise RuntimeError(
                    f"no structure of iteration {number} could be labelled; the last failure: {self.last_failure()}. "
                    "Fix the reference calculator, then rerun with --resume; structures that fail once more are left "
                    "out."
                )
        new = self._unlearned()
        with timed(seconds, "fit"):
            model = self._learn(model, new)
        self._finish_iteration(iteration, model, seconds, new)
        return model

    def _may_fail(self, number: int) -> bool:
        """Whether the campaign goes on although all labels of an iteration failed: guards struck at all its structures,
        for which a reference calculator may well fail, and labels of the iteration before succeeded."""
        asked = {i: request["jobs"] for i, request in self.requests.items() if request["jobs"]}
        origins = [job["origin"] for job in asked[number].values()]
        before = max((i for i in asked if i < number), default=None)
        ids = self._start_ids() if before is None else asked[before]
        known = any(id in self.labels or id in self.outstanding for id in ids)
        return known and all(o["status"] in _GUARDS and o.get("frame") == "stopped" for o in origins)

    def _structures(self, ids: Iterable[str]) -> list[Atoms]:
        """Labelled structures, without those that were dropped."""
        return [self.labels[id][1] for id in ids if id not in self.dropped]

    def _unlearned(self) -> list[str]:
        """Training labels that no fit has seen, in the order they were asked for, whatever order they came in."""
        known = {id for done in self.iterations for id in done["learned"]}
        asked = [*self._start_ids(), *(id for request in self.requests.values() for id in request["jobs"])]
        return [id for id in asked if id not in known and self.labels.get(id, ("",))[0] == "train"]

    def _start_ids(self) -> list[str]:
        return [f"start-{i}" for i in range(len(self.starts))]

    def _conclude(self, model: Model, reason: str) -> Result:
        """Judge the error bars, write what the user takes home, and say why it ended."""
        from ase.io import write

        from haljax.report import write_report

        held_out = self._with_role("held_out")
        known = held_out if len(held_out) >= MIN_HELD_OUT else held_out + self.test
        calibration = None
        if known:
            _, calibration = calibrate(model, known)  # a judgement alone: the fit has calibrated the bars itself
        everything = []
        for role, atoms in self.labels.values():
            atoms.info["role"] = role
            everything.append(atoms)
        write(self.directory / "structures.tmp", everything, format="extxyz")
        (self.directory / "structures.tmp").replace(self.directory / "structures.xyz")
        summary = {"type": "stop", "reason": reason}
        if calibration is not None:
            summary["calibration"] = _without_nan(dataclasses.asdict(calibration))
        self.record(summary)
        self.progress({"stage": "report"})
        write_report(self.directory)
        self.progress({"stage": "stop", "reason": reason})
        errors = evaluate(model, self.test) if self.test else None
        return Result(reason, model, errors, calibration)

    def _so_far(self, wall_s: float) -> Progress:
        rounds = [r for r in self.iterations if r["iteration"] in self.requests]
        scores = [float("inf") if r["score"] is None else r["score"] for r in rounds]
        return Progress(self._n_labels() + len(self.outstanding), len(rounds), scores, wall_s, self._idle())

    def _idle(self) -> int:
        """Iterations in a row, up to the last, that explored at the highest level and found nothing; with the present
        dynamics, and since the model learned something."""
        learned = max((done["iteration"] for done in self.iterations if done["learned"]), default=0)
        n = 0
        for iteration in sorted(self.requests, reverse=True):
            request = self.requests[iteration]
            at_top = level_of(request) >= len(self.levels) - 1
            if iteration < self.since or iteration <= learned or found_by(request) or not at_top:
                break
            n += 1
        return n

    def _n_labels(self) -> int:
        return sum(role in ("train", "held_out") for role, _ in self.labels.values())

    def _with_role(self, wanted: str) -> list[Atoms]:
        return [atoms for role, atoms in self.labels.values() if role == wanted]

    # ------------------------------------------------------------------------------------------ explore, choose

    def _round(self, model: Model, iteration: int) -> Round:
        """What to explore: from which structures, how boldly, to which tolerance, under which model."""
        dynamics, key = self.config.dynamics, jax.random.fold_in(self.key, iteration)
        n = dynamics.replicas
        starts = [self.starts[((iteration - 1) * n + i) % len(self.starts)] for i in range(n)]
        model = informed(model, self._expected())
        if dynamics.tolerance is None:
            tolerance = default_tolerance(model, dynamics, self._learned(), key)
            dynamics = dynamics.model_copy(update={"tolerance": tolerance})
        last = max((i for i in self.requests if i >= self.since), default=None)
        level = next_level(None if last is None else self.requests[last], len(self.levels) - 1)
        room = room_for(model.basis, dynamics.skin, self.starts)
        return Round(replace(model, table=None), dynamics, starts, key, room, self.levels[level])

    def _expected(self) -> list[Atoms]:
        """Chosen training structures that the model has not learned: their labels are on their way, or just came."""
        not_learned = self.outstanding | set(self._unlearned())
        return [
            decode(job)
            for request in self.requests.values()
            for id, job in request["jobs"].items()
            if id in not_learned and job["role"] == "train"
        ]

    def _learned(self) -> list[Atoms]:
        """The training structures of the present model."""
        return [self.labels[id][1] for done in self.iterations for id in done["learned"]]

    def _explore(self, round_: Round, iteration: int) -> Explored:
        def on_progress(latest: Mapping[str, list]) -> None:
            self.take()  # so that no label waits for the dynamics to be written down
            self.progress(
                {
                    "stage": "dynamics",
                    "iteration": iteration,
                    "step": list(latest["step"]),
                    "status": list(latest["status"]),
                    "criterion": list(latest["criterion"]),
                    "temperature_K": list(latest["temperature"]),
                    "pressure_GPa": list(latest["pressure"]),
                    "labels": self._n_labels(),
                    "tolerance": round_.dynamics.tolerance,
                    "boldness": round_.boldness._asdict(),
                }
            )

        gather(round_)
        explored = explore(*round_[:-1], on_progress, round_.boldness)
        buffer = io.BytesIO()
        np.savez(buffer, tolerance=explored.tolerance, timestep_fs=explored.timestep_fs, **explored.seen._asdict())
        write_atomic(self.folder(iteration) / "trajectory.npz", buffer.getvalue())
        return explored

    def _request(self, round_: Round, iteration: int, explored: Explored) -> None:
        """Choose what to label, if anything, and write it down before anything is labelled."""
        self.progress({"stage": "select"})
        c = self.config.labels
        if not explored.candidates or self._never_safe(explored, iteration):
            raise RuntimeError(
                f"iteration {iteration}: no replica stayed safe up to its first check ("
                + ", ".join(sorted({replica["status"] for replica in explored.replicas}))
                + "); lower the temperature or the time step, or widen the guards in [dynamics], then rerun with "
                "--resume"
            )
        pool = [a for a in explored.candidates if c.within_tolerance or a.info["origin"]["status"] != "finished"]
        # The model of the round knows already which structures are on their way.
        picked = select(round_.model, pool, min(c.per_iteration, len(pool))) if pool else []
        rng = np.random.default_rng([self.config.seed, iteration])
        jobs = {
            f"{iteration}-{i}": {
                "role": "held_out" if rng.random() < self.config.labels.test_fraction else "train",
                "origin": pool[index].info["origin"],
                "structure": encode(pool[index]),
            }
            for i, index in enumerate(picked)
        }
        self.record(
            {
                "type": "request",
                "iteration": iteration,
                "jobs": jobs,
                "score": explored.score,
                "replicas": explored.replicas,
                "found": len(pool),
                "tolerance": round_.dynamics.tolerance,
                "boldness": round_.boldness._asdict(),
            }
        )

    def _never_safe(self, explored: Explored, iteration: int) -> bool:
        """Whether guards stopped all replicas at their first check, as in the iteration before, although the model has
        learned its labels: then the guards or the dynamics are to blame rather than the model."""

        def struck_at_once(replicas: Sequence[Mapping[str, Any]]) -> bool:
            first = self.config.dynamics.check_interval
            return all(replica["status"] in _GUARDS and replica["step"] <= first for replica in replicas)

        before = self.requests.get(iteration - 1) if iteration > self.since else None
        if before is None or set(before["jobs"]) & (self.outstanding | set(self._unlearned())):
            return False
        return struck_at_once(explored.replicas) and struck_at_once(before["replicas"])

    # ------------------------------------------------------------------------------------------ label

    def _label_before_the_first_fit(self) -> None:
        """Labels of isolated atoms, of the start and of the test set, as far as they are not known."""
        from ase import Atoms

        c, jobs = self.config, {}
        if c.fit.e0 == "isolated":
            for element in self.config.basis.elements:
                atoms = Atoms(element, info={"config_type": "isolated_atom"})
                jobs[f"isolated-{element}"] = ("isolated", "isolated", atoms)
        for i, atoms in enumerate(self.starts):
            jobs[f"start-{i}"] = ("train", "start", atoms)
        for i, atoms in enumerate(self.given_test):
            jobs[f"test-{i}"] = ("test", "test", atoms)
        failures = self.failures if self.labels.keys() & self._start_ids() else {}  # else the reference was broken
        unknown = {}
        for id, (role, source, atoms) in jobs.items():
            if id in self.labels or id in self.dropped:
                continue
            if id in failures and role != "isolated":  # without which there is no fit
                continue
            job = {"role": role, "origin": {"source": source}, "structure": encode(atoms)}
            if _unlabelled(atoms):
                unknown[id] = job
            else:
                known = labels(atoms)
                stress = {"stress": known.stress} if np.isfinite(known.stress).all() else {}
                label = {"energy": known.energy, "forces": known.forces, **stress}
                self.record({"type": "label", "id": id, "iteration": -1, **job, **label, "attempts": 0, "seconds": 0.0})
        if unknown:
            with self.oracle() as oracle:
                self._label(unknown, oracle, -1)
        if c.test is not None and (md := c.test.reference_md) is not None and (runs := self._reference_md(md)):
            with self.oracle(calls=md.burn_in + md.frames * md.interval) as oracle:
                self._label(runs, oracle, -1)

    def _reference_md(self, md: Any) -> dict[str, dict[str, Any]]:
        """Jobs of molecular dynamics of the reference, a few starts at each temperature."""
        jobs = {}
        n_starts = min(MD_STARTS, len(self.starts), md.frames)
        for temperature in md.temperature_K:
            for k in range(n_starts):
                id = f"md-{temperature:g}-{k}"
                frames = (md.frames + k) // n_starts
                if f"{id}-{frames - 1}" in self.labels.keys() | self.dropped:
                    continue
                atoms = self.starts[k * len(self.starts) // n_starts].copy()
                atoms.info["config_type"] = f"{temperature:g} K"
                for name in WEIGHTS:  # those of the start's own labels
                    atoms.info.pop(name, None)
                    atoms.arrays.pop(name, None)
                jobs[id] = {
                    "role": "test",
                    "origin": {"source": "reference_md"},
                    "structure": encode(atoms),
                    "md": {
                        "temperature_K": temperature,
                        "frames": frames,
                        "interval": md.interval,
                        "burn_in": md.burn_in,
                        "timestep_fs": md.timestep_fs,
                        "seed": self.config.seed + k,
                    },
                }
        return jobs

    def _label(self, jobs: Mapping[str, dict[str, Any]], oracle: Oracle | Background, iteration: int = 0) -> None:
        """Label what is asked for; each label is in the journal before the next is looked at."""
        if not jobs:
            return
        payloads = {id: {k: job[k] for k in ("structure", "md") if k in job} for id, job in jobs.items()}
        if isinstance(oracle, Background):
            oracle.label(payloads)
            return
        done = failed = 0
        self.progress({"stage": "label", "done": 0, "total": len(jobs), "failed": 0, "error": None, "id": None})

        def on_result(id: str, outcome: Outcome) -> None:
            nonlocal done, failed
            done, failed = done + (outcome.result is not None), failed + (outcome.result is None)
            self._write(id, outcome, iteration, jobs[id])
            self.progress(
                {"stage": "label", "done": done, "total": len(jobs), "failed": failed, "error": outcome.error, "id": id}
            )

        oracle.label(payloads, on_result)

    def _arrived(self, id: str, outcome: Outcome) -> None:
        """As labels are handed over that were computed beside the dynamics."""
        iteration, job = next((k, r["jobs"][id]) for k, r in self.requests.items() if id in r["jobs"])
        self._write(id, outcome, iteration, job)
        self.arrived["failed" if outcome.result is None else "done"] += 1
        total = sum(self.arrived.values()) + len(self.outstanding)
        self.progress({"stage": "label", **self.arrived, "total": total, "error": outcome.error, "id": id})

    def _write(self, id: str, outcome: Outcome, iteration: int, job: Mapping[str, Any]) -> None:
        effort = {"attempts": outcome.attempts, "seconds": outcome.seconds}
        if outcome.result is None:
            self.record({"type": "failed", "id": id, "iteration": iteration, "error": outcome.error, **effort})
            return
        frames = outcome.result.get("frames")
        labels = (
            {id: outcome.result}
            if frames is None
            else {
                name: frame
                for k, frame in enumerate(frames)
                if (name := f"{id}-{k}") not in self.labels and name not in self.dropped
            }
        )
        for name, label in labels.items():
            known = {k: v for k, v in job.items() if k != "md"} | label
            self.record({"type": "label", "id": name, "iteration": iteration, **known, **effort})

    # ------------------------------------------------------------------------------------------ learn

    def _first_model(self) -> Model:
        self.progress({"stage": "fit"})
        ids = self.iterations[0]["learned"] if self.iterations else self._unlearned()
        if not ids:
            raise RuntimeError(
                "no start structure could be labelled, so there is nothing to fit; the last failure: "
                f"{self.last_failure()}. Fix the reference calculator, then rerun with --resume."
            )
        isolated = [id for id in self.labels if id.startswith("isolated-")]
        basis = self._basis_of(self.iterations[0]) if self.iterations else self.config.ace_basis()
        with _way_out():
            model = fit(basis, self._structures(isolated + ids), **self.config.fit.model_dump())
        self.searched = len(model.structures)
        return model

    def _learn(self, model: Model, ids: list[str]) -> Model:
        """Refit with these labels too, from time to time with a larger basis, where they support it."""
        self.progress({"stage": "fit"})
        if not ids:
            return model
        new = self._structures(ids)
        due = self.growing is not None and len(model.structures) + len(new) >= GROWTH * self.searched
        with _way_out():
            model = refit(model, new, self.growing if due else None)
        if due:
            self.searched = len(model.structures)
        return model

    def _learned_before(self, model: Model, done: Mapping[str, Any]) -> Model:
        """As `_learn` did in an iteration before the campaign was interrupted, without choosing a basis anew."""
        new, basis = self._structures(done["learned"]), self._basis_of(done)
        self.searched = done.get("basis", {}).get("searched", self.searched)
        if basis != model.basis:
            return fit(basis, [*model.structures, *new], **self.config.fit.model_dump())
        return refit(model, new) if new else model

    def _basis_of(self, done: Mapping[str, Any]) -> ACEBasis:
        """The basis of an iteration; in journals of earlier versions, that of the config."""
        given = done.get("basis", self.config.basis.model_dump())
        return ACEBasis(self.config.basis.elements, *(given[name] for name in ("cutoff", "order", "max_degree")))

    def _finish_iteration(self, iteration: int, model: Model, seconds: dict[str, float], learned: list[str]) -> None:
        from haljax.report.hal import trajectory_picture

        with timed(seconds, "evaluate"):
            self.progress({"stage": "evaluate"})
            if learned or not self.iterations:
                errors = evaluate(model, self.test).rows if self.test else {}
            else:  # the model is the same
                errors = self.iterations[-1]["errors"]
            folder = self.folder(iteration)
            model.save(folder / "model.npz")
            model.save(self.directory / "model.npz")
            if (folder / "trajectory.npz").exists():
                picture = self.directory / "pictures" / f"trajectory_{iteration:04d}.png"
                picture.parent.mkdir(exist_ok=True)
                trajectory_picture(folder / "trajectory.npz", picture)
        request = self.requests.get(iteration, {"score": None, "replicas": []})
        explored: dict[str, Any] = {
            name: request[name] for name in ("found", "tolerance", "boldness") if name in request
        }
        record: dict[str, Any] = {
            "type": "iteration",
            "iteration": iteration,
            "labels": self._n_labels(),
            "learned": learned,
            "score": request["score"],
            "replicas": request["replicas"],
            **explored,
            "errors": {group: _without_nan(values) for group, values in errors.items()},
            "leave_one_out": _without_nan(model.loo._asdict()),
            "basis": {
                "cutoff": model.basis.cutoff,
                "order": model.basis.order,
                "max_degree": model.basis.max_degree,
                "functions": len(model.basis),
                "searched": self.searched,
            },
            "hyperparameters": {
                "noise_precision": float(model.posterior.noise_precision),
                "log_evidence": float(model.posterior.log_evidence),
                "choice": model.choice,
            },
            "seconds": seconds,
        }
        self.record(record)
        self.progress(record | {"stage": "iteration"})


def _made_labels(directory: Path) -> bool:
    """Whether a label of the reference is in the journal, not only those that came with the structures."""
    return any(record.get("type") == "label" and record.get("attempts", 0) > 0 for record in recorded(directory))


@contextmanager
def _way_out() -> Iterator[None]:
    """What can be done about a label that makes a fit fail."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{error} (to go on without a label: --resume --drop ID)") from error


def _held(atoms: Atoms) -> dict[str, Any]:
    """The labels of a structure of a file, by kind."""
    return candidates(atoms, getattr(atoms.calc, "results", {}))


def _unlabelled(atoms: Atoms) -> bool:
    held = _held(atoms)
    return not (held["energy"] and held["forces"])


def _digest(structures: list[Atoms]) -> str:
    """Of what a campaign sets out from, so that it is not resumed with other structures under the same file name."""
    plain = [[encode(a), {k: str(v) for k, v in a.info.items() if str(k).startswith("hal_")}] for a in structures]
    return hashlib.sha256(json.dumps(plain).encode()).hexdigest()[:16]


def _tolerance_words(tolerance: float | None) -> str:
    if tolerance is not None:
        return f"{tolerance:g} of the relative force error"
    return f"{TOLERANCE_FACTOR:g} times the relative force error on the training structures, anew in each iteration"


def _bolder_words(config: HALConfig) -> str:
    if config.labels.within_tolerance:
        return "the last structures of replicas within the tolerance are labelled"
    most = levels(config.dynamics)[-1]
    return f"no labels; up to {most.words()}" if most.level else "no labels"


def _test_words(test: Any, given: int) -> str:
    parts = [f"{given} structures"] if given else []
    if test is not None and (md := test.reference_md) is not None:
        kelvins = ", ".join(f"{T:g}" for T in md.temperature_K)
        parts.append(f"{md.frames} structures of the reference's dynamics at each of {kelvins} K")
    return " and ".join(parts) or "none"


def _without_nan(values: Any) -> Any:
    """NaN (no such labels) becomes None, which JSON knows."""
    if isinstance(values, dict):
        return {k: _without_nan(v) for k, v in values.items()}
    if isinstance(values, tuple):
        return [_without_nan(v) for v in values]
    return values if np.isfinite(values) else None
