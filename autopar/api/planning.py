"""plan(): search for the best split of a profiled task over a cluster."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autopar.api.clusters import Progress, names_this_host, resolve_cluster
from autopar.api.convergence import with_convergence
from autopar.api.plan_options import PlanOptions
from autopar.api.profiling import load_task, profile_stored
from autopar.cluster import Cluster
from autopar.graph import GraphProfile
from autopar.results import SearchResult
from autopar.tasks import Task

if TYPE_CHECKING:
    from autopar.search import SearchOptions


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A search result with what it was searched on.

    Attributes:
        result: The search result.
        profile: The profile.
        cluster: The cluster.
        options: The search options.
        tuning: What tuning the best plan brought, if it was asked for.
        profile_time_s: Seconds of making or checking the profile before the search.
    """

    result: SearchResult
    profile: GraphProfile
    cluster: Cluster
    options: SearchOptions
    tuning: str | None = None
    profile_time_s: float = 0.0


def plan(
    profile: GraphProfile | Task | str | Path,
    cluster: Cluster | str | Path = "local",
    *,
    tune: bool = False,
    out: Path | str | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> SearchResult:
    """Find the best plan, prove it, and say why.

    Args:
        profile: A profile, its file, a task or a target string (profiled first, cached).
        cluster: A cluster, its file, a catalogue string or ``local[:ranks]``.
        tune: Tune the gradient bucket size of the best plan, with Optuna.
        out: File to write the search result to.
        progress: ``progress(stage, done, total)`` of profiling and cluster measurement.
        options: Fields of :class:`~autopar.api.plan_options.PlanOptions`.

    Raises:
        InputError: A name or number is wrong.
        InfeasibleError: Nothing fits; the hint names the smallest relaxation that works.
    """
    wanted = PlanOptions(**options)
    found = plan_search(profile, cluster, wanted, tune=tune, progress=progress).result
    if out is not None:
        found.save(Path(out))
    return found


def plan_search(
    profile: GraphProfile | Task | str | Path,
    cluster: Cluster | str | Path,
    wanted: PlanOptions,
    *,
    tune: bool = False,
    progress: Progress | None = None,
) -> Planned:
    """:func:`plan`, with what the result was searched on."""
    from autopar.search import search
    from autopar.search.pareto.search import pareto_search
    from autopar.search.questions.reasons import Explainer
    from autopar.search.tune import tuned_result

    objectives = wanted.objectives()
    options = wanted.search(objectives[0])
    if not names_this_host(cluster):
        cluster = resolve_cluster(cluster)
    source, path = opened(profile)  # a wrong name is told before this host is measured for it
    where = resolve_cluster(cluster, progress=progress)
    options = options.resolved(where)
    began = time.perf_counter()
    what, path = resolve_profile(source, where, path=path, progress=progress)
    profile_s = time.perf_counter() - began
    what = with_convergence(what)
    result = search(what, where, options)
    if len(objectives) > 1:
        result = replace(result, pareto=pareto_search(what, where, objectives, options))
    tuning = None
    if tune:
        result, tuning = tuned_result(result, what, where, options)
    why = Explainer(result=result, profile=what, cluster=where, options=options)
    result = with_profile_path(with_reasons(result, why), path)
    return Planned(
        result=result,
        profile=what,
        cluster=where,
        options=options,
        tuning=tuning,
        profile_time_s=profile_s,
    )


def with_profile_path(result: SearchResult, path: Path | None) -> SearchResult:
    """The result with the place of its profile, if that has one."""
    if path is None:
        return result
    return replace(result, profile={**result.profile, "path": str(path.absolute())})


def with_reasons(
    result: SearchResult, why: Callable[[], tuple[str, ...]], opening: tuple[str, ...] = ()
) -> SearchResult:
    """The result with its full reasons, asked for later, behind what only the search knows.

    Args:
        result: The search; its paragraphs about the order of machines and about steps are kept.
        why: The full reasons.
        opening: Paragraphs to put first.
    """
    from autopar.search.explain.sync_words import STEPS
    from autopar.search.mixed_clusters.placed import PLACEMENT

    kept = (PLACEMENT, STEPS)
    searched = tuple(text for text in result.explanation if text.startswith(kept))
    return replace(
        result,
        explanation=(*opening, *result.explanation),
        reasons=lambda: (*opening, *searched, *why()),
    )


def opened(
    profile: GraphProfile | Task | str | Path,
) -> tuple[GraphProfile | Task, Path | None]:
    """The profile in a file and the file, or the task that a target names.

    Raises:
        InputError: The text is neither a profile file nor a target.
    """
    if isinstance(profile, GraphProfile | Task):
        return profile, None
    if isinstance(profile, Path) or profile.endswith(".json"):
        return GraphProfile.load(Path(profile)), Path(profile)
    return load_task(profile), None


def resolve_profile(
    profile: GraphProfile | Task,
    cluster: Cluster,
    *,
    path: Path | None = None,
    batch: int | None = None,
    progress: Progress | None = None,
) -> tuple[GraphProfile, Path | None]:
    """The given profile and its file, or those made for the cluster's kind of device.

    Args:
        profile: As :func:`opened` gives it.
        cluster: What it is for.
        path: The file of a given profile, if it has one.
        batch: Samples in the traced batch of a profile to make.
        progress: ``progress(stage, done, total)``.

    Raises:
        InputError: The task is wrong.
    """
    if isinstance(profile, GraphProfile):
        return profile, path
    device = cluster.device(0).kind if cluster.measured else cluster.machine(0).name.split("@")[0]
    busy = None
    if cluster.measured:
        busy = min(
            cluster.groups[0].machine.devices_per_node, max(cluster.busy_slowdown, default=1)
        )
    stored = profile_stored(
        profile, batch=batch, device=device, busy_ranks=busy, progress=progress
    )
    return stored.profile, stored.path
