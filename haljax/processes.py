"""What the processes of `jax.distributed` tell each other: pickles in its key-value store.

JAX's collective operations would not do: they give up after half a minute, and a replica or a label may take longer.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from typing import Any

POLL_MS, TRANSFER_MS = 1000, 600_000  # the first short, since no signal is looked at before it has passed

FAILURE = "haljax/failure"

_rounds = count()


def join(processes: int | None) -> None:
    """Be one of so many processes; None takes what there is. Before anything is computed.

    Raises
    ------
    RuntimeError : there are others than `processes`, or no way to find them.
    """
    import jax

    if processes is None:
        return
    how = f"start this {processes} times by srun or mpirun, or call jax.distributed.initialize(...) before"
    if processes > 1 and not jax.distributed.is_initialized():
        try:
            jax.distributed.initialize()
        except (ValueError, RuntimeError) as error:
            raise RuntimeError(
                f"dynamics.processes = {processes}, but this one stands alone ({error}): {how}"
            ) from error
    if processes != jax.process_count():
        raise RuntimeError(f"dynamics.processes = {processes}, but there are {jax.process_count()}: {how}")


def gather(mine: Any, meanwhile: Callable[[], Any] = lambda: None) -> list[Any]:
    """What every process gave, in the order of their indices. All have to call it, as often; it waits for the last.

    ``meanwhile`` is called about once a second.

    Raises
    ------
    RuntimeError : see `heed`.
    """
    import jax

    if jax.process_count() == 1:
        return [mine]
    this, own = next(_rounds), jax.process_index()
    _store().key_value_set_bytes(f"{_key(this, own)}/words", pickle.dumps(mine))
    _store().key_value_set(f"{_key(this, own)}/told", "")
    told = [mine if p == own else _hear(_key(this, p), meanwhile) for p in range(jax.process_count())]
    if this > 0:  # all have heard the round before, or they would not have told anything in this one
        _store().key_value_delete(_key(this - 1, own))
    return told


def _hear(key: str, meanwhile: Callable[[], Any]) -> Any:
    import jax

    while True:
        try:
            _store().blocking_key_value_get(f"{key}/told", POLL_MS)
            return pickle.loads(_store().blocking_key_value_get_bytes(f"{key}/words", TRANSFER_MS))
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
        heed()
        meanwhile()


@contextmanager
def telling_failures() -> Iterator[None]:
    """What ends this process ends the others, too, when they next `gather` or `heed`."""
    import jax

    try:
        yield
    except BaseException as error:
        if jax.process_count() > 1:
            words = f"process {jax.process_index()} has ended: {str(error) or type(error).__name__}; start all anew"
            with suppress(jax.errors.JaxRuntimeError):  # another was first
                _store().key_value_set(FAILURE, words)
        raise


def heed() -> None:
    """Look whether another process has failed.

    Raises
    ------
    RuntimeError : one has, in words.
    """
    import jax

    if jax.process_count() == 1:
        return
    try:
        failure = _store().key_value_try_get(FAILURE)
    except jax.errors.JaxRuntimeError as error:
        if "NOT_FOUND" not in str(error):
            raise
        return
    raise RuntimeError(failure)


def _key(this: int, process: int) -> str:
    return f"haljax/{this}/{process}"


def _store() -> Any:
    """The client of JAX's coordination service, which JAX itself has no public name for."""
    from jax._src.distributed import global_state

    return global_state.client
