"""Launcher for tasks that exist only in this process: ranks are forks of it."""

from __future__ import annotations

import gc
import importlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch._C._distributed_c10d import FileStore

from autopar.core.errors import EnvironmentUnableError
from autopar.executor.ahead import Ahead, build_ahead
from autopar.executor.launching.launch import require_fork, threads_per_rank
from autopar.executor.launching.worker import Seat, mesh_rank, run_rank, work
from autopar.executor.options import RunOptions
from autopar.executor.processes.failures import diagnose
from autopar.executor.processes.progress import ProgressView
from autopar.executor.server.roles import ServerLink, server_sync
from autopar.executor.synchronising.registry import SYNCHRONISERS
from autopar.plans import Plan
from autopar.sync import parse_sync
from autopar.tasks import Task

_PATHS = ("module_path", "one_stage", "graph_path")
_POLL_S = 0.01
_GRACE_S = 5.0


def run_with_forks(plan: Plan, task: Task, options: RunOptions, view: ProgressView) -> None:
    """Run all ranks as forks and wait for them.

    Ranks compute with one thread: OpenMP's thread pool does not survive a fork.

    Args:
        plan: The plan.
        task: The task; it need not be picklable.
        options: The run's options.
        view: Shows the progress; its thread starts after the forks.

    Raises:
        TrainingError: A rank failed.
        EnvironmentUnableError: This system cannot fork, or lacks devices.
    """
    require_fork()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        raise EnvironmentUnableError(
            "CUDA is in use in this process, which then cannot be forked",
            hint="give the task a target and use launcher 'torchrun'",
        )
    _import_ahead(plan)
    sys.stdout.flush()
    sys.stderr.flush()
    with _set_aside(), tempfile.TemporaryDirectory(prefix="autopar-") as folder:
        ahead = build_ahead(plan, task)
        ranks: dict[int, int] = {}
        try:
            token = options.servers.token(options.nnodes)
            for process in range(plan.world_size):
                pid = os.fork()
                if pid == 0:
                    store = Path(folder) / "store"
                    _child(plan, task, options, store, process, token, ahead)
                ranks[pid] = mesh_rank(plan, process)
            del ahead
            with view:
                exits = _wait(ranks)
        except BaseException:
            _kill(ranks)
            raise
    if any(exits.values()):
        raise diagnose(options.out, plan.world_size, exits)


def _import_ahead(plan: Plan) -> None:
    """Import once what every rank would import for itself."""
    for name in _PATHS:
        importlib.import_module(f"autopar.executor.{name}")
    SYNCHRONISERS.load(parse_sync(plan.sync).mode.name)
    if server_sync(plan) is not None:
        importlib.import_module("autopar.executor.server.synchroniser")


@contextmanager
def _set_aside() -> Iterator[None]:
    """Forks made within do not collect, and so not copy, what the launcher holds by now."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _child(
    plan: Plan,
    task: Task,
    options: RunOptions,
    store: Path,
    process: int,
    token: bytes,
    ahead: Ahead | None,
) -> None:
    """The life of a forked rank; never returns."""
    rank = mesh_rank(plan, process)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the launcher ends us
    status = 1
    warnings = []
    threads = plan.threads or threads_per_rank(plan.world_size)
    if threads > 1:
        warnings.append(
            f"forked ranks computed with 1 thread, not {threads}: OpenMP does not survive a fork"
        )
    try:

        def body(link: ServerLink | None) -> None:
            torch.set_num_threads(1)
            shared = FileStore(str(store), plan.world_size)
            seat = Seat(rank, process, plan.world_size)
            work(plan, task, options, shared, seat, warnings, link, ahead)

        status = run_rank(plan, options, rank, lambda: task, body, token)
    finally:
        os._exit(status)


def _wait(ranks: dict[int, int]) -> dict[int, int]:
    """Exit status by rank; a failed rank gives the others a moment to report, then ends them."""
    exits: dict[int, int] = {}
    deadline: float | None = None
    running = dict(ranks)
    while running:
        for pid in list(running):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                exits[running.pop(pid)] = os.waitstatus_to_exitcode(status)
        if deadline is None and any(exits.values()):
            deadline = time.monotonic() + _GRACE_S
        if deadline is not None and running and time.monotonic() > deadline:
            _kill(running)
            return exits
        if running:
            time.sleep(_POLL_S)
    return exits


def _kill(running: dict[int, int]) -> None:
    for pid in running:
        try:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        except (ProcessLookupError, ChildProcessError):
            continue
