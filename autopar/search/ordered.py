"""Search with ranks in the order of the devices: one Optuna trial a priced point, and proof."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from autopar.cluster import Cluster
from autopar.core.io import content_hash
from autopar.core.provenance import provenance
from autopar.core.version import __version__
from autopar.cost import CostModel
from autopar.graph import GraphProfile
from autopar.results import SearchResult
from autopar.search.explain.baselines import price_baselines
from autopar.search.explain.choice import explain
from autopar.search.explain.infeasible import diagnose
from autopar.search.options import SearchOptions
from autopar.search.space.build import build_space
from autopar.search.space.plans import build_plan, rank_plan
from autopar.search.walk.best_first import Priced, Walk

if TYPE_CHECKING:
    import optuna

    from autopar.search.walk.study import StoredStudy


def find_in_order(
    profile: GraphProfile, cluster: Cluster, options: SearchOptions, *, relaxations: bool
) -> SearchResult:
    """:func:`find` with ranks on devices 0, 1, 2 ... of the cluster."""
    began = time.perf_counter()
    options = options.resolved(cluster)
    model = CostModel(profile, cluster, options.precision)
    walk = Walk(
        model=model,
        options=options,
        space=build_space(profile, cluster, options),
    )
    walk.start()
    trials = run_study(walk, relaxations)
    best = sorted(walk.priced, key=lambda item: item.value)[: options.top]
    top = tuple(rank_plan(item.point, item.cuts, model, options, item.levels) for item in best)
    baselines = price_baselines(model, options, walk.space.global_batch)
    certificate = walk.certificate()
    return SearchResult(
        best=top[0],
        top=top,
        baselines=baselines,
        certificate=certificate,
        search_time_s=time.perf_counter() - began,
        objective=options.objective,
        explanation=explain(top, baselines, certificate, options),
        history=tuple(trials.history),
        warnings=top[0].price.assumptions,
        profile=summary_of_profile(profile),
        cluster={"name": cluster.name, "devices": cluster.device_count, "hash": cluster.hash},
        study_name=trials.study_name,
        provenance=provenance(),
        open_study=trials.open_study,
    )


@dataclass(frozen=True, kw_only=True)
class Trials:
    """What a walk priced.

    Attributes:
        history: As in results; empty when nothing fits.
        study_name: Name of the Optuna study.
        open_study: The study, made when it is asked for unless it is stored: loading Optuna takes
            longer than many a search.
    """

    history: Sequence[tuple[int, float, float, str]]
    study_name: str
    open_study: Callable[[], optuna.Study]


def run_study(walk: Walk, relaxations: bool) -> Trials:
    """Price what the walk finds worth it.

    Raises:
        InfeasibleError: Nothing was priced.
    """
    trials = price_all(walk)
    if not trials.history:
        raise diagnose(walk.model, walk.options, walk.space, relaxations=relaxations)
    return trials


def price_all(walk: Walk) -> Trials:
    """One trial of an Optuna study per priced point; in a storage they are written at once."""
    history: list[tuple[int, float, float, str]] = []
    priced: list[tuple[Priced, str]] = []
    stored = _stored(walk)
    best = math.inf
    while (item := walk.next()) is not None:
        best = min(best, item.value)
        name = build_plan(item.point, item.cuts, walk.model, walk.options, item.levels).name
        number = len(history) if stored is None else stored.record(item, name)
        history.append((number, item.value, best, name))
        priced.append((item, name))

    def study() -> optuna.Study:
        from autopar.search.walk.study import study_of

        return study_of(title(walk), walk.space, priced)

    if stored is None:
        return Trials(history=history, study_name=title(walk), open_study=study)
    opened = stored.study
    return Trials(history=history, study_name=opened.study_name, open_study=lambda: opened)


def _stored(walk: Walk) -> StoredStudy | None:
    """The study that the options name a storage for; the walk shares it with other workers."""
    if walk.options.storage is None:
        return None
    from autopar.search.walk.study import StoredStudy

    found = StoredStudy(study_name(walk), walk.space, walk.options.storage)
    walk.shared = found.shared
    return found


def title(walk: Walk) -> str:
    """What is searched, in words; name enough for a study that is not stored."""
    return f"{walk.model.profile.task} on {walk.model.cluster.name}"


def study_name(walk: Walk) -> str:
    """The same for the same question, so that a stored study is continued.

    The question includes what prices follow from: measurement, calibration and version.
    """
    model, options = walk.model, walk.options
    question = {
        "autopar": __version__,
        "calibration": model.compute.calibration.to_dict(),
        "profile": model.profile.hash,
        "cluster": model.cluster.hash,
        "batch": walk.space.global_batch,
        "options": {k: str(v) for k, v in asdict(options).items() if k != "storage"},
    }
    return f"{title(walk)} {content_hash(question)}"


def summary_of_profile(profile: GraphProfile) -> dict[str, object]:
    """What the result says about the profile."""
    return {
        "task": profile.task,
        "hash": profile.fingerprint,
        "parameters": profile.parameter_count,
        "parameter_bytes": profile.parameter_bytes,
        "forward_flop": profile.forward_flop.at(profile.batch),
        "backward_flop": profile.backward_flop.at(profile.batch),
        "blocks": len(profile.blocks),
        "batch": profile.batch,
    }
