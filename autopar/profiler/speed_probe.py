"""How fast the host is just now: seconds of a fixed loop on several processes at once."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection

import torch

from autopar.core.stats import median, quantile
from autopar.profiler.pace import network_step

_ROUNDS = 12
_LOW = 0.25


def reference_seconds(ranks: int) -> float:
    """Seconds of one pass of a small network, forward, backward and optimizer, on every rank.

    The ranks are forks that compute at the same time with one thread each, as training ranks do.
    The pass does a few hundred small operators and some products that fill a core; it stands for
    no model, only ratios of its times mean something.

    Args:
        ranks: Processes.
    """
    context = get_context("fork")
    pipes: list[Connection] = []
    processes = []
    barrier = context.Barrier(ranks)
    for _ in range(ranks):
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_time, args=(theirs, barrier.wait), daemon=True)
        process.start()
        theirs.close()
        pipes.append(ours)
        processes.append(process)
    seconds = [pipe.recv() for pipe in pipes]
    for process in processes:
        process.join()
    return median(seconds)


def _time(pipe: Connection, align: Callable[[], object]) -> None:
    torch.set_num_threads(1)
    step = network_step()
    for _ in range(3):
        step()
    align()
    rounds = []
    for _ in range(_ROUNDS):
        started = time.perf_counter()
        step()
        rounds.append(time.perf_counter() - started)
    pipe.send(quantile(rounds, _LOW))
    os._exit(0)
