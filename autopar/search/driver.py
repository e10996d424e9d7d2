"""search(): walks the space best bound first, one Optuna trial a point, and proves its answer."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

from autopar.cluster import Cluster
from autopar.core.errors import InfeasibleError
from autopar.core.io import content_hash
from autopar.core.provenance import provenance
from autopar.core.version import __version__
from autopar.cost import CostModel
from autopar.graph import GraphProfile
from autopar.results import SearchResult
from autopar.schedules import SCHEDULES
from autopar.search.baselines import price_baselines
from autopar.search.explain import explain
from autopar.search.infeasible import diagnose
from autopar.search.options import EXACT_MODES, SearchOptions
from autopar.search.plans import build_plan, rank_plan
from autopar.search.space import build_space
from autopar.search.sync_words import changing_modes, steps_paragraph, sync_warnings
from autopar.search.walk import Priced, Walk
from autopar.sync import parse_sync

if TYPE_CHECKING:
    import optuna

    from autopar.search.study import StoredStudy


def search(
    profile: GraphProfile, cluster: Cluster, options: SearchOptions | None = None
) -> SearchResult:
    """The best plans of the space, with proof.

    Raises:
        InputError: Unknown axis, value, objective or sync mode.
        InfeasibleError: No plan satisfies the constraints.
    """
    asked = options or SearchOptions()
    return _with_steps(find(profile, cluster, asked, relaxations=True), profile, cluster, asked)


def _with_steps(
    found: SearchResult, profile: GraphProfile, cluster: Cluster, options: SearchOptions
) -> SearchResult:
    """The result with a paragraph about steps to the same loss, where modes may change them.

    The best plan of the other kind, which says from what multiplier on the choice flips, takes a
    search of its own.
    """
    changing = changing_modes(profile, options)
    if options.objective != "time-to-target" or not changing:
        return found
    exact = parse_sync(found.best.plan.sync).exact
    others = ",".join(changing) if exact else "exact"
    asked = replace(options, sync=others, top=1, storage=None)
    try:
        rival = find(profile, cluster, asked, relaxations=False).best
    except InfeasibleError:
        rival = None
    words = steps_paragraph(found.best, rival, profile)
    return replace(found, explanation=(*found.explanation, words))


def find(
    profile: GraphProfile, cluster: Cluster, options: SearchOptions, *, relaxations: bool
) -> SearchResult:
    """:func:`search`; without ``relaxations`` an infeasible search only says what is lacking."""
    with uncollected():
        return _find(profile, cluster, options, relaxations=relaxations)


@contextmanager
def uncollected() -> Iterator[None]:
    """Leave cyclic garbage for later: passes over the tables of a search find next to none."""
    active = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if active:
            gc.enable()


def _find(
    profile: GraphProfile, cluster: Cluster, options: SearchOptions, *, relaxations: bool
) -> SearchResult:
    _load()
    if not cluster.uniform:
        # Searches order by order with this module, which therefore cannot import it above.
        from autopar.search.placed import find_placed

        found = find_placed(profile, cluster, options, relaxations=relaxations)
    else:
        found = find_in_order(profile, cluster, options, relaxations=relaxations)
    about_sync = sync_warnings(options, profile, found.best)
    return replace(found, warnings=(*about_sync, *found.warnings))


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


@cache
def _load() -> None:
    """Import what searches look up by name; that takes time once in a process."""
    for name in SCHEDULES:
        SCHEDULES.load(name)
    parse_sync(EXACT_MODES[0])


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
        from autopar.search.study import study_of

        return study_of(title(walk), walk.space, priced)

    if stored is None:
        return Trials(history=history, study_name=title(walk), open_study=study)
    opened = stored.study
    return Trials(history=history, study_name=opened.study_name, open_study=lambda: opened)


def _stored(walk: Walk) -> StoredStudy | None:
    """The study that the options name a storage for; the walk shares it with other workers."""
    if walk.options.storage is None:
        return None
    from autopar.search.study import StoredStudy

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
