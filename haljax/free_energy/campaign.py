"""The campaign for a free energy: choose windows, sample them, train, decide, repeat; durable and resumable."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from haljax.bayes import require_x64
from haljax.campaign import (
    Journal,
    Ledger,
    Limits,
    Oracle,
    Outcome,
    Progress,
    clear_disk_errors,
    open_campaign,
    recorded_config,
    timed,
    why_stop,
)
from haljax.config import MAY_CHANGE_FREE_ENERGY, FreeEnergyConfig
from haljax.free_energy.choice import Choice, NothingToChoose, choose, judged, spread
from haljax.free_energy.data import Labels, concatenate, empty
from haljax.free_energy.network import Network, Surface, load
from haljax.free_energy.problem import Problem, problem
from haljax.free_energy.sampling import Windows, check_windows, published, stacked, unknown
from haljax.free_energy.search import search
from haljax.free_energy.training import History, TrainingSettings, train
from haljax.lattice import save_expansion
from haljax.lattice.local_energy import WINDOWS
from haljax.lattice.windows import BATCH

if TYPE_CHECKING:
    from concurrent.futures import Executor


log = logging.getLogger(__name__)

MIN_LABELS = 2  # from which a network can be trained
TEST_STREAM = 2**31 - 1  # of the random numbers that choose test windows; iterations count from 0


class Result(NamedTuple):
    """What a campaign ended with.

    Attributes
    ----------
    reason : why it stopped. surface : the trained ensemble.
    errors : RMSE of mu (d,) on the test set, eV; None without one.
    """

    reason: str
    surface: Surface
    errors: np.ndarray | None


class FreeEnergy:
    """A free energy of order parameters by active learning, after Holber & Garikipati, arXiv:2503.07619 (2025).

    Parameters
    ----------
    config : path of a TOML file, or the same as a dict; see `haljax.config.free_energy`.
    sampler : in place of Monte Carlo: a picklable function of {"temperature": (W,), "kappa": (W, d), "phi": (W, d),
        "seed": int, "ids": (W,) integers, each window's own random stream} that returns {"windows": W dicts with
        "label", the fields of `haljax.free_energy.Labels` for one point, None for numbers that are not known, and
        "converged"}.
    executor : any `concurrent.futures.Executor` (or a function that makes one) for the jobs; default: processes.
    resume : go on with what the run directory holds.
    progress : called with a dict at each event.

    Raises
    ------
    haljax.config.ConfigError : the config is not valid.
    """

    def __init__(
        self,
        config: str | Path | Mapping[str, Any] | FreeEnergyConfig,
        sampler: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None,
        executor: Executor | Callable[[], Executor] | None = None,
        resume: bool = False,
        progress: Callable[[dict[str, Any]], Any] | None = None,
    ) -> None:
        self.config = config if isinstance(config, FreeEnergyConfig) else FreeEnergyConfig.load(config)
        self._sampler, self._executor, self._resume = sampler, executor, resume
        self._progress = progress or (lambda event: None)

    def plan(self) -> str:
        """What would run, in words; checks everything that can be checked without sampling."""
        c, p = self.config, problem(self.config)
        limits = {k: v for k, v in c.stop.model_dump().items() if v is not None}
        chosen = ", ".join(f"{name} {criterion.points}" for name, criterion in c.criteria.items())
        temperatures = ", ".join(f"{t:g}" for t in c.sampling.temperature_K)
        n = c.sampling.windows_per_job
        per_job = f"{n} windows a job" if n else "windows shared out evenly"
        return "\n".join(
            [
                f"run directory     {c.directory}",
                f"Hamiltonian       {len(p.expansion.orbits)} clusters, supercell of {p.supercell.n_cells} cells",
                f"order parameters  {p.d}, {len(p.order_parameters.group)} symmetry operations, "
                f"{p.network.n_features} invariants up to degree {c.network.degree}",
                f"sampling          {temperatures} K; {c.sampling.min_passes} to {c.sampling.max_passes} passes a "
                f"window, {per_job}, {c.sampling.workers} jobs at once",
                f"each iteration    {chosen}",
                f"network           {' x '.join(map(str, c.network.widths))}, {c.network.members} members",
                f"stop              {', '.join(f'{k} = {v:g}' for k, v in limits.items())}",
            ]
        )

    def run(self, max_labels: int | None = None, max_iterations: int | None = None) -> Result:
        """Run until a limit of ``[stop]`` is met; the arguments take the place of those in the config.

        Raises
        ------
        JournalError : the run directory belongs to another campaign, is in use, or cannot be written.
        RuntimeError : x64 is off, no window of an iteration could be sampled, or the first iteration taught too little.
        ValueError : the test file does not fit the order parameters, or is at temperatures that are not sampled.
        """
        require_x64()
        if self._resume and (recorded := recorded_config(self.config.directory)) is not None:
            self.config = self.config.continued(recorded, MAY_CHANGE_FREE_ENERGY)
        c, known = self.config, problem(self.config)
        stop = c.stop.model_dump()
        stop |= {k: v for k, v in (("max_labels", max_labels), ("max_iterations", max_iterations)) if v is not None}
        sampler = self._sampler or Windows(c.lattice, c.order_parameters, c.sampling)

        def oracle() -> Oracle:
            s = c.sampling
            return Oracle(
                sampler,
                self._executor,
                workers=s.workers,
                timeout_s=s.timeout_s,
                max_attempts=s.max_attempts,
                validate=check_windows,
            )

        directory, identity = Path(c.directory), c.as_json() | {"hamiltonian": _digest(known)} | _contents(c)
        with (
            open_campaign(directory, identity, resume=self._resume, may_change=MAY_CHANGE_FREE_ENERGY) as journal,
            clear_disk_errors(directory),
        ):
            save_expansion(known.expansion, directory / "expansion.tmp")  # so that the directory explains itself
            (directory / "expansion.tmp").replace(directory / "expansion.json")
            return _Campaign(c, known, directory, journal, oracle, self._progress).run(Limits(**stop))


class _Campaign(Ledger):
    """A campaign under way: its records, and the steps that add to them."""

    def __init__(
        self,
        config: FreeEnergyConfig,
        known: Problem,
        directory: Path,
        journal: Journal,
        oracle: Callable[[], Oracle],
        progress: Callable[[dict[str, Any]], Any],
    ) -> None:
        super().__init__(directory, journal, progress)
        self.config, self.problem, self.oracle = config, known, oracle
        self.key = jax.random.key(config.seed)

    # ------------------------------------------------------------------------------------------ the whole

    def run(self, limits: Limits) -> Result:
        started = time.perf_counter() - self.spent_s()
        with self.oracle() as oracle:
            self._sample_test(oracle)
            surface = load(self.folder(len(self.iterations) - 1) / "surface.npz") if self.iterations else None
            while (reason := why_stop(limits, self._so_far(time.perf_counter() - started))) is None or surface is None:
                try:
                    surface = self._iterate(len(self.iterations), surface, oracle)
                except NothingToChoose as nothing:
                    if surface is None:
                        raise
                    reason = str(nothing)
                    break
        return self._conclude(surface, reason)

    def _iterate(self, iteration: int, surface: Surface | None, oracle: Oracle) -> Surface:
        seconds: dict[str, float] = {}
        if iteration not in self.requests:  # else it was interrupted after the choice
            with timed(seconds, "choose"):
                self._request(iteration, surface)
        with timed(seconds, "sample"):
            self._sample(self.requests[iteration]["jobs"], iteration, oracle)
        asked = [id for job in self.requests[iteration]["jobs"].values() for id in job["windows"]]
        if not self.labels.keys() & set(asked) and self.given_up(asked) < set(asked):
            raise RuntimeError(
                f"no window of iteration {iteration} could be sampled; the last failure: {self.last_failure()}. "
                "Mend it and resume; windows that come back without a number once more are left out."
            )
        latest, known = self._of(iteration), len(self._known())
        if known < MIN_LABELS:
            raise RuntimeError(
                f"of the {len(asked)} windows of iteration {iteration} all but {known} ended at the boundary or "
                f"without a number, and a network needs {MIN_LABELS}: start anew with more points, a larger supercell "
                "or a stronger bias phi"
            )
        if not len(latest):
            log.warning("iteration %d taught nothing: all its windows ended at the boundary or failed", iteration)
        with timed(seconds, "train"):
            new, *trained = self._train(iteration, surface, latest)
        self._finish_iteration(iteration, surface, new, trained, seconds)
        return new

    def _conclude(self, surface: Surface, reason: str) -> Result:
        """Write what the user takes home, and say why it ended."""
        from haljax.report import write_report

        surface.save(self.directory / "surface.npz")
        self.record({"type": "stop", "reason": reason})
        self.progress({"stage": "report"})
        write_report(self.directory)
        self.progress({"stage": "stop", "reason": reason})
        return Result(reason, surface, mu_rmse(surface, self.test) if len(self.test) else None)

    def _so_far(self, wall_s: float) -> Progress:
        scores = [float("inf") if r["ahead"] is None else r["ahead"][0] for r in self.iterations[1:]]
        return Progress(self._n_labels(), len(self.iterations) - 1, scores, wall_s)

    def _n_labels(self) -> int:
        return sum(record["role"] == "train" for record in self.labels.values())

    def _known(self) -> Labels:
        """All that is learned from, in the order in which it was asked for, whatever order it came in."""
        return concatenate([empty(self.problem.d), *(self._of(i) for i in sorted(self.requests) if i >= 0)])

    def _of(self, iteration: int, criterion: str | None = None) -> Labels:
        """What an iteration, or one criterion in it, brought."""
        jobs = self.requests[iteration]["jobs"].values()
        records = [self.labels[id] for job in jobs for id in job["windows"] if id in self.labels]
        records = [record for record in records if not self._outside(record)]
        # Windows that did not converge count with the error bars they have.
        found = [record["label"] for record in records if criterion in (None, record["criterion"])]
        return stacked(found) if found else empty(self.problem.d)

    def _outside(self, record: dict[str, Any]) -> bool:
        """Whether a window ended too near to the boundary for its mu to mean anything; it is then not learned from."""
        return not self.problem.resolved(np.array(record["label"]["eta"], float))

    # ------------------------------------------------------------------------------------------ choose

    def _request(self, iteration: int, surface: Surface | None) -> None:
        """Choose windows, and write them down before any is sampled."""
        self.progress({"stage": "choose", "iteration": iteration, "labels": self._n_labels()})
        jobs = [job for request in self.requests.values() for job in request["jobs"].values() if job["role"] == "train"]
        chosen = choose(
            jax.random.fold_in(self.key, iteration),
            self.config,
            self.problem,
            iteration,
            surface,
            self._known(),
            self._of(iteration - 1) if iteration else empty(self.problem.d),
            np.array([target for job in jobs for target in job["target"]]).reshape(-1, self.problem.d),
            self._weights(),
        )
        self.record({"type": "request", "iteration": iteration, "jobs": self._jobs(f"{iteration}", chosen, "train")})

    def _jobs(self, prefix: str, chosen: Choice, role: str) -> dict[str, Any]:
        """Windows in batches, each a job of its own; on what batches there are no result depends."""
        sampling, jobs = self.config.sampling, {}
        size = sampling.windows_per_job or _even_share(len(chosen.kappa), sampling.workers)
        for k, start in enumerate(range(0, len(chosen.kappa), size)):
            part = slice(start, start + size)
            jobs[f"{prefix}.{k}"] = {
                "role": role,
                "windows": [f"{prefix}-{start + i}" for i in range(len(chosen.kappa[part]))],
                "criterion": list(chosen.criterion[part]),
                "target": chosen.target[part].tolist(),
                "temperature": chosen.temperature[part].tolist(),
                "kappa": chosen.kappa[part].tolist(),
            }
        return jobs

    def _weights(self) -> dict[str, float]:
        return self.iterations[-1]["weights"] if self.iterations else dict.fromkeys(self.config.criteria, 1.0)

    # ------------------------------------------------------------------------------------------ sample

    def _sample_test(self, oracle: Oracle) -> None:
        """Windows that are never learned from, as far as they are not known."""
        test = self.config.test
        if test is None:
            self.test = empty(self.problem.d)
            return
        parts = [] if test.file is None else [published(test.file, self.problem.d)]
        sampled = self.config.sampling.temperature_K
        if (
            parts
            and not self.problem.network.temperature
            and np.any(np.abs(parts[0].temperature / sampled[0] - 1) > 1e-5)
        ):
            raise ValueError(
                f"{test.file} has rows at temperatures other than sampling.temperature_K = {sampled[0]:g}, of which "
                "the network will know nothing: leave these rows out, or sample at several temperatures"
            )
        if test.points is not None:
            if -1 not in self.requests:
                key = jax.random.fold_in(self.key, TEST_STREAM)
                chosen = spread(key, self.problem, self.config.sampling.temperature_K, test.points)
                self.record({"type": "request", "iteration": -1, "jobs": self._jobs("test", chosen, "test")})
            self._sample(self.requests[-1]["jobs"], -1, oracle)
            parts.append(self._of(-1))
        self.test = concatenate(parts)

    def _sample(self, jobs: Mapping[str, dict[str, Any]], iteration: int, oracle: Oracle) -> None:
        """Sample what is asked for; each job's windows are in the journal before the next is looked at.

        Windows that came back without a number where others did not are not asked for again.
        """
        waiting, known = {}, self.labels.keys() | self.given_up(w for job in jobs.values() for w in job["windows"])
        for id, job in jobs.items():
            left = [i for i, window in enumerate(job["windows"]) if window not in known]
            if left:
                waiting[id] = job | {
                    name: [job[name][i] for i in left]
                    for name in ("windows", "criterion", "target", "temperature", "kappa")
                }
        total = sum(len(job["windows"]) for job in waiting.values())
        done = unconverged = failed = 0

        def report(error: str | None = None) -> None:
            state = {"done": done, "total": total, "unconverged": unconverged, "failed": failed, "error": error}
            self.progress({"stage": "sample", "iteration": iteration, **state})

        def on_result(id: str, outcome: Outcome) -> None:
            nonlocal done, unconverged, failed
            job = waiting[id]
            effort = {"attempts": outcome.attempts, "seconds": outcome.seconds}
            if outcome.result is None:
                failed += len(job["windows"])
                self.record({"type": "failed", "id": id, "iteration": iteration, "error": outcome.error, **effort})
            else:
                for i, (window, found) in enumerate(zip(job["windows"], outcome.result["windows"], strict=True)):
                    if why := unknown(found["label"]):
                        failed += 1
                        self.record({"type": "failed", "id": window, "iteration": iteration, "error": why, **effort})
                        continue
                    asked = {"criterion": job["criterion"][i], "target": job["target"][i], "kappa": job["kappa"][i]}
                    found["label"]["temperature"] = job["temperature"][i]
                    self.record(
                        {"type": "label", "id": window, "iteration": iteration, "role": job["role"], **asked, **found}
                    )
                    done += 1
                    unconverged += not found["converged"]
            report(outcome.error)

        if waiting:
            report()
            oracle.label({id: self._payload(job) for id, job in waiting.items()}, on_result)

    def _payload(self, job: Mapping[str, Any]) -> dict[str, Any]:
        phi = [list(self.config.sampling.phi)] * len(job["windows"])
        # By a window's name alone, so that it is the same whenever, wherever and beside whatever it is sampled.
        prefixes, numbers = zip(*(window.rsplit("-", 1) for window in job["windows"]), strict=True)
        seed = int(np.random.SeedSequence([self.config.seed, *prefixes[0].encode()]).generate_state(1)[0])
        ids = [int(number) for number in numbers]
        return {"temperature": job["temperature"], "kappa": job["kappa"], "phi": phi, "seed": seed, "ids": ids}

    # ------------------------------------------------------------------------------------------ learn

    def _train(self, iteration: int, before: Surface | None, latest: Labels) -> tuple[Surface, History, dict[str, Any]]:
        """A new ensemble on all labels; where the last labels surprised as much as those before, of a searched form."""
        self.progress({"stage": "train", "iteration": iteration})
        known, key = self._known(), jax.random.fold_in(jax.random.fold_in(self.key, iteration), 1)
        network, settings = self._form()
        trials, searched = self.config.training.search_trials, False
        if trials and before is not None and len(latest) and self._stalled(mu_rmse(before, latest)):
            self.progress({"stage": "search", "iteration": iteration})
            found = search(key, network, known, trials=trials, settings=settings)
            network, settings, searched = found.network, found.settings, found.improved
        surface, history = train(key, network, known, members=self.config.network.members, settings=settings)
        form = {
            "widths": list(network.widths),
            "activation": network.activation,
            "learning_rate": settings.learning_rate,
            "searched": searched,
        }
        return surface, history, form

    def _form(self) -> tuple[Network, TrainingSettings]:
        """Network and settings of the config, or those that the last search found."""
        chosen = {k: v for k, v in self.config.training.model_dump(exclude={"search_trials"}).items() if v is not None}
        network, settings = self.problem.network, TrainingSettings(**chosen)
        if self.iterations:
            form = self.iterations[-1]["form"]
            network = replace(network, widths=tuple(form["widths"]), activation=form["activation"])
            settings = replace(settings, learning_rate=form["learning_rate"])
        return network, settings

    def _stalled(self, ahead: np.ndarray) -> bool:
        previous = self.iterations[-1]["ahead"]
        return previous is not None and bool(np.linalg.norm(ahead) >= np.linalg.norm(previous))

    def _finish_iteration(
        self,
        iteration: int,
        before: Surface | None,
        surface: Surface,
        trained: Sequence[Any],
        seconds: dict[str, float],
    ) -> None:
        history, form = trained
        with timed(seconds, "evaluate"):
            latest = self._of(iteration)
            by_criterion = {name: self._of(iteration, name) for name in self.config.criteria}
            weights = self._weights()
            if self.config.choice.weighting:
                weights = judged(weights, before, surface, by_criterion)
            ahead = mu_rmse(before, latest).tolist() if before is not None and len(latest) else None
            surface.save(self.folder(iteration) / "surface.npz")
        record = {
            "type": "iteration",
            "iteration": iteration,
            "labels": self._n_labels(),
            "points": {name: len(part) for name, part in by_criterion.items()},
            "weights": weights,
            "ahead": ahead,
            "test": mu_rmse(surface, self.test).tolist() if len(self.test) else None,
            "form": form,
            "members": surface.members,
            "validation": [float(v) for v, used in zip(history.best_validation, history.used, strict=True) if used],
            "outside": sum(self._outside(r) for r in self.labels.values() if r["iteration"] == iteration),
            "unconverged": sum(not r["converged"] for r in self.labels.values() if r["iteration"] == iteration),
            "seconds": seconds,
        }
        self.record(record)
        self.progress(record | {"stage": "iteration"})


def _even_share(windows: int, workers: int) -> int:
    """Windows of a job, for each worker as many, in whole words of bits; on a CPU no more than are stepped together."""
    share = -(-windows // (workers * WINDOWS)) * WINDOWS
    return min(share, BATCH) if jax.default_backend() == "cpu" else share


def _digest(known: Problem) -> str:
    """Of the Hamiltonian, so that a campaign is not resumed with another one under the same file name."""
    return hashlib.sha256(repr(known.expansion.terms()).encode()).hexdigest()[:16]


def _contents(config: FreeEnergyConfig) -> dict[str, str]:
    """Of the files that a campaign learns or chooses from, for the same reason."""
    files = {"pool": config.choice.pool, "test": None if config.test is None else config.test.file}
    return {
        f"contents of {name}": hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]
        for name, path in files.items()
        if path is not None
    }


def mu_rmse(surface: Any, known: Labels) -> np.ndarray:
    """Root mean square error (d,) of mu on labels, eV."""
    error = np.asarray(surface.chemical_potential(known.eta, known.temperature)) - known.mu
    return np.sqrt(np.mean(error**2, axis=0))
