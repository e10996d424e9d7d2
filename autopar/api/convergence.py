"""bench --convergence: short runs of the real task say what a sync mode costs in steps."""

from __future__ import annotations

import math
import tempfile
from dataclasses import replace
from pathlib import Path

from autopar.api.clusters import Progress, default_ranks
from autopar.api.convergence_goal import SLACK, Goal, target_of
from autopar.api.convergence_modes import measure_mode, row_of
from autopar.api.convergence_probe import EXACT, Probe, base_plan
from autopar.api.places import convergence_path, convergence_paths
from autopar.api.profiling import load_task
from autopar.core.errors import InputError
from autopar.core.io import content_hash
from autopar.core.learning import steps_to
from autopar.core.provenance import provenance
from autopar.graph import GraphProfile
from autopar.results import ConvergenceResult, RunRecord
from autopar.tasks import Task

SAMPLES_PER_RANK = 8
"""Samples of a rank in each step, unless a global batch is given: as profiles have."""
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
        probe = Probe(
            job,
            base_plan(job, count, batch),
            Path(folder),
            seeds,
            len(names) + 1,
            progress,
            node_size=node_size or count,
        )
        exact = probe.exact(probe_steps)
        target, warnings = target_of([r.losses for r in exact], job, target_loss, window)
        own = [_steps(record, target, window) for record in exact]
        goal = Goal(target=target, window=window, exact_steps=own, slack=slack)
        rows = [row_of(EXACT, exact, own, goal)]
        rows += [measure_mode(name, probe, goal) for name in names if name != EXACT]
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
    return _stored(result, out)


def _stored(result: ConvergenceResult, out: Path | str | None) -> tuple[ConvergenceResult, Path]:
    """The result, joined with what its file holds of other modes, and the file."""
    place = convergence_path(result.task, result.key, result.ranks)
    path = Path(out) if out is not None else place
    if path.is_file():
        result = result.joined(ConvergenceResult.load(path))
    result.save(path)
    return result, path


def _steps(record: RunRecord, target: float, window: int) -> float:
    found = steps_to(record.losses, target, window)
    assert found is not None, "the target is one that every exact run reaches"
    return found


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
