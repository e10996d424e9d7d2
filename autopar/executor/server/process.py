"""A server in a process of its own."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

from autopar.core.errors import EnvironmentUnableError
from autopar.executor.processes.orphans import die_with_parent
from autopar.executor.server.service import Service
from autopar.executor.server.settings import ServerSettings
from autopar.executor.server.shard import MakeOptimizer

_BACKLOG = 512


def listen(address: str, port: int = 0) -> socket.socket:
    """A listening socket; the system chooses the port.

    Raises:
        EnvironmentUnableError: The address is not one of this host.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        return socket.create_server((address, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise EnvironmentUnableError(
            f"a parameter server cannot listen on {address}: {error.strerror}",
            hint="pass an address of this host that the others reach",
        ) from error


def fork_server(
    settings: ServerSettings,
    make_optimizer: Callable[[], MakeOptimizer],
    listening: socket.socket,
    log: Path | None = None,
) -> int:
    """Start a server that ends with this process; returns its process number.

    The socket stays open here too: while a server is started again, connections wait.

    Args:
        settings: How it works.
        make_optimizer: Gives the task's optimizer; called in the new process.
        listening: From :func:`listen`.
        log: File for its output, appended to; this process's by default.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        die_with_parent()
        if log is not None:
            _write_to(log)
        if os.getppid() == parent:
            _serve(settings, make_optimizer(), listening)
            status = 0
    except BaseException as error:
        traceback.print_exception(error)
    finally:
        sys.stderr.flush()
        os._exit(status)


def _write_to(log: Path) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout, sys.stderr = (os.fdopen(n, "w", encoding="utf-8", closefd=False) for n in (1, 2))


def _serve(
    settings: ServerSettings, make_optimizer: MakeOptimizer, listening: socket.socket
) -> None:
    """The life of a server process."""
    torch.set_num_threads(1)  # the pool of OpenMP does not survive a fork
    logging.basicConfig(
        level=logging.INFO, format="server: %(message)s", stream=sys.stderr, force=True
    )
    asyncio.run(Service(settings, make_optimizer).run(listening))
