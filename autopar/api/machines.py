"""choose_machines(): the set of machines that meets a deadline or budget, with its plan."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autopar.api.clusters import Progress, resolve_cluster
from autopar.api.plan_options import PlanOptions
from autopar.api.planning import (
    Planned,
    opened,
    resolve_profile,
    with_profile_path,
    with_reasons,
)
from autopar.cluster import Cluster
from autopar.core.errors import InputError
from autopar.core.units import format_seconds, format_usd
from autopar.graph import GraphProfile
from autopar.tasks import Task

if TYPE_CHECKING:
    from autopar.search.machines.choose import MachineChoice
    from autopar.search.machines.offers import Wishes


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
    *,
    samples: int | None = None,
    deadline_s: float | None = None,
    budget_usd: float | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> MachineChoice:
    """The cheapest machines that meet a deadline, or the fastest within a budget.

    Every cluster, and smaller node counts of catalogue clusters, are searched. With neither
    deadline nor budget the clusters are compared as given by the objective.

    Args:
        profile: A profile, its file, a task or a target string (profiled for each kind of device).
        clusters: Clusters, their files, catalogue strings or ``local[:ranks]``.
        samples: Samples to train on; ``None`` compares one optimizer step, without limits only.
        deadline_s: Most seconds that may take.
        budget_usd: Most money that may cost, all devices of a set paid for.
        progress: ``progress(stage, done, total)``.
        options: Fields of :class:`~autopar.api.plan_options.PlanOptions`. Without
            ``global_batch`` all sets train with the profiled batch on every device of the largest
            set.

    Raises:
        InputError: A name or number is wrong, or a limit comes without samples.
        InfeasibleError: No set meets deadline and budget; the hint says what would.
    """
    from autopar.search.machines.offers import Wishes

    wishes = Wishes(samples=samples, deadline_s=deadline_s, budget_usd=budget_usd)
    wanted = PlanOptions(**options)
    return machine_search(profile, clusters, wishes, wanted, progress=progress).choice


def _check_samples(wishes: Wishes) -> None:
    """Deadline and budget are of a whole training, not of one step.

    Raises:
        InputError: Nothing says how long the training is.
    """
    limits = [
        f"--deadline of {format_seconds(wishes.deadline_s)}" if wishes.deadline_s else "",
        f"--budget of {format_usd(wishes.budget_usd)}" if wishes.budget_usd else "",
    ]
    if wishes.samples is None and any(limits):
        given = " and ".join(filter(None, limits))
        raise InputError(
            f"{given} without --samples: how much is to be trained is not known",
            hint="give --samples, epochs x samples of the dataset, e.g. --samples 150000000",
        )


def machine_search(
    profile: GraphProfile | Task | str | Path,
    clusters: Sequence[Cluster | str | Path],
    wishes: Wishes,
    wanted: PlanOptions,
    *,
    progress: Progress | None = None,
) -> PlannedMachines:
    """:func:`choose_machines`, with the search on the chosen set."""
    from autopar.search.machines.choose import choose_machines as choose
    from autopar.search.questions.reasons import Explainer

    _check_samples(wishes)
    asked = wanted.search()
    source, file = opened(profile)
    pairs, paths, profile_s = [], {}, 0.0
    for text in clusters:
        where = resolve_cluster(text, progress=progress)
        began = time.perf_counter()
        what, path = resolve_profile(source, where, path=file, progress=progress)
        profile_s += time.perf_counter() - began
        pairs.append((what, where))
        paths[what.fingerprint, what.device] = path
    limited = wishes.deadline_s is not None or wishes.budget_usd is not None
    choice = choose(pairs, wishes, asked, smaller=limited, progress=progress)
    chosen = choice.chosen
    assert chosen.result is not None  # a chosen set has a plan
    where, what = chosen.cluster, chosen.profile
    why = Explainer(result=chosen.result, profile=what, cluster=where, options=choice.options)
    result = with_reasons(chosen.result, why, (choice.explanation,))
    result = with_profile_path(result, paths[what.fingerprint, what.device])
    planned = Planned(
        result=result,
        profile=what,
        cluster=where,
        options=choice.options,
        profile_time_s=profile_s,
    )
    return PlannedMachines(choice=choice, planned=planned)
