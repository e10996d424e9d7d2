"""bench(): run many plans of a task and see how right the planner was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from autopar.api.clusters import Progress, resolve_cluster
from autopar.api.places import REPORTS, slug
from autopar.api.plan_options import PlanOptions
from autopar.api.planning import resolve_profile
from autopar.api.profiling import load_task
from autopar.api.running import load_plan, run
from autopar.cluster import Cluster
from autopar.core.errors import AutoparError, EnvironmentUnableError, InputError, TrainingError
from autopar.core.io import content_hash
from autopar.core.stats import median, quantile
from autopar.graph import GraphProfile
from autopar.results import RankedPlan
from autopar.results.bench import BenchResult, BenchRow
from autopar.tasks import Task

COUNTED_QUANTILE = 0.25
"""Quantile of the step times that counts, in profiling too: other programs only add time."""


def bench(
    task: Task | str,
    cluster: Cluster | str | Path = "local",
    *,
    plans: Sequence[str] = ("spread:6",),
    global_batch: int | None = None,
    steps: int = 20,
    warmup: int = 3,
    repeats: int = 2,
    fix: Sequence[str] = (),
    out: Path | str | None = None,
    progress: Progress | None = None,
) -> BenchResult:
    """Price and run several plans; compare prediction and measurement.

    Args:
        task: A task or target string.
        cluster: The cluster the runs happen on; ``local[:ranks]`` or its measured file.
        plans: ``top:N`` (the best N), ``spread:N`` (N plans spread over the predicted ranking)
            or plan files.
        global_batch: Samples per optimizer step.
        steps: Measured steps per run.
        warmup: Steps before measuring.
        repeats: Launches per plan, in rotating order so that drift of the machine hits all plans
            alike; the lower quartile of the steps of all launches counts, as in profiling.
        fix: ``axis=value`` constraints.
        out: File to write the result to; under ``reports/`` by default.
        progress: ``progress(stage, done, total)``.

    Raises:
        InputError: A name or number is wrong.
        TrainingError: Every run failed.
    """
    _check_words(plans)
    job = load_task(task)
    where = resolve_cluster(cluster, progress=progress)
    if not where.measured:
        raise EnvironmentUnableError(
            f"cluster '{where.name}' is not this host: bench runs plans here",
            hint="use --cluster local:2, or `autopar plan` for other machines",
        )
    what, _ = resolve_profile(job, where, progress=progress)
    chosen = _choose(plans, what, where, global_batch, fix)
    folder = Path(out).parent if out is not None else REPORTS
    name = f"bench-{slug(job.name)}-{content_hash([c.plan.hash for c in chosen])[:6]}"
    times: dict[int, list[float]] = {i: [] for i in range(len(chosen))}
    memory: dict[int, float] = {}
    failures: dict[int, str] = {}
    for launch in range(repeats):
        for i, item in enumerate(chosen):
            if i in failures:
                continue
            try:
                record = run(
                    item.plan.with_predicted(item.price.to_dict()),
                    job,
                    steps=steps,
                    warmup=warmup,
                    out=folder / name / f"{i}-{slug(item.name)}-{launch}",
                    report=launch == 0,
                )
            except AutoparError as error:
                failures[i] = error.message
                continue
            times[i] += record.step_times_s
            memory[i] = max(memory.get(i, 0.0), *record.peak_memory_bytes)
            if progress is not None:
                progress("measured plans", launch * len(chosen) + i + 1, repeats * len(chosen))
    if len(failures) == len(chosen):
        raise TrainingError(f"every plan failed; the first: {failures[0]}", hint=f"see {folder}")
    rows = [_row(item, times[i], memory.get(i), failures.get(i)) for i, item in enumerate(chosen)]
    result = make_result(job, where, rows)
    result.save(Path(out) if out is not None else folder / name / "bench.json")
    return result


def _check_words(plans: Sequence[str]) -> None:
    for text in plans:
        kind, _, number = text.partition(":")
        counted = kind in ("top", "spread") and number.isdigit() and int(number) > 0
        if not counted and Path(text).suffix != ".json":
            raise InputError(
                f"--plans {text} names no plans", hint="use top:N, spread:N or plan files"
            )


def _choose(
    plans: Sequence[str],
    what: GraphProfile,
    where: Cluster,
    global_batch: int | None,
    fix: Sequence[str],
) -> list[RankedPlan]:
    from autopar.cost import price
    from autopar.search import search, spread

    options = PlanOptions(global_batch=global_batch, fix=fix).search()
    chosen: list[RankedPlan] = []
    for text in plans:
        kind, _, number = text.partition(":")
        if kind == "top":
            wanted = replace(options, top=int(number))
            chosen += search(what, where, wanted).top[: int(number)]
        elif kind == "spread":
            chosen += spread(what, where, options, int(number))
        else:
            plan, _ = load_plan(text)
            chosen.append(RankedPlan(plan=plan, price=price(plan, what, where)))
    return chosen


def _row(
    item: RankedPlan, times: list[float], memory: float | None, failure: str | None
) -> BenchRow:
    step = item.price.step_time_s
    return BenchRow(
        plan=item.plan.with_predicted(item.price.to_dict()),
        predicted_s=step.value,
        measured_s=quantile(times, COUNTED_QUANTILE) if times else None,
        measured_median_s=median(times) if times else None,
        predicted_memory_bytes=item.price.peak_memory_bytes.value,
        measured_memory_bytes=memory,
        predicted_low_s=step.low,
        predicted_high_s=step.high,
        failure=failure,
    )


def make_result(job: Task, where: Cluster, rows: list[BenchRow]) -> BenchResult:
    """The rows with their summary figures and provenance."""
    from autopar.core.provenance import provenance

    facts: dict[str, Any] = provenance()
    return BenchResult(task=job.name, cluster=where.name, rows=tuple(rows), provenance=facts)
