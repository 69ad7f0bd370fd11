"""Multi-host runs: start-up, barriers, and values that process 0 computes for all."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

HEARTBEAT = 60
"""Seconds without a heartbeat after which a process is considered lost, and JAX aborts the others."""


def join(coordinator: str | None, num_processes: int | None, process_id: int | None, cluster: bool, timeout: int) -> bool:
    """Joins the processes of a run, by address or by cluster; call it before anything is computed.

    Without a coordinator or a cluster it does nothing. Failures are handled by JAX (0.10), which does not raise but aborts the
    process (SIGABRT) with its own fatal log:

    - The others do not answer in time: about five seconds after the timeout. That log names no address, so a line on stderr
      says beforehand which processes are expected.
    - Another process is killed: after `HEARTBEAT` seconds, or at once if it was process 0, even while this one waits for a
      collective.
    - Another process raises an exception: it first waits for all processes at its exit, and JAX aborts them all after five
      minutes. The scripts end such a process at once (`config.cli.run_script`), as if it had been killed.

    Args:
        coordinator: Address and port of process 0.
        num_processes: Number of processes; required with coordinator.
        process_id: Index of this process, from 0; required with coordinator.
        cluster: Whether JAX asks SLURM, Open MPI, Kubernetes or a TPU pod for all three.
        timeout: Seconds to wait for the others.

    Returns:
        Whether this is process 0, the one that writes and prints; on the others, print does nothing from then on.

    Raises:
        ValueError: one of the three without the others, an invalid address, or a cluster that JAX does not recognize.
    """
    if coordinator is None and (num_processes, process_id) != (None, None):
        raise ValueError("coordinator: expected an address with num_processes and process_id, received none")
    if coordinator is not None:
        _check(coordinator, num_processes, process_id, cluster)
    elif not cluster:
        return True
    expected = f"{num_processes} processes at {coordinator}" if coordinator else "all processes of the cluster"
    this = "this process" if process_id is None else f"process {process_id}"
    print(f"{this} expects {expected} within {timeout} s", file=sys.stderr, flush=True)
    try:
        jax.distributed.initialize(
            coordinator, num_processes, process_id,
            cluster_detection_method=None if cluster else "deactivate",
            initialization_timeout=timeout, heartbeat_timeout_seconds=HEARTBEAT,
        )  # fmt: skip
    except Exception as error:  # any type: from sockets to Kubernetes
        raise ValueError(f"expected {expected}, received: {' '.join(str(error).split())}") from error
    if jax.process_index() > 0:
        print(f"process {jax.process_index()} of {jax.process_count()}: process 0 prints for all", flush=True)
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits up to ten minutes for all processes; the first collective on CPU would wait only half a minute."""
    if jax.process_count() > 1:
        multihost.get_barrier_sync_fn()(key=name, timeout_ms=600_000)


def from_first_process(compute: Callable[[], int]) -> int:
    """Broadcasts an int32 that process 0 computes; all processes must call it together.

    Args:
        compute: Called on process 0 alone.

    Raises:
        Exception: whatever compute raises, on process 0; ValueError on the others.
    """
    if jax.process_count() == 1:
        return compute()
    missing = np.iinfo(np.int32).min
    value, error = np.int32(missing), None
    if jax.process_index() == 0:
        try:
            value = np.int32(compute())
        except Exception as raised:  # raised again once the others know
            error = raised
    value = multihost_utils.broadcast_one_to_all(value)
    if error is not None:
        raise error
    if value == missing:
        raise ValueError("process 0 failed, see its error")
    return int(value)


def _check(coordinator: str, num_processes: int | None, process_id: int | None, cluster: bool) -> None:
    if cluster:
        raise ValueError("coordinator: expected none with cluster, which finds it")
    if not re.fullmatch(r".+:\d+", coordinator):
        raise ValueError(f"coordinator: expected an address and a port such as 10.0.0.1:1234, received {coordinator}")
    if num_processes is None or num_processes < 1:
        raise ValueError(f"num_processes: expected at least 1 with coordinator, received {num_processes}")
    if process_id is None or not 0 <= process_id < num_processes:
        raise ValueError(f"process_id: expected 0..{num_processes - 1} with coordinator, received {process_id}")
