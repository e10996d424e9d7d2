"""bench --convergence: short runs of the real task say what a sync mode costs in steps."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean

from autopar.api.clusters import Progress, default_ranks
from autopar.api.places import convergence_path, convergence_paths
from autopar.api.profiling import load_task
from autopar.core.errors import AutoparError, InputError, TrainingError
from autopar.core.estimate import Estimate
from autopar.core.io import content_hash
from autopar.core.learning import smoothed, steps_to
from autopar.core.provenance import provenance
from autopar.core.stats import median
from autopar.graph import GraphProfile
from autopar.plans import Mesh, Plan, Stage
from autopar.results import ConvergenceResult, ConvergenceRow, RunRecord
from autopar.sync import Sync, parse_sync
from autopar.tasks import Task

EXACT = "all_reduce"
SAMPLES_PER_RANK = 8
"""Samples of a rank in each step, unless a global batch is given: as profiles have."""
SLACK = 3.0
"""A mode may take so many times the steps of exact training, unless told otherwise."""
FIRST_TRY = 1.5
"""Length of a mode's first run, in steps that exact training needs to the loss. Twice as long a
one follows when the loss was missed, and so on up to the slack."""
PHASED_TRIES = (1.0, 1.25)
"""First lengths for modes that divide the run they are in into phases: what such a mode does by
the time it reaches the loss is what it will do in training only when the run ends soon after."""
SMOOTHED_SHARE = 0.1
"""Share of the probe that one smoothed loss averages over ..."""
LEAST_WINDOW = 5
"""... but so many steps at least."""


def measure_convergence(
    task: Task | str,
    *,
    sync: str | None = None,
    ranks: int | None = None,
    global_batch: int | None = None,
    target_loss: float | None = None,
    probe_steps: int = 200,
    seeds: int = 3,
    slack: float = SLACK,
    node_size: int | None = None,
    out: Path | str | None = None,
    progress: Progress | None = None,
) -> tuple[ConvergenceResult, Path]:
    """Train with exact synchronisation and with each sync mode; compare steps to the same loss.

    Every seed is other weights and other data, the same for each mode. The result is stored where
    ``plan --objective time-to-target`` finds it.

    Args:
        task: A task or target string.
        sync: Modes, joined by commas; by default every registered mode, and all-reduce with every
            compression.
        ranks: Replicas; CUDA devices of this host if any, else 2.
        global_batch: Samples per step, 8 per replica by default.
        target_loss: Smoothed training loss to reach. By default the one that the task states; if
            it states none, or exact training does not reach it within the probe, the loss that
            exact training ends the probe with.
        probe_steps: Steps of exact training.
        seeds: Runs of each mode.
        slack: Times the steps of exact training to the loss that a mode may take; it is tried
            with shorter runs first.
        node_size: Ranks that count as one node of hierarchical averaging; all by default.
        out: File to write; under ``profiles/`` by default.
        progress: ``progress(stage, done, total)``.

    Returns:
        What was measured, and its file.

    Raises:
        InputError: A name or number is wrong.
        TrainingError: Exact training fails or does not learn.
    """
    job = load_task(task)
    count = ranks if ranks is not None else default_ranks()
    batch = global_batch if global_batch is not None else SAMPLES_PER_RANK * count
    window = max(LEAST_WINDOW, round(SMOOTHED_SHARE * probe_steps))
    _check(count, batch, probe_steps, window, seeds, slack)
    names = _names(sync)
    with tempfile.TemporaryDirectory(prefix="autopar-") as folder:
        probe = _Probe(
            job, _base_plan(job, count, batch), Path(folder), seeds, len(names) + 1, progress
        )
        probe.node_size = node_size or count
        exact = []
        for seed in range(seeds):
            exact.append(probe.run(EXACT, seed, probe_steps))
            probe.told(EXACT)
        target, warnings = _target([r.losses for r in exact], job, target_loss, window)
        own = [_steps(record, target, window) for record in exact]
        goal = _Goal(target=target, window=window, exact_steps=own, slack=slack)
        rows = [_row(EXACT, exact, own, goal)]
        rows += [_measure(name, probe, goal) for name in names if name != EXACT]
    result = ConvergenceResult(
        task=job.name,
        key=task_key(probe.plan.task.fingerprint, job.target),
        ranks=count,
        global_batch=batch,
        target_loss=target,
        window=window,
        probe_steps=probe_steps,
        seeds=seeds,
        rows=tuple(rows),
        warnings=tuple(warnings),
        provenance=provenance(),
    )
    path = Path(out) if out is not None else convergence_path(job.name, result.key, count)
    if path.is_file():
        result = result.joined(ConvergenceResult.load(path))
    result.save(path)
    return result, path


def task_key(fingerprint: str, target: str | None) -> str:
    """What measured multipliers belong to: the graph and the options of the task."""
    return content_hash([fingerprint, target])[:8]


def with_convergence(profile: GraphProfile) -> GraphProfile:
    """The profile with the steps multipliers that were measured on its task, if any.

    Raises:
        InputError: A stored file is damaged.
    """
    paths = convergence_paths(task_key(profile.fingerprint, profile.target))
    found = tuple(ConvergenceResult.load(path).convergence for path in paths)
    return replace(profile, convergence=found) if found else profile


@dataclass(frozen=True, kw_only=True)
class _Goal:
    """What a mode has to reach.

    Attributes:
        target: Smoothed loss.
        window: Losses in it.
        exact_steps: Steps of exact training to it, by seed.
        slack: Most steps of a mode, over those of exact training.
    """

    target: float
    window: int
    exact_steps: Sequence[float]
    slack: float = SLACK

    def lengths(self, sync: Sync, seed: int) -> list[int]:
        """Steps of the runs that a mode is tried with, ascending.

        Multiples of what the mode repeats, so that a run holds as many averages as it declares.
        """
        mode = sync.mode
        ladder = list(PHASED_TRIES) if mode.divides_run else []
        factor = FIRST_TRY
        while factor < self.slack:
            ladder.append(factor)
            factor *= 2
        ladder = [*(each for each in ladder if each < self.slack), self.slack]
        period = getattr(mode, "period", 1) * (2 if mode.divides_run else 1)
        steps = [factor * self.exact_steps[seed] + self.window for factor in ladder]
        return [math.ceil(each / period) * period for each in steps]


@dataclass
class _Probe:
    """Runs of one task that differ in sync mode and seed only."""

    task: Task
    plan: Plan
    folder: Path
    seeds: int
    modes: int
    progress: Progress | None
    done: int = field(default=0)
    node_size: int = 1

    def with_sync(self, name: str) -> Plan:
        """The plan with a sync mode."""
        return replace(self.plan, sync=name)

    def run(self, name: str, seed: int, steps: int) -> RunRecord:
        """One run.

        Raises:
            AutoparError: It failed.
        """
        import torch

        from autopar.executor import RunOptions, run_plan

        forks = hasattr(os, "fork") and not torch.cuda.is_available()
        options = RunOptions(
            out=self.folder / f"{name.replace(':', '-')}-{seed}",
            steps=steps,
            warmup=0,
            quiet=True,
            node_size=self.node_size,
            launcher="fork" if forks or self.task.target is None else "torchrun",
        )
        return run_plan(replace(self.with_sync(name), seed=seed), self.task, options)

    def told(self, name: str) -> None:
        """One more seed of a mode is done."""
        self.done += 1
        if self.progress is not None:
            self.progress(f"{name} trained", self.done, self.modes * self.seeds)


def _check(
    ranks: int, batch: int, probe_steps: int, window: int, seeds: int, slack: float
) -> None:
    if ranks < 2:
        raise InputError(
            f"{ranks} rank has nobody to synchronise with", hint="use --ranks 2 or more"
        )
    if batch < 1 or batch % ranks:
        raise InputError(
            f"global batch {batch} does not spread over {ranks} ranks",
            hint=f"use a multiple of {ranks}",
        )
    if probe_steps < 2 * window:
        raise InputError(
            f"probe of {probe_steps} steps is too short to see a loss fall",
            hint=f"use --probe-steps {4 * LEAST_WINDOW} or more",
        )
    if seeds < 1:
        raise InputError(f"seeds is {seeds}, it must be at least 1", hint="use --seeds 3")
    if not 1.0 <= slack < math.inf:
        raise InputError(
            f"slack is {slack:g}, it must be at least 1", hint=f"use --slack {SLACK:g}"
        )


def _names(sync: str | None) -> tuple[str, ...]:
    from autopar.search import SearchOptions

    return SearchOptions(objective="time-to-target", sync=sync or "any").sync_modes()


def _base_plan(job: Task, ranks: int, batch: int) -> Plan:
    """Replicas with exact synchronisation, one microbatch each."""
    from autopar.trace import trace

    traced = trace(job, batch // ranks, device="meta")
    count = len(traced.nodes)
    return Plan(
        task=traced.reference,
        mesh=Mesh(dp_replicate=ranks),
        stages=(Stage(first_op=0, stop_op=count, pp=0),),
        microbatch_size=batch // ranks,
        threads=1,
        cluster=f"local:{ranks}",
    )


def _target(
    exact: Sequence[Sequence[float]], job: Task, wanted: float | None, window: int
) -> tuple[float, list[str]]:
    """The loss to reach, and what to know about it.

    Raises:
        TrainingError: Exact training does not learn.
        InputError: It does not reach the loss that the user names.
    """
    curves = [smoothed(losses, window) for losses in exact]
    worst_start, worst_end = max(c[0] for c in curves), max(c[-1] for c in curves)
    worst_best = max(min(c) for c in curves)
    steps = len(exact[0])
    if wanted is not None and worst_best > wanted:
        raise InputError(
            f"exact training reaches loss {worst_best:.4g} in {steps} steps, not {wanted:.4g}",
            hint="raise --probe-steps or --target-loss",
        )
    if wanted is not None:
        return wanted, []
    if job.target_loss is not None and worst_best <= job.target_loss:
        return job.target_loss, []
    if not worst_end < worst_start:
        raise TrainingError(
            f"the loss of '{job.name}' does not fall in {steps} steps "
            f"({worst_start:.4g} to {worst_end:.4g})",
            hint="raise --probe-steps, or check learning rate and data of the task",
        )
    if job.target_loss is None:
        return worst_end, []
    missed = (
        f"exact training does not reach the task's loss {job.target_loss:.4g} in {steps} steps; "
        f"multipliers are those to {worst_end:.4g}"
    )
    return worst_end, [missed]


def _measure(name: str, probe: _Probe, goal: _Goal) -> ConvergenceRow:
    """A mode with every seed."""
    refusal = _refusal(name, probe)
    semantics = parse_sync(name).semantics
    if refusal is not None:
        return ConvergenceRow(name=name, semantics=semantics, status="not run", reason=refusal)
    rare = _too_rare(name, goal)
    if rare is not None:
        return ConvergenceRow(name=name, semantics=semantics, status="too rare", reason=rare)
    records: list[RunRecord] = []
    for seed in range(probe.seeds):
        try:
            records.append(_run_to(name, probe, goal, seed))
        except TrainingError as error:
            return ConvergenceRow(
                name=name, semantics=semantics, status="not reached", reason=error.message
            )
        except AutoparError as error:
            return ConvergenceRow(
                name=name, semantics=semantics, status="not run", reason=error.message
            )
    steps = [steps_to(record.losses, goal.target, goal.window) for record in records]
    return _row(name, records, steps, goal)


def _run_to(name: str, probe: _Probe, goal: _Goal, seed: int) -> RunRecord:
    """The shortest run of a mode that reaches the loss, else the longest one allowed.

    Raises:
        AutoparError: It failed.
    """
    lengths = goal.lengths(parse_sync(name), seed)
    for steps in lengths:
        record = probe.run(name, seed, steps)
        if steps_to(record.losses, goal.target, goal.window) is not None:
            break
    probe.told(name)
    return record


def _refusal(name: str, probe: _Probe) -> str | None:
    """Why a mode cannot be measured here, else ``None``."""
    from autopar.executor.supported import check_supported
    from autopar.sync import SyncGroup

    sync = parse_sync(name)
    try:
        check_supported(probe.with_sync(name))
    except InputError as error:
        return error.message
    ranks = probe.plan.world_size
    return sync.check(SyncGroup(ranks=ranks, nodes=math.ceil(ranks / probe.node_size)))


def _too_rare(name: str, goal: _Goal) -> str | None:
    """Why averages are too far apart to tell what they do on the way to the loss."""
    mode, steps = parse_sync(name).mode, min(goal.exact_steps)
    period = getattr(mode, "period", 1)
    if period <= steps / 2:
        return None
    return (
        f"it averages every {period} steps, exact training needs {steps:.0f} to the loss; "
        f"name a shorter period, {mode.name}:{max(1, int(steps / 8))}"
    )


def _steps(record: RunRecord, target: float, window: int) -> float:
    found = steps_to(record.losses, target, window)
    assert found is not None, "the target is one that every exact run reaches"
    return found


def _row(
    name: str, records: Sequence[RunRecord], steps: Sequence[float | None], goal: _Goal
) -> ConvergenceRow:
    """Figures of a mode's runs."""
    times = [time for record in records for time in record.step_times_s]
    row = ConvergenceRow(
        name=name,
        semantics=parse_sync(name).semantics,
        status="measured",
        steps=tuple(steps),
        step_time_s=fmean(times),
        bytes_per_step=fmean(max(record.bytes_sent) for record in records),
    )

    reached = [found for found in steps if found is not None]
    if len(reached) < len(steps):
        missed = len(steps) - len(reached)
        reason = (
            f"{missed} of {len(steps)} runs do not reach loss {goal.target:.4g} within "
            f"{goal.slack:g} times the steps of exact training"
        )
        return replace(row, status="not reached", reason=reason)
    ratios = [found / own for found, own in zip(reached, goal.exact_steps, strict=True)]
    spent = [
        math.fsum(record.step_times_s[: math.ceil(found)])
        for record, found in zip(records, reached, strict=True)
    ]
    return replace(row, multiplier=_over_seeds(ratios), time_to_loss_s=_over_seeds(spent))


def _over_seeds(values: Sequence[float]) -> Estimate:
    """Median, least and most."""
    return Estimate(value=median(values), low=min(values), high=max(values), source="measured")
