"""choose_machines(): the set of machines that meets a deadline or budget, with its plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autopar.api.clusters import Progress, resolve_cluster
from autopar.api.planning import Planned, resolve_profile, search_options, with_reasons
from autopar.cluster import Cluster
from autopar.graph import GraphProfile
from autopar.tasks import Task

if TYPE_CHECKING:
    from autopar.search.machines import MachineChoice


@dataclass(frozen=True, kw_only=True)
class PlannedMachines:
    """A choice of machines and the search on the chosen set.

    Attributes:
        choice: All sets and the chosen one.
        planned: As :func:`autopar.api.planning.plan_search` returns it for the chosen set.
    """

    choice: MachineChoice
    planned: Planned


def choose_machines(
    profile: GraphProfile | Task | str | Path,
    clusters: Sequence[Cluster | str | Path],
    **options: Any,
) -> MachineChoice:
    """The cheapest machines that meet a deadline, or the fastest within a budget.

    See :func:`machine_search` for the arguments.
    """
    return machine_search(profile, clusters, **options).choice


def machine_search(
    profile: GraphProfile | Task | str | Path,
    clusters: Sequence[Cluster | str | Path],
    *,
    samples: int | None = None,
    deadline_s: float | None = None,
    budget_usd: float | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> PlannedMachines:
    """Search every cluster, and smaller node counts of catalogue clusters, and choose one.

    With neither deadline nor budget the clusters are compared as given by the objective.

    Args:
        profile: A profile, its file, a task or a target string (profiled for each kind of device).
        clusters: Clusters, their files, catalogue strings or ``local[:ranks]``.
        samples: Samples to train on; ``None`` compares one optimizer step.
        deadline_s: Most seconds that may take.
        budget_usd: Most money that may cost, all devices of a set paid for.
        progress: ``progress(stage, done, total)``.
        options: Words of :func:`autopar.api.planning.search_options`. Without ``global_batch``
            all sets train with the profiled batch on every device of the largest set.

    Raises:
        InputError: A name or number is wrong.
        InfeasibleError: No set meets deadline and budget; the hint says what would.
    """
    from autopar.search.machines import choose_machines as choose
    from autopar.search.offers import Wishes
    from autopar.search.reasons import Explainer

    wishes = Wishes(samples=samples, deadline_s=deadline_s, budget_usd=budget_usd)
    asked = search_options(**options)
    pairs, paths = [], {}
    for text in clusters:
        where = resolve_cluster(text, progress=progress)
        what, path = resolve_profile(profile, where, progress=progress)
        pairs.append((what, where))
        paths[what.fingerprint, what.device] = path
    limited = deadline_s is not None or budget_usd is not None
    choice = choose(pairs, wishes, asked, smaller=limited, progress=progress)
    chosen = choice.chosen
    assert chosen.result is not None  # a chosen set has a plan
    why = Explainer(
        result=chosen.result,
        profile=chosen.profile,
        cluster=chosen.cluster,
        options=choice.options,
    )
    result = with_reasons(chosen.result, why, (choice.explanation,))
    path = paths[chosen.profile.fingerprint, chosen.profile.device]
    if path is not None:
        result = replace(result, profile={**result.profile, "path": str(path.absolute())})
    return PlannedMachines(
        choice=choice,
        planned=Planned(
            result=result,
            profile=chosen.profile,
            cluster=chosen.cluster,
            options=choice.options,
        ),
    )
