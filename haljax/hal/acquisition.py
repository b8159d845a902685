"""From a config and a model to replicas, and from stopped replicas to a batch worth labelling."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from haljax.ace import ACEBasis
from haljax.bayes import triangular_blocks
from haljax.config import Dynamics, per_replica
from haljax.devices import cores
from haljax.hal.boldness import AS_GIVEN, Boldness, emboldened
from haljax.hal.controller import criterion, relative_force_error
from haljax.hal.trajectory import Conditions, HALParameters, Observation, Protocol, Run, room, run
from haljax.md import Guards, Status
from haljax.model import Model
from haljax.potentials import Parameters, evaluate_system, parameters_of
from haljax.processes import gather, heed
from haljax.rows import examples
from haljax.structures import Neighbours, System, bucket, from_atoms, stack, to_atoms

if TYPE_CHECKING:
    from ase import Atoms


CACHED = (
    64  # atoms whose intermediate values fit a core's cache (measured best: 8 replicas of 8, 1 or 2 of 32, 1 of 108)
)


SHORTEST = 0.5  # of the sum of two covalent radii; closer atoms are more than many reference calculators can label

# Guards that object to a structure. With the other two the dynamics failed: an atom outran its neighbour list, or the
# numbers are not finite.
GUARDS = (Status.TOO_CLOSE, Status.LARGE_FORCE, Status.TOO_HOT, Status.HIGH_PRESSURE)


# The default tolerance: a factor times a quantile over the training structures, within limits; measured on Al-Cu.
TOLERANCE_FACTOR, TOLERANCE_QUANTILE = 2.0, 0.9
TOLERANCE_LIMITS = 0.03, 0.3


class Explored(NamedTuple):
    """What a round of dynamics brought.

    Attributes
    ----------
    candidates : one structure a replica, with ``info["origin"]``: the structure at which it stopped, also where a
        guard stopped it. Where that structure cannot be labelled (atoms closer than `SHORTEST`, or failed dynamics),
        the structure of the last safe check; a replica without one has no candidate. ``origin["frame"]`` is
        "stopped" or "last safe".
    replicas : one summary a replica.
    seen : Observation with leaves (checks, replicas), padded after a replica's end.
    tolerance, timestep_fs : (replicas,), what each ran under.
    score : the largest criterion met, None where none was finite.
    """

    candidates: list[Atoms]
    replicas: list[dict[str, Any]]
    seen: Observation
    tolerance: np.ndarray
    timestep_fs: np.ndarray
    score: float | None


def explore(
    model: Model,
    dynamics: Dynamics,
    starts: Sequence[Atoms],
    key: jax.Array,
    room: Mapping[int, int],
    on_progress: Callable[[Mapping[str, list]], Any],
    boldness: Boldness = AS_GIVEN,
) -> Explored:
    """Run one biased replica from each start until it stops.

    Replicas of like size are stepped together, batches on all cores at once. Where `jax.distributed` has more than
    one process, all of them call this with the same arguments, step their share of the batches and return the same.

    Parameters
    ----------
    dynamics : with a tolerance; see `default_tolerance`.
    key : replica i uses fold_in(key, i), so that it can be re-run alone.
    room : neighbours an atom to begin with, by padded size; see `room_for`.
    boldness : factors of the dynamics of each replica, also of values that a start structure sets.
    """
    from ase.data import atomic_masses

    basis = model.basis
    params = HALParameters(parameters_of(model), _deviations(model, dynamics, key))
    of_bias = _cast(triangular_blocks(params.linear.factor), "float32")
    masses = atomic_masses[list(basis.numbers)]
    own = [emboldened(dynamics.overridden(atoms.info), boldness) for atoms in starts]
    if any(replica.tolerance is None for replica in own):
        raise ValueError("the dynamics have no tolerance: set one, for instance by default_tolerance(model, …)")
    conditions = [_conditions(replica, atoms, i) for i, (replica, atoms) in enumerate(zip(own, starts, strict=True))]

    alike: dict[tuple[int, Protocol], list[int]] = {}
    for i, (replica, atoms) in enumerate(zip(own, starts, strict=True)):
        alike.setdefault((bucket(len(atoms)), _protocol(replica)), []).append(i)
    processes, devices = jax.process_count(), dynamics.devices or jax.local_device_count()
    if devices > jax.local_device_count():
        there = jax.local_device_count()
        raise ValueError(f"dynamics.devices = {devices}, but jax has {there} here: give at most that")
    # The batches are the same in all processes, wherever these run.
    devices, n_cores = map(min, zip(*gather((devices, cores())), strict=True))
    batches, share = [], -(-len(starts) // processes)
    for (size, protocol), members in alike.items():
        width = dynamics.replicas_per_batch or _width(share, len(members), size, devices, n_cores)
        width = -(-width // devices) * devices
        batches += [(width, size, protocol, members[k : k + width]) for k in range(0, len(members), width)]
    latest: dict[str, list] = {name: [None] * len(starts) for name in Observation._fields}
    lock, interrupted = threading.Lock(), threading.Event()

    def one_batch(batch: tuple[int, int, Protocol, list[int]]) -> Run:
        width, size, protocol, members = batch
        filled = members + [members[-1]] * (width - len(members))
        cast = partial(_cast, precision=dynamics.precision)

        def on_block(seen: Observation) -> None:
            if interrupted.is_set():
                raise InterruptedError
            heed()
            with lock:
                for name, values in seen._asdict().items():
                    for column, i in enumerate(members):
                        latest[name][i] = values[-1, column].item()
                on_progress(latest)

        return run(
            basis,
            protocol,
            cast(params)._replace(factor=of_bias),
            cast(jax.tree.map(lambda *leaves: jnp.stack(leaves), *(conditions[i] for i in filled))),
            cast(stack([from_atoms(starts[i], basis.elements, size=size) for i in filled])),
            cast(masses),
            jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.asarray(filled)),
            idle=np.arange(width) >= len(members),
            capacity=room[size],
            on_block=on_block,
            devices=devices,
        )

    with ThreadPoolExecutor(cores()) as pool:
        running = [pool.submit(one_batch, batch) for batch in batches[jax.process_index() :: processes]]
        try:
            for done in wait(running, return_when=FIRST_EXCEPTION).done:
                done.result()
        except BaseException:  # Ctrl-C, say: no batch goes on beyond its present block
            interrupted.set()
            pool.shutdown(cancel_futures=True)
            raise
    own_runs = [done.result() for done in running]
    dealt = gather(own_runs, meanwhile=lambda: on_progress(latest))
    runs = [dealt[i % processes][i // processes] for i in range(len(batches))]
    return _gathered(basis.elements, starts, conditions, batches, runs)


def follow() -> Any:
    """`explore` whenever process 0 says so, until it says something else, which is returned."""
    while isinstance(told := gather(None)[0], Round):
        explore(*told[:-1], lambda latest: None, told.boldness)
    return told


class Round(NamedTuple):
    """The arguments of `explore`, as process 0 gathers them for those that `follow`."""

    model: Model
    dynamics: Dynamics
    starts: Sequence[Atoms]
    key: jax.Array
    room: Mapping[int, int]
    boldness: Boldness


def room_for(basis: ACEBasis, skin: float, structures: Sequence[Atoms]) -> dict[int, int]:
    """Neighbours an atom to begin with, by padded size: `room` for these structures.

    The same in every round, whatever the last one needed, so that a resumed campaign rounds as the first would have.
    """
    by_size: dict[int, list[System]] = {}
    for atoms in structures:
        by_size.setdefault(bucket(len(atoms)), []).append(from_atoms(atoms, basis.elements))
    return {size: room(systems, basis.cutoff + skin) for size, systems in by_size.items()}


def default_tolerance(model: Model, dynamics: Dynamics, structures: Sequence[Atoms], key: jax.Array) -> float:
    """The tolerance of the relative force error where ``dynamics`` has none, from the structures that a model learned.

    `TOLERANCE_FACTOR` times a high quantile of their criterion, as a check of the dynamics computes it: a replica stops
    where the model is clearly less sure than on its own data. Within `TOLERANCE_LIMITS`.

    Parameters
    ----------
    key : of the round; the committee is that of `explore`.
    """
    params, deviations = parameters_of(model), _deviations(model, dynamics, key)
    found = [
        float(_criterion_of(model.basis, params, deviations, jnp.asarray(dynamics.epsilon), *example))
        for example in examples(model.basis, structures)
    ]
    value = TOLERANCE_FACTOR * float(np.quantile(found, TOLERANCE_QUANTILE))
    return float(np.clip(value, *TOLERANCE_LIMITS))


@partial(jax.jit, static_argnums=0)
def _criterion_of(
    basis: ACEBasis,
    params: Parameters,
    deviations: jax.Array,
    epsilon: jax.Array,
    system: System,
    neighbours: Neighbours,
) -> jax.Array:
    result = evaluate_system(basis, params, system, neighbours, deviations)
    real = jnp.asarray(system.species) >= 0
    return criterion(relative_force_error(result.force_deviations, result.forces, epsilon, real), real, softmax=False)


def _deviations(model: Model, dynamics: Dynamics, key: jax.Array) -> jax.Array:
    """Of a round's committee (K, P) from the mean."""
    factor = model.spread.factor
    return jax.random.normal(jax.random.fold_in(key, 1 << 20), (dynamics.committee, factor.shape[1])) @ factor.T


