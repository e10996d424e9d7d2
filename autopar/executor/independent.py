"""Training without meeting: every rank goes its own way between the servers of its weights.

No collective is called in the loop or after it, so a rank that is slow holds nobody up and one
that is lost ends nobody. Ranks leave their figures in the run's store; each waits for those of
the others and makes the same record of them.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import timedelta
from statistics import harmonic_mean, mean
from typing import TYPE_CHECKING, Any

from torch._C._distributed_c10d import Store

from autopar.core.errors import TrainingError
from autopar.core.provenance import provenance
from autopar.executor.checkpointing.checkpoint import Checkpoints
from autopar.executor.lowering import Context, Lowering
from autopar.executor.measuring.breakdown import breakdown, timeline
from autopar.executor.measuring.clock import Span
from autopar.executor.measuring.collector import tidy
from autopar.executor.options import RunOptions
from autopar.executor.processes.progress import ProgressWriter
from autopar.executor.random_state import seed_generators
from autopar.results import RunRecord, VerifyResult

if TYPE_CHECKING:
    from autopar.executor.session import Measurements

_REPORT, _DONE = "autopar/report", "autopar/done"
_LOOK_S = 0.1
_GOODBYE_S = 10.0


def train_alone(
    context: Context,
    lowering: Lowering,
    options: RunOptions,
    checkpoints: Checkpoints,
    start: int,
    found: Measurements,
    progress: ProgressWriter,
    seed: Callable[[Context, int], int],
) -> None:
    """The loop of one rank; times and losses are its own.

    Raises:
        TrainingError: The loss is not finite.
    """
    groups, recorder = context.groups, context.recorder
    count = options.warmup + options.steps
    for step in range(start, start + count):
        batches = context.data.microbatches(step, groups.replica, context.device)
        seed_generators(seed(context, step), context.device)
        recorder.begin()
        loss = lowering.step(batches)
        own_s = recorder.finish()
        known = float(loss) if loss is not None else None
        found.times_s.append(own_s)
        if known is not None:
            found.losses.append(known)
            check_finite(known, step)
        if step - start >= options.warmup:
            found.kept.append((own_s, own_s, recorder.recording(), context.traffic.take()))
        context.traffic.take()
        progress.step(
            step=step - start + 1, of=count, loss=known or float("nan"), step_time_s=own_s
        )
        checkpoints.after_step(step + 1)
        tidy(step + 1)


def check_finite(loss: float, step: int) -> None:
    """Stop when a loss is no number.

    Raises:
        TrainingError: It is not.
    """
    if loss - loss != 0.0:  # infinite or not a number
        raise TrainingError(
            f"the loss of step {step} is {loss}",
            hint="lower the learning rate, or clip gradients with --clip-norm",
        )


def gather_alone(
    context: Context,
    lowering: Lowering,
    options: RunOptions,
    found: Measurements,
    outcome: VerifyResult | None,
    peak_bytes: float,
) -> RunRecord:
    """Leave the servers, put this rank's figures in the store, wait for the others'.

    Step times are harmonic means over ranks: the time in which all together do one step's share
    each. Losses are means over the ranks that lived to the end.

    Raises:
        TrainingError: A rank neither finished nor was lost within the time limit.
    """
    servers, store, rank = lowering.servers, context.store, context.groups.rank
    assert servers is not None
    assert store is not None
    kept = sorted(found.kept, key=lambda row: row[1])
    _, own_s, recording, _ = kept[(len(kept) - 1) // 2]
    servers.drain()
    passed = servers.passed(options.warmup)
    row = {
        "times_s": found.times_s,
        "losses": found.losses,
        "own_s": own_s,
        "spans": [asdict(span) for span in recording.spans()],
        "sent": mean(row[3] for row in kept) + passed.pushed_bytes / options.steps,
        "pulled": {o: size / options.steps for o, size in passed.pulled_bytes.items()},
        "peak_bytes": peak_bytes,
        "warnings": context.warnings,
    }
    store.set(f"{_REPORT}/{rank}", json.dumps(row))
    servers.leave()
    rows: dict[int, dict[str, Any]] = {}
    for other in range(context.groups.world_size):
        if _wait(store, f"{_REPORT}/{other}", other, servers, options.timeout_s):
            rows[other] = json.loads(store.get(f"{_REPORT}/{other}"))
    record = _record(context, options, rows, outcome)
    store.set(f"{_DONE}/{rank}", "")
    if rank == 0:  # the store may live in this process
        for other in rows:
            _wait(store, f"{_DONE}/{other}", other, servers, _GOODBYE_S, must=False)
    servers.close()
    return record


def _wait(
    store: Store, key: str, rank: int, servers: Any, limit_s: float, *, must: bool = True
) -> bool:
    """True when a key is there, False when its rank was lost.

    A rank that still makes steps is waited for, however slow it is.

    Raises:
        TrainingError: It does nothing for ``limit_s``.
    """
    clock, since_s = None, time.monotonic()
    while True:
        try:
            store.wait([key], timedelta(seconds=_LOOK_S))
            return True
        except RuntimeError:
            pass
        progress = servers.progress_of(rank)
        if progress in ("lost", "gone"):  # a rank reports before it leaves
            return store.check([key])
        if progress != clock:
            clock, since_s = progress, time.monotonic()
        if time.monotonic() - since_s > limit_s:
            if not must:
                return False
            raise TrainingError(
                f"rank {rank} stopped answering; it made no step for {limit_s:g} s",
                hint="it hangs or is very slow; allow more with timeout_s if it is only slow",
            )


def _record(
    context: Context,
    options: RunOptions,
    rows: dict[int, dict[str, Any]],
    outcome: VerifyResult | None,
) -> RunRecord:
    world = range(context.groups.world_size)
    lost = [rank for rank in world if rank not in rows]
    warnings = [
        f"rank {rank} was lost while training; the others went on, its figures are zero"
        for rank in lost
    ]
    warnings += [text for row in rows.values() for text in row["warnings"]]
    spans: list[Sequence[Span]] = [
        [Span(**span) for span in rows[rank]["spans"]] if rank in rows else [] for rank in world
    ]
    last = max(rows, key=lambda rank: rows[rank]["own_s"])
    times_s = [harmonic_mean(column) for column in zip(*_column(rows, "times_s"), strict=True)]
    losses = [mean(column) for column in zip(*filter(None, _column(rows, "losses")), strict=True)]
    return RunRecord(
        plan=context.plan,
        step_times_s=tuple(times_s[options.warmup :]),
        warmup_step_times_s=tuple(times_s[: options.warmup]),
        losses=tuple(losses),
        breakdown=breakdown(context.plan, spans, last, rows[last]["own_s"]),
        peak_memory_bytes=tuple(_figure(rows, rank, "peak_bytes") for rank in world),
        timeline=timeline(spans),
        verify=outcome,
        bytes_sent=tuple(_sent(rows, rank) for rank in world),
        warnings=tuple(dict.fromkeys(warnings)),
        provenance=provenance(),
    )


def _column(rows: dict[int, dict[str, Any]], key: str) -> list[list[float]]:
    return [row[key] for row in rows.values()]


def _figure(rows: dict[int, dict[str, Any]], rank: int, key: str) -> float:
    return float(rows[rank][key]) if rank in rows else 0.0


def _sent(rows: dict[int, dict[str, Any]], rank: int) -> float:
    """Bytes per step of a rank: what it pushed, and what others pulled from the server there.

    What a lost rank pulled is not known.
    """
    pulled = math.fsum(row["pulled"].get(str(rank), 0.0) for row in rows.values())
    return _figure(rows, rank, "sent") + pulled
