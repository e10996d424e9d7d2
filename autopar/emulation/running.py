"""Run a command on one emulated host or on all of them together."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import autopar
from autopar.emulation.layout import INTERFACE, Layout

_ENTER = "autopar.emulation.enter"
LOOK_S = 0.05
GRACE_S = 5.0


@dataclass(frozen=True)
class _Started:
    """A command on one host."""

    host: str
    process: subprocess.Popen[str]
    copiers: tuple[threading.Thread, ...]


def run_on(layout: Layout, numbers: Sequence[int], command: Sequence[str]) -> int:
    """Run a command on some hosts at once; ``{host}``, ``{hosts}``, ``{endpoint}`` are filled in.

    The output of the first host is this process's own; lines of the others go to stderr behind
    their names. When a host fails, the others are ended.

    Args:
        layout: The network.
        numbers: Hosts.
        command: Program and arguments.

    Returns:
        0, or the exit status of the host that failed first.
    """
    started: list[_Started] = []
    try:
        for number in numbers:
            started.append(_start(layout, number, command, own=number == numbers[0]))
        status = _wait(started)
    finally:
        _end(started)
    return status


def filled(layout: Layout, number: int, command: Sequence[str]) -> list[str]:
    """The command as one host runs it."""
    values = {"{host}": f"{number}", "{hosts}": f"{layout.hosts}", "{endpoint}": layout.endpoint}

    def fill(word: str) -> str:
        for key, value in values.items():
            word = word.replace(key, value)
        return word

    return [fill(word) for word in command]


def _start(layout: Layout, number: int, command: Sequence[str], *, own: bool) -> _Started:
    host = layout.host(number)
    output = None if own else subprocess.PIPE
    package = str(Path(autopar.__file__).resolve().parent.parent)
    search = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    process = subprocess.Popen(
        [sys.executable, "-m", _ENTER, host, *filled(layout, number, command)],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(search),
            "GLOO_SOCKET_IFNAME": INTERFACE,
            "AUTOPAR_EMULATED_HOST": host,
        },
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        text=True,
    )
    streams = [stream for stream in (process.stdout, process.stderr) if stream is not None]
    copiers = tuple(threading.Thread(target=_copy, args=(s, host), daemon=True) for s in streams)
    for copier in copiers:
        copier.start()
    return _Started(host, process, copiers)


def _copy(stream: IO[str], host: str) -> None:
    for line in stream:
        sys.stderr.write(f"[{host}] {line}")


def _wait(started: Sequence[_Started]) -> int:
    """Until all have ended well or one has not."""
    while True:
        states = [item.process.poll() for item in started]
        failed = [state for state in states if state]
        if failed:
            return failed[0] if failed[0] > 0 else 128 - failed[0]
        if all(state == 0 for state in states):
            return 0
        time.sleep(LOOK_S)


def _end(started: Sequence[_Started]) -> None:
    for item in started:
        if item.process.poll() is None:
            item.process.terminate()
    deadline = time.monotonic() + GRACE_S
    for item in started:
        try:
            item.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            item.process.kill()
            item.process.wait()
        for copier in item.copiers:
            copier.join(GRACE_S)
