"""The process that measures a host: imports torch once, forks the ranks, reports JSON lines.

``python -m autopar.profiler.interconnect.worker`` reads one JSON line (:class:`Job`) from stdin
and writes lines ``{"progress": [text, fraction]}``, then ``{"result": ...}`` or
``{"error": text}``.
Ranks are forked from a process that has run no operator yet, which is safe and costs 0.2 s where
a fresh interpreter costs the import of torch. When stdin closes (the parent is gone) or a rank
fails, all ranks are killed.
"""

from __future__ import annotations

import ctypes
import json
import multiprocessing as mp
import os
import signal
import sys
import traceback
from dataclasses import asdict, dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TextIO

import torch
import torch.distributed as dist

from autopar.profiler import host
from autopar.profiler.interconnect.collective_probe import join, measure_curves, share
from autopar.profiler.interconnect.layouts import layouts, sizes_up_to
from autopar.profiler.interconnect.load_probe import (
    busy_slowdown,
    device_figures,
    overlap_slowdown,
    step_like_compute,
)

_PR_SET_PDEATHSIG = 1
_GRACE_S = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What to measure.

    Attributes:
        ranks: Ranks on this host.
        nnodes: Hosts.
        node_rank: This host's number.
        init_method: ``file://...`` or ``tcp://host:port``, where the ranks meet.
        threads: Threads of a rank.
        sizes: Message bytes, ascending.
        curves_s: Time for all curves.
        device_s: Time for a rank's peak rates.
        rounds: Repeats of the load measurements.
        timeout_s: Longest wait for another rank.
    """

    ranks: int
    nnodes: int
    node_rank: int
    init_method: str
    threads: int
    sizes: list[int]
    curves_s: float
    device_s: float
    rounds: int
    timeout_s: float


class _Reporter:
    """The rank's end of the pipe to the launcher."""

    def __init__(self, pipe: Connection, *, speaks: bool) -> None:
        self._pipe = pipe
        self._speaks = speaks

    def tick(self, text: str, fraction: float) -> None:
        if self._speaks:
            self._pipe.send({"progress": [text, fraction]})

    def finish(self, result: dict[str, Any]) -> None:
        if self._speaks:
            self._pipe.send({"result": result})


def measure(job: Job, local_rank: int, reporter: _Reporter) -> dict[str, Any]:
    """All measurements of one rank; every rank returns the same plain values."""
    busy_counts = sorted({1, *range(1, min(job.ranks, 4) + 1), *sizes_up_to(job.ranks)})
    reporter.tick("compute", 0.0)
    figures = None
    if local_rank == 0:
        found = device_figures(seconds=job.device_s)
        figures = {
            "cpu": host.cpu_name(),
            "cores": host.usable_cores(),
            "memory_bytes": host.memory_bytes(),
            "node": job.node_rank,
            **asdict(found),
        }
    hosts = [row for row in share(figures) if row is not None]
    reporter.tick("compute under load", 0.1)
    busy, detail = busy_slowdown(local_rank=local_rank, counts=busy_counts, rounds=job.rounds)
    curves, overlap = [], 0.0
    if job.ranks * job.nnodes > 1:
        members = join(layouts(job.nnodes, job.ranks), timedelta(seconds=job.timeout_s))
        curves = measure_curves(
            members,
            before=step_like_compute(),
            sizes=job.sizes,
            budget_s=job.curves_s,
            tick=lambda text, done: reporter.tick(text, 0.2 + 0.7 * done),
        )
        reporter.tick("overlap", 0.9)
        overlap = overlap_slowdown(rounds=job.rounds)
    return {
        "hosts": hosts,
        "busy_slowdown": busy,
        "busy_detail": detail,
        "curves": [asdict(curve) for curve in curves],
        "overlap_slowdown": overlap,
        "torch": torch.__version__,
    }


def _rank(job: Job, local_rank: int, pipe: Connection) -> None:
    _die_with_parent()
    torch.set_num_threads(job.threads)
    try:
        dist.init_process_group(
            "gloo",
            init_method=job.init_method,
            rank=job.node_rank * job.ranks + local_rank,
            world_size=job.nnodes * job.ranks,
            timeout=timedelta(seconds=job.timeout_s),
        )
        reporter = _Reporter(pipe, speaks=local_rank == 0)
        reporter.finish(measure(job, local_rank, reporter))
        dist.barrier()
        dist.destroy_process_group()
    except Exception as error:
        traceback.print_exc()
        first_line = (str(error).strip() or "no message").splitlines()[0]
        pipe.send({"error": f"rank {local_rank}: {type(error).__name__}: {first_line}"})
        sys.exit(1)


def _die_with_parent() -> None:
    """Have the kernel kill this process when the launcher dies (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _launch(job: Job, channel: TextIO) -> int:
    context = mp.get_context("fork")
    ranks: list[tuple[BaseProcess, Connection]] = []
    for local_rank in range(job.ranks):
        ours, theirs = context.Pipe(duplex=False)
        process: BaseProcess = context.Process(
            target=_rank, args=(job, local_rank, theirs), daemon=True
        )
        process.start()
        theirs.close()
        ranks.append((process, ours))
    try:
        return _watch(ranks, channel)
    finally:
        for process, _ in ranks:
            process.kill()
            process.join()


def _watch(ranks: list[tuple[BaseProcess, Connection]], channel: TextIO) -> int:
    """Pass on what ranks say until all are done; 1 as soon as one fails or the parent is gone."""
    pipes = {pipe: index for index, (_, pipe) in enumerate(ranks)}
    running = {process.sentinel: index for index, (process, _) in enumerate(ranks)}
    while running:
        ready = wait([*pipes, *running, sys.stdin.fileno()])
        if sys.stdin.fileno() in ready:
            return 1
        for pipe in [item for item in ready if isinstance(item, Connection)]:
            try:
                message = pipe.recv()
            except EOFError:
                pipes.pop(pipe)
                continue
            if "error" in message:
                message = {"error": _killed(ranks, wait_s=_GRACE_S) or message["error"]}
            print(json.dumps(message), file=channel, flush=True)
            if "error" in message:
                return 1
        for sentinel in [item for item in ready if item in running]:
            running.pop(sentinel)
        if (killed := _killed(ranks, wait_s=0.0)) is not None:
            print(json.dumps({"error": killed}), file=channel, flush=True)
            return 1
    return 0


def _killed(ranks: list[tuple[BaseProcess, Connection]], *, wait_s: float) -> str | None:
    """The rank that a signal ended, if any: the cause, where others only lost a connection."""
    wait([process.sentinel for process, _ in ranks], timeout=wait_s)
    for index, (process, _) in enumerate(ranks):
        code = process.exitcode
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            return f"rank {index} was killed by {name}" + " (out of memory?)" * (code == -9)
    return None


def main() -> int:
    """Entry point of the launcher process."""
    job = Job(**json.loads(sys.stdin.readline()))
    with os.fdopen(os.dup(1), "w") as channel:
        os.dup2(2, 1)  # whatever ranks print must not mix with the protocol
        return _launch(job, channel)


if __name__ == "__main__":
    sys.exit(main())
