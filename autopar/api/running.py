"""run(): execute a plan with real processes and measure it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from autopar.api.places import cluster_path, run_folder
from autopar.api.profiling import load_task
from autopar.cluster import Cluster
from autopar.core.errors import InputError
from autopar.core.io import read_json
from autopar.graph import GraphProfile
from autopar.plans import Plan
from autopar.plans.plan import SCHEMA as PLAN_SCHEMA
from autopar.results import RunRecord, SearchResult
from autopar.results.search import SCHEMA as SEARCH_SCHEMA
from autopar.tasks import Task


def load_plan(path: Path | str, *, pick: int = 0) -> tuple[Plan, SearchResult | None]:
    """A plan from a plan file, or the ``pick``-th plan of a search result and that result.

    The JSON that ``plan --json`` prints works too.

    Raises:
        InputError: The file holds neither, or has no such plan.
    """
    data = read_json(Path(path))
    if data.get("schema") == "autopar.envelope.plan" and isinstance(data.get("data"), dict):
        data = {**data["data"], "schema": SEARCH_SCHEMA, "schema_version": 1}
    if data.get("schema") == PLAN_SCHEMA:
        return Plan.from_dict(data, str(path)), None
    if data.get("schema") != SEARCH_SCHEMA:
        raise InputError(
            f"{path} is a '{data.get('schema')}' document, a plan or search result is needed",
            hint="make one with `autopar plan TARGET --out FILE`",
        )
    result = SearchResult.from_dict(data, str(path))
    return _picked(result, pick, str(path)), result


def _picked(result: SearchResult, pick: int, origin: str) -> Plan:
    if not 0 <= pick < len(result.top):
        raise InputError(
            f"{origin} has {len(result.top)} plans, there is no number {pick}",
            hint=f"use --pick 0 to {len(result.top) - 1}",
        )
    chosen = result.top[pick]
    return chosen.plan.with_predicted(chosen.price.to_dict())


def run(
    plan: Plan | SearchResult | Path | str,
    task: Task | str | None = None,
    *,
    steps: int = 20,
    warmup: int = 3,
    verify: bool = False,
    out: Path | str | None = None,
    report: bool = True,
    search: SearchResult | None = None,
    **options: Any,
) -> RunRecord:
    """Execute a plan with torch.distributed, measure it and write its report.

    Args:
        plan: A plan, a search result (its best), or a file with either.
        task: The task; by default the target named in the plan.
        steps: Measured steps.
        warmup: Steps before measuring.
        verify: Compare one step with the eager model in one process first.
        out: Run folder; a fresh one under ``reports/`` by default.
        report: Write ``report.html`` into the run folder.
        search: The search the plan came from, shown in the report.
        options: Further fields of :class:`autopar.executor.RunOptions`. A task without a target
            needs ``launcher="fork"``, which is then the default.

    Raises:
        InputError: The plan does not fit the task or this host.
        TrainingError: A rank failed.
    """
    from autopar.executor import RunOptions, run_plan

    chosen, found = as_plan(plan)
    job = _task_for(chosen, task)
    if job.target is None:
        options.setdefault("launcher", "fork")
    folder = Path(out) if out is not None else run_folder(job.name, chosen.name, chosen.hash)
    record = run_plan(
        chosen,
        job,
        RunOptions(steps=steps, warmup=warmup, verify=verify, out=folder, **options),
    )
    if report:
        from autopar.reporting import write_report

        try:
            _add_companions(folder, chosen, search or found)
        except InputError as error:  # the run stands without them; the page says what it lacks
            lacks = f"the report lacks the search's files: {error.message}"
            record = replace(record, warnings=(*record.warnings, lacks))
            record.save(folder)

        write_report(folder, out=folder / "report.html")
    return record


def as_plan(
    plan: Plan | SearchResult | Path | str, *, pick: int = 0
) -> tuple[Plan, SearchResult | None]:
    """A plan (of a search the ``pick``-th), and its search if known, from a value or a file.

    Raises:
        InputError: The file holds neither, or the search has no such plan.
    """
    if isinstance(plan, Plan):
        return plan, None
    if isinstance(plan, SearchResult):
        return _picked(plan, pick, "the search result"), plan
    return load_plan(plan, pick=pick)


def _add_companions(folder: Path, plan: Plan, search: SearchResult | None) -> None:
    """Put search, profile and cluster beside the record, so that the folder is complete."""
    if search is None:
        return
    search.save(folder / "search.json")
    profile = Path(search.profile.get("path", ""))
    if profile.is_file():
        known = GraphProfile.load(profile)
        if known.fingerprint == plan.task.fingerprint:
            known.save(folder / "profile.json")
    cluster = cluster_path(plan.cluster.replace(":", "-"))
    if cluster.is_file():
        Cluster.load(cluster).save(folder / "cluster.json")


def _task_for(plan: Plan, task: Task | str | None) -> Task:
    if task is not None:
        return load_task(task)
    if plan.task.target is None:
        raise InputError(
            f"plan for '{plan.task.name}' names no target to build the task from",
            hint="pass the task: autopar.run(plan, task)",
        )
    return load_task(plan.task.target)
