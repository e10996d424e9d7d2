"""bench(): run many plans of a task and see how right the planner was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from autopar.api.clusters import Progress, resolve_cluster
from autopar.api.places import REPORTS, bench_folder, slug
from autopar.api.plan_options import PlanOptions
from autopar.api.planning import resolve_profile
from autopar.api.profiling import load_task
from autopar.api.running import load_plan, run
from autopar.cluster import Cluster
from autopar.core.errors import AutoparError, EnvironmentUnableError, InputError, TrainingError
from autopar.core.provenance import provenance
from autopar.core.stats import COUNTED_QUANTILE, median, quantile
from autopar.graph import GraphProfile
from autopar.results import RankedPlan, RunRecord
from autopar.results.bench import BenchResult, BenchRow
from autopar.tasks import Task


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """Which plans are run, and how often; fields as the arguments of :func:`bench`.

    Raises:
        InputError: A word of ``plans`` names none.
    """

    plans: Sequence[str] = ("spread:6",)
    global_batch: int | None = None
    steps: int = 20
    warmup: int = 3
    repeats: int = 2
    fix: Sequence[str] = ()

    def __post_init__(self) -> None:
        for text in self.plans:
            kind, _, number = text.partition(":")
            counted = kind in ("top", "spread") and number.isdigit() and int(number) > 0
            if not counted and Path(text).suffix != ".json":
                raise InputError(
                    f"--plans {text} names no plans", hint="use top:N, spread:N or plan files"
                )


@dataclass(kw_only=True)
class _Launches:
    """What the launches of one plan gave: step times, largest peak, why one failed."""

    times_s: list[float] = field(default_factory=list)
    peak_bytes: float | None = None
    failure: str | None = None
    slowdowns: list[float] = field(default_factory=list)

    def add(self, record: RunRecord) -> None:
        self.times_s += record.step_times_s
        self.peak_bytes = max(self.peak_bytes or 0.0, *record.peak_memory_bytes)
        if record.slowdown is not None:
            self.slowdowns.append(record.slowdown)


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
        out: File to write the result to; ``bench.json`` in a fresh folder under ``reports/``,
            beside the runs, by default.
        progress: ``progress(stage, done, total)``.

    Raises:
        InputError: A name or number is wrong.
        TrainingError: Every run failed.
    """
    wanted = BenchOptions(
        plans=plans,
        global_batch=global_batch,
        steps=steps,
        warmup=warmup,
        repeats=repeats,
        fix=fix,
    )
    return bench_stored(task, cluster, wanted, out=out, progress=progress)[0]


def bench_stored(
    task: Task | str,
    cluster: Cluster | str | Path,
    wanted: BenchOptions,
    *,
    out: Path | str | None = None,
    progress: Progress | None = None,
) -> tuple[BenchResult, Path]:
    """:func:`bench`, with the file it wrote."""
    job = load_task(task)
    where = resolve_cluster(cluster, progress=progress)
    if not where.measured:
        raise EnvironmentUnableError(
            f"cluster '{where.name}' is not this host: bench runs plans here",
            hint="use --cluster local:2, or `autopar plan` for other machines",
        )
    what, _ = resolve_profile(job, where, progress=progress)
    chosen = _choose(wanted, what, where)
    parent = Path(out).parent if out is not None else REPORTS
    folder = bench_folder(job.name, [item.plan.hash for item in chosen], parent)
    found = _launch(chosen, job, wanted, folder, progress)
    if all(one.failure for one in found):
        raise TrainingError(
            f"every plan failed; the first: {found[0].failure}", hint=f"see {folder}"
        )
    rows = [_row(item, one) for item, one in zip(chosen, found, strict=True)]
    result = BenchResult(
        task=job.name, cluster=where.name, rows=tuple(rows), provenance=provenance()
    )
    path = Path(out) if out is not None else folder / "bench.json"
    result.save(path)
    return result, path


def _launch(
    chosen: Sequence[RankedPlan],
    job: Task,
    wanted: BenchOptions,
    folder: Path,
    progress: Progress | None,
) -> list[_Launches]:
    """Run every plan in turn, and all of them again; a plan that failed is left out."""
    found = [_Launches() for _ in chosen]
    for launch in range(wanted.repeats):
        for i, item in enumerate(chosen):
            if found[i].failure is not None:
                continue
            try:
                record = run(
                    item.plan.with_predicted(item.price.to_dict()),
                    job,
                    steps=wanted.steps,
                    warmup=wanted.warmup,
                    out=folder / f"{i}-{slug(item.name)}-{launch}",
                    report=launch == 0,
                )
            except AutoparError as error:
                found[i].failure = error.message
                continue
            found[i].add(record)
            if progress is not None:
                done = launch * len(chosen) + i + 1
                progress("measured plans", done, wanted.repeats * len(chosen))
    return found


def _choose(wanted: BenchOptions, what: GraphProfile, where: Cluster) -> list[RankedPlan]:
    from autopar.cost import price
    from autopar.search import search, spread

    options = PlanOptions(global_batch=wanted.global_batch, fix=wanted.fix).search()
    chosen: list[RankedPlan] = []
    for text in wanted.plans:
        kind, _, number = text.partition(":")
        if kind == "top":
            ranked = search(what, where, replace(options, top=int(number))).top
            chosen += ranked[: int(number)]
        elif kind == "spread":
            chosen += spread(what, where, options, int(number))
        else:
            plan, _ = load_plan(text)
            chosen.append(RankedPlan(plan=plan, price=price(plan, what, where)))
    return chosen


def _row(item: RankedPlan, found: _Launches) -> BenchRow:
    step, times = item.price.step_time_s, found.times_s
    return BenchRow(
        plan=item.plan.with_predicted(item.price.to_dict()),
        predicted_s=step.value,
        measured_s=quantile(times, COUNTED_QUANTILE) if times else None,
        measured_median_s=median(times) if times else None,
        predicted_memory_bytes=item.price.peak_memory_bytes.value,
        measured_memory_bytes=found.peak_bytes,
        predicted_low_s=step.low,
        predicted_high_s=step.high,
        failure=found.failure,
        slowdown=median(found.slowdowns) if found.slowdowns else None,
    )
