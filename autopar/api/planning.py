"""plan(): search for the best split of a profiled task over a cluster."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autopar.api.clusters import Progress, resolve_cluster
from autopar.api.convergence import with_convergence
from autopar.api.profiling import profile_stored
from autopar.cluster import Cluster
from autopar.core.units import parse_bytes
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
    """

    result: SearchResult
    profile: GraphProfile
    cluster: Cluster
    options: SearchOptions
    tuning: str | None = None


def plan(
    profile: GraphProfile | Task | str | Path,
    cluster: Cluster | str | Path = "local",
    **options: Any,
) -> SearchResult:
    """Find the best plan, prove it, and say why; see :func:`plan_search` for the arguments."""
    return plan_search(profile, cluster, **options).result


def plan_search(
    profile: GraphProfile | Task | str | Path,
    cluster: Cluster | str | Path = "local",
    *,
    global_batch: int | None = None,
    objective: str = "time",
    sync: str = "exact",
    fix: Sequence[str] = (),
    forbid: Sequence[str] = (),
    max_memory: str | int | None = None,
    precision: str = "auto",
    top: int = 5,
    seed: int = 0,
    storage: str | None = None,
    space: str = "auto",
    tune: bool = False,
    out: Path | str | None = None,
    progress: Progress | None = None,
) -> Planned:
    """Find the best plan, prove it, and say why.

    Args:
        profile: A profile, its file, a task or a target string (profiled first, cached).
        cluster: A cluster, its file, a catalogue string or ``local[:ranks]``.
        global_batch: Samples per optimizer step over all replicas.
        objective: ``time``, ``memory``, ``energy`` or ``cost``; several joined by commas also find
            ``.pareto``, the plans that no other beats in all of them, and the best plan is the
            best in the first.
        sync: ``exact``, ``any``, or mode names joined by commas (``local_sgd:8``).
        fix: ``axis=value`` constraints a plan must meet.
        forbid: ``axis=value`` combinations a plan must avoid.
        max_memory: Memory limit per device (``"20GiB"``), the device's own by default.
        precision: Compute dtype; ``auto`` is bfloat16, else float16 (float32 master weights),
            where every device has a peak for it, float32 elsewhere and on measured clusters.
        space: ``full``, ``runnable`` (what :func:`autopar.run` executes), or ``auto``: runnable
            on a measured cluster, full elsewhere.
        top: How many plans to rank.
        seed: Seed of the search.
        storage: Optuna storage URL or ``journal:FILE``; in memory by default. Processes with the
            same storage share priced points.
        tune: Tune the gradient bucket size of the best plan, with Optuna.
        out: File to write the search result to.
        progress: ``progress(stage, done, total)`` of profiling and cluster measurement.

    Raises:
        InputError: A name or number is wrong.
        InfeasibleError: Nothing fits; the hint names the smallest relaxation that works.
    """
    from autopar.search import search
    from autopar.search.pareto import pareto_search, parse_objectives
    from autopar.search.reasons import Explainer
    from autopar.search.tune import tuned_result

    objectives = parse_objectives(objective) if "," in objective else (objective,)
    options = search_options(
        global_batch=global_batch,
        objective=objectives[0],
        sync=sync,
        fix=fix,
        forbid=forbid,
        max_memory=max_memory,
        precision=precision,
        top=top,
        seed=seed,
        storage=storage,
        space=space,
    )
    where = resolve_cluster(cluster, progress=progress)
    options = options.resolved(where)
    what, path = resolve_profile(profile, where, progress=progress)
    what = with_convergence(what)
    result = search(what, where, options)
    if len(objectives) > 1:
        result = replace(result, pareto=pareto_search(what, where, objectives, options))
    tuning = None
    if tune:
        result, tuning = tuned_result(result, what, where, options)
    why = Explainer(result=result, profile=what, cluster=where, options=options)
    result = with_reasons(result, why)
    if path is not None:
        result = replace(result, profile={**result.profile, "path": str(path.absolute())})
    if out is not None:
        result.save(Path(out))
    return Planned(result=result, profile=what, cluster=where, options=options, tuning=tuning)


def with_reasons(
    result: SearchResult, why: Callable[[], tuple[str, ...]], opening: tuple[str, ...] = ()
) -> SearchResult:
    """The result with its full reasons, asked for later, behind what only the search knows.

    Args:
        result: The search; its paragraphs about the order of machines and about steps are kept.
        why: The full reasons.
        opening: Paragraphs to put first.
    """
    from autopar.search.placed import PLACEMENT
    from autopar.search.sync_words import STEPS

    kept = (PLACEMENT, STEPS)
    searched = tuple(text for text in result.explanation if text.startswith(kept))
    return replace(
        result,
        explanation=(*opening, *result.explanation),
        reasons=lambda: (*opening, *searched, *why()),
    )


def search_options(
    *,
    global_batch: int | None = None,
    objective: str = "time",
    sync: str = "exact",
    fix: Sequence[str] = (),
    forbid: Sequence[str] = (),
    max_memory: str | int | None = None,
    precision: str = "auto",
    top: int = 5,
    seed: int = 0,
    storage: str | None = None,
    space: str = "auto",
) -> SearchOptions:
    """Search options from the words of the command line.

    Raises:
        InputError: A word does not parse.
    """
    from autopar.search import SearchOptions

    limit = parse_bytes(max_memory) if isinstance(max_memory, str) else max_memory
    return SearchOptions(
        global_batch=global_batch,
        objective=objective,
        sync=sync,
        fix=tuple(fix),
        forbid=tuple(forbid),
        max_memory_bytes=limit,
        precision=precision,
        top=top,
        seed=seed,
        storage=storage,
        space=space,
    )


def resolve_profile(
    profile: GraphProfile | Task | str | Path,
    cluster: Cluster,
    *,
    batch: int | None = None,
    progress: Progress | None = None,
) -> tuple[GraphProfile, Path | None]:
    """A profile for a cluster and its file: read, or made on the cluster's kind of device.

    Raises:
        InputError: The text is neither a profile file nor a target.
    """
    if isinstance(profile, GraphProfile):
        return profile, None
    if isinstance(profile, Path) or (isinstance(profile, str) and profile.endswith(".json")):
        return GraphProfile.load(Path(profile)), Path(profile)
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
