"""A run as one rank sees it: build, verify, train, measure, gather the record."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import Store

from autopar.core.provenance import provenance
from autopar.core.stats import median
from autopar.executor.ahead import Ahead
from autopar.executor.checkpointing.checkpoint import Checkpoints
from autopar.executor.data import Microbatch, ReplicaData
from autopar.executor.independent import check_finite, gather_alone, train_alone
from autopar.executor.lowering import Context, Lowering, lower
from autopar.executor.measuring.breakdown import breakdown, timeline
from autopar.executor.measuring.clock import Recorder, Recording, clock_for
from autopar.executor.measuring.collector import quiet_collector, tidy
from autopar.executor.measuring.memory import PeakMemory
from autopar.executor.measuring.traffic import Traffic
from autopar.executor.mesh_groups import MeshGroups
from autopar.executor.options import RunOptions
from autopar.executor.processes.progress import ProgressWriter
from autopar.executor.random_state import seed_generators
from autopar.executor.server.roles import ServerLink
from autopar.executor.verifying.verify import verify
from autopar.plans import Plan
from autopar.profiler.pace import Pace
from autopar.results import RunRecord, VerifyResult
from autopar.tasks import Task

_KEPT_STEPS = 64
_PACE_SAMPLES = 16
_RANK_STRIDE = 7919
_STEP_STRIDE = 1_000_003


@dataclass(kw_only=True)
class Measurements:
    """What the loop collects on this rank.

    Attributes:
        times_s: Time of each step, slowest rank, warm-up included.
        losses: Mean loss of each step.
        kept: The last measured steps: time on the slowest rank, on this rank, marks, bytes sent.
        sent_bytes: What this rank sent in all measured steps; some modes send in few of them.
        pace: How fast the host was between the steps.
    """

    times_s: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    kept: deque[tuple[float, float, Recording, float]] = field(
        default_factory=lambda: deque(maxlen=_KEPT_STEPS)
    )
    sent_bytes: float = 0.0
    pace: Pace = field(default_factory=Pace)


@dataclass(frozen=True, kw_only=True)
class Handed:
    """What a launcher gives a rank besides its job.

    Attributes:
        warnings: For the record.
        store: Where ranks find each other; needed with parameter servers.
        link: The parameter server beside this rank, for plans with servers.
        ahead: The model and its graph, if the launcher made them.
    """

    warnings: Sequence[str] = ()
    store: Store | None = None
    link: ServerLink | None = None
    ahead: Ahead | None = None


def run_session(
    plan: Plan,
    task: Task,
    options: RunOptions,
    device: torch.device,
    progress: ProgressWriter,
    handed: Handed,
) -> RunRecord:
    """Run a plan on this rank; the default process group spans the plan's world.

    Args:
        plan: The plan.
        task: The task.
        options: The run's options.
        device: Device of this rank.
        progress: Where rank 0 tells what happens.
        handed: What the launcher gave this rank.

    Returns:
        The record, the same on every rank.

    Raises:
        InputError: Plan, task and options do not fit each other.
        TrainingError: The loss is not finite.
    """
    plan, task = _overridden(plan, task, options)
    context = make_context(
        plan, task, device, handed.store, handed.link, options.node_size, ahead=handed.ahead
    )
    context.warnings.extend(handed.warnings)
    memory = PeakMemory(device)
    progress.phase(f"building {plan.name} on {plan.world_size} x {device.type}")
    lowering = lower(context)
    outcome = None
    if options.verify:
        progress.phase("verifying against one process")
        if lowering.servers is not None:
            lowering.servers.begin(0)
        outcome = verify(context, lowering, options.tolerance)
    checkpoints = Checkpoints(context, lowering, options)
    start = checkpoints.resume()
    if lowering.servers is not None:
        lowering.servers.begin(start)
    context.traffic.take()
    dist.barrier(group=context.groups.control)
    memory.reset()
    lowering.synchroniser.begin(start, start + options.warmup + options.steps)
    with quiet_collector():
        found = _train(context, lowering, options, checkpoints, start, progress)
    return _finish(context, lowering, options, found, outcome, memory)


def _overridden(plan: Plan, task: Task, options: RunOptions) -> tuple[Plan, Task]:
    """Plan and task with what the options replace of them."""
    plan = replace(
        plan,
        data_split=options.data_split or plan.data_split,
        clip_norm=options.clip_norm if options.clip_norm is not None else plan.clip_norm,
    )
    if options.sampler is not None:
        task = replace(task, sampler=options.sampler)
    return plan, task


def _finish(
    context: Context,
    lowering: Lowering,
    options: RunOptions,
    found: Measurements,
    outcome: VerifyResult | None,
    memory: PeakMemory,
) -> RunRecord:
    """Let synchroniser and servers go, and gather what all ranks found."""
    _tell_uneven(context, lowering, options, found)
    lowering.synchroniser.finish()
    lowering.synchroniser.close()
    if memory.warning:
        context.warnings.append(memory.warning)
    if lowering.independent:
        return gather_alone(context, lowering, options, found, outcome, memory.peak_bytes())
    if lowering.servers is not None:
        lowering.servers.leave()
        lowering.servers.close()
    return _record(context, options, found, outcome, memory.peak_bytes())


def make_context(
    plan: Plan,
    task: Task,
    device: torch.device,
    store: Store | None = None,
    link: ServerLink | None = None,
    node_size: int | None = None,
    recorder: Recorder | None = None,
    ahead: Ahead | None = None,
) -> Context:
    """Everything the parts of a run share."""
    return Context(
        plan=plan,
        task=task,
        groups=MeshGroups(plan),
        device=device,
        data=ReplicaData(
            task,
            seed=plan.seed,
            split=plan.data_split,
            microbatches=plan.microbatches,
            shares=[plan.replica_microbatch(r) for r in range(plan.mesh.replicas)],
        ),
        recorder=recorder or Recorder(clock_for(device)),
        traffic=Traffic(),
        store=store,
        link=link,
        node_size=node_size or plan.world_size,
        ahead=ahead,
    )


def _train(
    context: Context,
    lowering: Lowering,
    options: RunOptions,
    checkpoints: Checkpoints,
    start: int,
    progress: ProgressWriter,
) -> Measurements:
    """All steps of a run, warm-up included."""
    if lowering.independent:
        found = Measurements()
        train_alone(context, lowering, options, checkpoints, start, found, progress, step_seed)
        return found
    steps = range(start, start + options.warmup + options.steps)
    loop = Loop(context, lowering, steps, warmup=options.warmup)
    paced = _paced(steps[options.warmup :], context.device)
    for step in steps:
        time_s, loss = loop.step(step)
        if step in paced:
            loop.found.pace.sample()
            dist.barrier(group=context.groups.control)
        progress.step(step=step - start + 1, of=len(steps), loss=loss, step_time_s=time_s)
        check_finite(loss, step)
        saved = checkpoints.after_step(step + 1)
        if tidy(step + 1) or saved:
            dist.barrier(group=context.groups.control)
    return loop.found


def _paced(steps: range, device: torch.device) -> range:
    """Steps after which the pace of a CPU host is sampled, evenly spread."""
    every = max(1, len(steps) // _PACE_SAMPLES)
    return steps[::every] if device.type == "cpu" else range(0)


class Loop:
    """The training loop of one rank, step by step; collective over the world.

    A step is timed from its start to its end on the slowest rank. The ranks meet where they tell
    each other their times and losses, and start the next step together. Its batch is made before:
    a loader would do that while the last step runs.

    Args:
        context: The run.
        lowering: What is trained.
        steps: Which steps, in order.
        warmup: So many of the first are not kept.

    Attributes:
        found: What was measured.
    """

    def __init__(
        self, context: Context, lowering: Lowering, steps: range, *, warmup: int = 0
    ) -> None:
        self.found = Measurements()
        self._context = context
        self._lowering = lowering
        self._steps = steps
        self._kept_from = steps.start + warmup
        self._batches = self._make(steps.start)
        dist.barrier(group=context.groups.control)

    def _make(self, step: int) -> list[Microbatch]:
        context = self._context
        return context.data.microbatches(step, context.groups.replica, context.device)

    def step(self, step: int) -> tuple[float, float]:
        """One step; returns its seconds on the slowest rank and the mean loss over replicas."""
        context, found, recorder = self._context, self.found, self._context.recorder
        seed_generators(step_seed(context, step), context.device)
        recorder.begin()
        loss = self._lowering.step(self._batches)
        own_s = recorder.finish()
        if step + 1 in self._steps:
            self._batches = self._make(step + 1)
        slowest_s, mean_loss = _share(context, own_s, loss)
        sent = context.traffic.take()
        found.times_s.append(slowest_s)
        found.losses.append(mean_loss)
        if step >= self._kept_from:
            found.kept.append((slowest_s, own_s, recorder.recording(), sent))
            found.sent_bytes += sent
        return slowest_s, mean_loss


def step_seed(context: Context, step: int) -> int:
    """Dropout's seed: another one each step, part of the data and stage; the same after a resume.

    Tensor parallel ranks of one replica and stage share it, as they compute some ops alike; ops
    that work on a rank's part draw apart on their own.
    """
    groups = context.groups
    mesh = context.plan.mesh
    place = (groups.replica * mesh.cp + groups.coordinates["cp"]) * mesh.pp + groups.pp
    mixed = (context.plan.seed * _STEP_STRIDE + step) * _RANK_STRIDE + place
    return mixed % 2**63


def _tell_uneven(
    context: Context, lowering: Lowering, options: RunOptions, found: Measurements
) -> None:
    """Predictions are means over a period, a median step has no average in it."""
    period, times = lowering.synchroniser.period, found.times_s[options.warmup :]
    if period > 1 and times:
        context.warnings.append(
            f"'{context.plan.sync}' averages every {period} steps: the mean step took "
            f"{sum(times) / len(times):.3g} s, the median {median(times):.3g} s; a predicted step "
            "is a mean"
        )


def _share(context: Context, own_s: float, loss: torch.Tensor | None) -> tuple[float, float]:
    """Step time on the slowest rank and loss over all replicas, from one small all-gather."""
    size = context.groups.world_size
    known = loss is not None
    mine = torch.tensor(
        [own_s, float(loss) if loss is not None else 0.0, float(known)], dtype=torch.float64
    )
    rows = [torch.empty_like(mine) for _ in range(size)]
    dist.all_gather(rows, mine, group=context.groups.control)
    times_s, losses, knows = zip(*(row.tolist() for row in rows), strict=True)
    return max(times_s), sum(losses) / sum(knows)


def _record(
    context: Context,
    options: RunOptions,
    found: Measurements,
    outcome: VerifyResult | None,
    peak_bytes: float,
) -> RunRecord:
    """Gather every rank's figures; the step of median time stands for all, bytes are means."""
    order = sorted(range(len(found.kept)), key=lambda i: found.kept[i][0])
    typical_s, own_s, recording, _ = found.kept[order[(len(order) - 1) // 2]]
    sent = found.sent_bytes / options.steps
    mine = (own_s, recording.spans(), sent, peak_bytes, context.warnings, found.pace.seconds)
    rows: list[Any] = [None] * context.groups.world_size
    dist.all_gather_object(rows, mine, group=context.groups.control)
    all_spans = [row[1] for row in rows]
    last = max(range(len(rows)), key=lambda rank: rows[rank][0])
    warnings = list(dict.fromkeys(text for row in rows for text in row[4]))
    paces = [row[5] for row in rows if row[5] is not None]
    return RunRecord(
        plan=context.plan,
        step_times_s=tuple(found.times_s[options.warmup :]),
        warmup_step_times_s=tuple(found.times_s[: options.warmup]),
        losses=tuple(found.losses),
        breakdown=breakdown(context.plan, all_spans, last, typical_s),
        peak_memory_bytes=tuple(row[3] for row in rows),
        timeline=timeline(all_spans),
        verify=outcome,
        bytes_sent=tuple(row[2] for row in rows),
        warnings=tuple(warnings),
        provenance={**provenance(), "pace_s": median(paces) if paces else None},
    )
