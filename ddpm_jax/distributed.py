"""Several processes as one run: how they find each other, and how each of them ends where another is gone."""

from __future__ import annotations

import os
import pathlib
import re
import sys
import threading
import traceback
from collections.abc import Callable
from types import TracebackType

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

HEARTBEAT = 60
"""Seconds without a sign of life after which a process is taken for lost, and the others end."""

GRACE = 60
"""Seconds that JAX itself waits longer than we do: it ends a process without a word that a user could read."""


def join(coordinator: str | None, num_processes: int | None, process_id: int | None, cluster: bool, timeout: int) -> bool:
    """Makes this process one of a run's, before anything is computed; does nothing where neither way is chosen.

    The process ends with a line on stderr and exit code 2 where the others do not answer in time; and from then on, an
    exception that reaches the top ends it at once, since what JAX waits for on the way out may never come.

    Args:
        coordinator: Address and port of process 0.
        num_processes: How many there are; with coordinator.
        process_id: Which this one is, from 0; with coordinator.
        cluster: Whether JAX asks SLURM, Open MPI, Kubernetes or a TPU pod for all three.
        timeout: Seconds to wait for the others.

    Returns:
        Whether this is process 0, the one that writes and prints; on the others print does nothing from then on.

    Raises:
        ValueError: one of the three without the others, an address that is none, or no cluster that JAX knows.
    """
    if coordinator is None and (num_processes, process_id) != (None, None):
        raise ValueError("coordinator: expected an address with num_processes and process_id, received none")
    if coordinator is not None:
        _check(coordinator, num_processes, process_id, cluster)
    elif not cluster:
        return True
    who = f"{num_processes} processes at {coordinator}" if coordinator else "all processes of the cluster"
    waiting = threading.Timer(timeout, _give_up, [f"expected {who} within {timeout} s, waited in vain as process {process_id}"])
    waiting.daemon = True
    waiting.start()
    try:
        jax.distributed.initialize(
            coordinator, num_processes, process_id,
            cluster_detection_method=None if cluster else "deactivate",
            initialization_timeout=timeout + GRACE, heartbeat_timeout_seconds=HEARTBEAT,
        )  # fmt: skip
    except Exception as error:  # of a wide choice: from sockets to Kubernetes
        raise ValueError(f"expected {who}, received: {' '.join(str(error).split())}") from error
    finally:
        waiting.cancel()
    sys.excepthook = _end
    if jax.process_index() > 0:
        print(f"process {jax.process_index()} of {jax.process_count()}: process 0 tells of the run", flush=True)
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    return jax.process_index() == 0


def wait(what: str) -> None:
    """Waits for all processes to come here, up to ten minutes; devices themselves wait for half a minute at most on CPU."""
    if jax.process_count() > 1:
        multihost.get_barrier_sync_fn()(key=what, timeout_ms=600_000)


def of_first(find: Callable[[], int]) -> int:
    """What process 0 finds, an int32, on all of them, none of which looks itself; all come here, their devices idle.

    Raises:
        Exception: what find raises, on process 0; ValueError on the others.
    """
    if jax.process_count() == 1:
        return find()
    nothing = np.iinfo(np.int32).min
    found, error = np.int32(nothing), None
    if jax.process_index() == 0:
        try:
            found = np.int32(find())
        except Exception as raised:  # to be raised once the others know
            error = raised
    found = multihost_utils.broadcast_one_to_all(found)
    if error is not None:
        raise error
    if found == nothing:
        raise ValueError("process 0 says why")
    return int(found)


def _check(coordinator: str, num_processes: int | None, process_id: int | None, cluster: bool) -> None:
    if cluster:
        raise ValueError("coordinator: expected none with cluster, which finds it")
    if not re.fullmatch(r".+:\d+", coordinator):
        raise ValueError(f"coordinator: expected an address and a port such as 10.0.0.1:1234, received {coordinator}")
    if num_processes is None or num_processes < 1:
        raise ValueError(f"num_processes: expected at least 1 with coordinator, received {num_processes}")
    if process_id is None or not 0 <= process_id < num_processes:
        raise ValueError(f"process_id: expected 0..{num_processes - 1} with coordinator, received {process_id}")


def _give_up(line: str) -> None:
    _say(f"error: --devices.coordinator: {line}")
    os._exit(2)


def _end(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    traceback.print_exception(kind, error, trace, file=sys.__stderr__)
    _say(f"process {jax.process_index()} of {jax.process_count()} ends, for it failed or another was lost; the same command, "
         "given to all, goes on from the last checkpoint")  # fmt: skip
    sys.stdout.flush()
    os._exit(1)


def _say(line: str) -> None:
    print(f"{pathlib.Path(sys.argv[0]).name}: {line}", file=sys.__stderr__, flush=True)
