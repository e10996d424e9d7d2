"""The process that holds a rank and the server beside it.

A rank of a plan with servers runs as the child of a process that does nothing but wait. The
server is its other child. So a rank that is killed does not take a shard of the weights with
it, a server that ends is started again from its checkpoint on the same port, and both end with
the launcher. Starting them is a fork of the process that has loaded torch already.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from autopar.core.errors import TrainingError
from autopar.executor.options import RunOptions
from autopar.executor.processes.failures import report_failure
from autopar.executor.processes.orphans import die_with_parent
from autopar.executor.server.client import Endpoint
from autopar.executor.server.process import fork_server, listen
from autopar.executor.server.roles import ServerLink, independent, settings_for
from autopar.executor.server.settings import ServerSettings
from autopar.executor.server.shard import MakeOptimizer
from autopar.executor.server.tls import fingerprint_of_file
from autopar.plans import Plan

_MOST_RESTARTS = 8


def host_rank(
    plan: Plan,
    options: RunOptions,
    rank: int,
    token: bytes,
    make_optimizer: Callable[[], MakeOptimizer],
    body: Callable[[ServerLink], int],
) -> int:
    """Run a rank, and the server beside it if it has one; returns the exit status.

    Args:
        plan: A plan with servers.
        options: The run's options.
        rank: The plan's rank.
        token: Secret of the run.
        make_optimizer: Gives the task's optimizer; called in the server's process.
        body: The rank; returns its exit status.
    """
    die_with_parent()
    try:
        server = _start(plan, options, rank, token, make_optimizer)
        own = server.endpoint if server is not None else None
        link = ServerLink(token=token, own=own, options=options)
        child = _fork_rank(lambda: body(link), server)
        return _wait(child, server, may_lose=independent(plan, options))
    except BaseException as error:
        report_failure(options.out, rank, error)
        return 1


@dataclass(kw_only=True)
class _Server:
    """A server and what is needed to start it again."""

    settings: ServerSettings
    make_optimizer: Callable[[], MakeOptimizer]
    listening: socket.socket
    endpoint: Endpoint
    log: Path
    pid: int = 0
    starts: int = 0

    def start(self) -> None:
        """Fork it.

        Raises:
            TrainingError: It ended too often, or cannot go on for want of a checkpoint.
        """
        path = self.settings.checkpoint
        if self.starts and not (path is not None and path.exists()):
            raise TrainingError(
                f"the parameter server beside rank {self.settings.owner} ended and had no "
                f"checkpoint; log: {self.log}",
                hint="let servers write checkpoints with --server-checkpoint-every",
            )
        if self.starts > _MOST_RESTARTS:
            raise TrainingError(
                f"the parameter server beside rank {self.settings.owner} ended "
                f"{self.starts} times; log: {self.log}",
                hint="read the log",
            )
        self.starts += 1
        self.pid = fork_server(self.settings, self.make_optimizer, self.listening, self.log)


def _start(
    plan: Plan,
    options: RunOptions,
    rank: int,
    token: bytes,
    make_optimizer: Callable[[], MakeOptimizer],
) -> _Server | None:
    settings = settings_for(plan, options, rank, token)
    if settings is None:
        return None
    if settings.checkpoint is not None:
        settings.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        settings.checkpoint.unlink(missing_ok=True)  # of an earlier run
    listening = listen(options.servers.listen_on(options.nnodes))
    address, port = listening.getsockname()[:2]
    tls = settings.tls
    endpoint = Endpoint(
        address=address,
        port=port,
        fingerprint=fingerprint_of_file(tls) if tls is not None else "",
        owner=rank,
    )
    server = _Server(
        settings=settings,
        make_optimizer=make_optimizer,
        listening=listening,
        endpoint=endpoint,
        log=options.out / "logs" / f"server-{rank}.log",
    )
    server.start()
    return server


def _fork_rank(body: Callable[[], int], server: _Server | None) -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        die_with_parent()
        if server is not None:
            server.listening.close()
        if os.getppid() == parent:
            status = body()
    finally:
        os._exit(status)


def _wait(rank_pid: int, server: _Server | None, *, may_lose: bool) -> int:
    """Wait for the rank and then for the server, which ends when all ranks have left.

    Raises:
        TrainingError: The server cannot be started again.
    """
    rank_runs, server_runs = True, server is not None
    while rank_runs or server_runs:
        pid, status = os.waitpid(-1, 0)
        code = os.waitstatus_to_exitcode(status)
        if pid == rank_pid:
            rank_runs = False
            if code < 0 and not may_lose:
                _die_alike(-code)
            if code > 0:
                return code
        elif server is not None and pid == server.pid:
            if code == 0:
                server_runs = False
                server.listening.close()
            else:
                server.start()
    return 0


def _die_alike(number: int) -> None:
    """End by the signal that ended the rank, so that the launcher names it."""
    if number not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