def _width(n_replicas: int, n_alike: int, size: int, devices: int, n_cores: int) -> int:
    """Replicas of so many atoms stepped together, of `n_replicas` a process: on GPUs all of the `n_alike` of this size,
    in one of a few widths; on a CPU a share for each core, as fits its cache."""
    if jax.default_backend() != "cpu":
        return min(n_replicas, bucket(n_alike))
    at_once = devices if devices > 1 else n_cores
    return devices * min(-(-n_replicas // at_once), max(1, CACHED // size))


def _cast(tree: Any, precision: str) -> Any:
    """The same as JAX arrays, floating ones in this precision."""

    def leaf(x: Any) -> jax.Array:
        return jnp.asarray(x, precision if jnp.issubdtype(x.dtype, jnp.floating) else x.dtype)

    return jax.tree.map(leaf, tree)


def _protocol(dynamics: Dynamics) -> Protocol:
    return Protocol(
        check_interval=dynamics.check_interval,
        cell_interval=dynamics.cell_interval if dynamics.pressure_GPa is not None else 0,
        swap_interval=dynamics.swap_interval,
        fixed_shape=dynamics.cell_fixed_shape,
        softmax=dynamics.criterion == "softmax",
        skin=dynamics.skin,
    )


def _conditions(dynamics: Dynamics, atoms: Atoms, i: int) -> Conditions:
    """What replica ``i`` runs under."""
    from ase import units

    delay = dynamics.tau_delay if dynamics.tau_delay is not None else dynamics.tau_history

    def ramp(name: str, unit: float) -> jax.Array:
        value = getattr(dynamics, name)
        return jnp.asarray([np.nan, np.nan] if value is None else per_replica(value, i)) * unit

    kT = ramp("temperature_K", units.kB)
    step = dynamics.cell_step * np.sqrt(float(kT[0]) / units.kB / 500 / (len(atoms) / 40))
    return Conditions(
        kT=kT,
        pressure=ramp("pressure_GPa", units.GPa),
        tau_rel=ramp("tau_rel", 1.0),
        n_steps=jnp.asarray(dynamics.n_steps),
        dt=jnp.asarray(dynamics.timestep_fs * units.fs),
        friction=jnp.asarray(dynamics.friction_per_fs / units.fs),
        tolerance=jnp.asarray(dynamics.tolerance),
        epsilon=jnp.asarray(dynamics.epsilon),
        tau_history=jnp.asarray(float(dynamics.tau_history)),
        tau_delay=jnp.asarray(float(delay)),
        cell_step=jnp.asarray(step),
        guards=Guards(
            min_distance=jnp.asarray(dynamics.min_distance),
            max_force=jnp.asarray(dynamics.max_force),
            max_temperature=jnp.asarray(dynamics.max_temperature_K * units.kB),
            max_pressure=jnp.asarray(dynamics.max_pressure_GPa * units.GPa),
        ),
    )


def _gathered(
    elements: Sequence[str],
    starts: Sequence[Atoms],
    conditions: Sequence[Conditions],
    batches: Sequence[tuple[int, int, Protocol, list[int]]],
    runs: Sequence[Run],
) -> Explored:
    from ase.units import fs

    n, checks = len(starts), max(len(result.seen.step) for result in runs)
    seen = Observation(
        *(
            np.full((checks, n), -1 if np.issubdtype(leaf.dtype, np.integer) else np.nan, leaf.dtype)
            for leaf in runs[0].seen
        )
    )
    candidates: dict[int, Atoms] = {}
    replicas: list[dict[str, Any]] = [{}] * n
    for (*_, protocol, members), result in zip(batches, runs, strict=True):
        for column, i in enumerate(members):
            # A replica that stopped repeats its last look; keep one.
            status = result.seen.status[:, column]
            end = int(np.argmax(status != Status.RUNNING)) + 1
            for whole, part in zip(seen, result.seen, strict=True):
                whole[:end, i] = part[:end, column]
            name = Status(int(result.status[column])).name.lower()
            replicas[i] = {
                "status": name,
                "step": int(result.step[column]),
                "start": i,
                "temperature_K": _finite(result.seen.temperature[end - 1, column]),
                "criterion": _finite(result.seen.criterion[end - 1, column]),
            }
            system, step = result.candidate, int(result.candidate_step[column])
            if result.status[column] in GUARDS and _can_be_labelled(_atoms(result.stopped, column, elements)):
                system, step = result.stopped, int(result.step[column])
            if step > 0:
                atoms = _atoms(system, column, elements)
                if not protocol.cell_interval:
                    atoms.cell = starts[i].cell  # to the last digit, whatever the precision of the dynamics
                atoms.info["config_type"] = starts[i].info.get("config_type", "all")
                frame = "stopped" if step == result.step[column] else "last safe"
                atoms.info["origin"] = {"replica": i, **replicas[i], "step": step, "frame": frame}
                candidates[i] = atoms
    finite = seen.criterion[np.isfinite(seen.criterion)]
    score = float(finite.max()) if finite.size else None
    return Explored(
        [candidates[i] for i in sorted(candidates)],
        replicas,
        seen,
        np.array([float(c.tolerance) for c in conditions]),
        np.array([float(c.dt) for c in conditions]) / fs,
        score,
    )


def _atoms(systems: System, i: int, elements: Sequence[str]) -> Atoms:
    """Structure i of a batch."""
    return to_atoms(jax.tree.map(lambda leaf: leaf[i], systems), elements)


def _can_be_labelled(atoms: Atoms) -> bool:
    """Whether positions and cell are finite and no two atoms are closer than `SHORTEST`."""
    from ase.data import covalent_radii
    from ase.neighborlist import neighbor_list

    if not (np.isfinite(atoms.positions).all() and np.isfinite(atoms.cell).all()):
        return False
    radii = SHORTEST * covalent_radii[atoms.numbers]
    return not len(neighbor_list("i", atoms, radii))


def _finite(value: Any) -> float | None:
    """A number for the journal, which knows no NaN."""
    return float(value) if np.isfinite(value) else None
