"""Questions about an answer: why not this plan, and what if the cluster were another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from autopar.cluster import Cluster
from autopar.core.errors import InfeasibleError
from autopar.core.units import format_seconds
from autopar.graph import GraphProfile
from autopar.results import RankedPlan, SearchResult
from autopar.search.change import changed_cluster
from autopar.search.driver import find
from autopar.search.explain import compare
from autopar.search.goal import value_of
from autopar.search.options import SearchOptions
from autopar.search.space import build_space, fixed_spec
from autopar.search.spec import Spec, describe, parse_spec

_TIE = 1e-9


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Reply to a question.

    Attributes:
        question: As asked.
        verdict: ``chosen``, ``tie``, ``dominated``, ``infeasible`` or ``not in the space`` for
            why-not; ``same``, ``flips`` or ``infeasible`` for what-if.
        text: The reason, with numbers.
        plan: The best plan that meets the question's terms, if there is one.
    """

    question: str
    verdict: str
    text: str
    plan: RankedPlan | None = None


def why_not(
    spec: str | Mapping[str, int | str],
    result: SearchResult,
    profile: GraphProfile,
    cluster: Cluster,
    options: SearchOptions | None = None,
) -> str:
    """:func:`why_not_answer` as one paragraph."""
    answer = why_not_answer(spec, result, profile, cluster, options)
    return f"Why not {answer.question}? {answer.verdict.capitalize()}: {answer.text}"


def what_if(
    spec: str,
    result: SearchResult,
    profile: GraphProfile,
    cluster: Cluster,
    options: SearchOptions | None = None,
) -> str:
    """:func:`what_if_answer` as one paragraph."""
    answer = what_if_answer(spec, result, profile, cluster, options)
    return f"What if {answer.question}? {answer.text}"


def why_not_answer(
    spec: str | Mapping[str, int | str],
    result: SearchResult,
    profile: GraphProfile,
    cluster: Cluster,
    options: SearchOptions | None = None,
) -> Answer:
    """Why plans with these axis values are not the recommended one.

    Args:
        spec: Axis values, e.g. ``"pp=2,schedule=gpipe"``.
        result: The search in question.
        profile: What is trained.
        cluster: Where.
        options: Of the search in question.

    Raises:
        InputError: Unknown axis or value.
    """
    options = options or SearchOptions()
    wanted = parse_spec(spec)
    question = describe(wanted)
    clash = _outside(profile, cluster, wanted, options)
    if clash is not None:
        return Answer(question=question, verdict="not in the space", text=clash)
    asked = replace(options, fix={**fixed_spec(options), **wanted}, top=1, storage=None)
    try:
        plan = find(profile, cluster, asked, relaxations=False).best
    except InfeasibleError as error:
        return Answer(question=question, verdict="infeasible", text=f"{error.message}.")
    mine = value_of(result.best.price, options.objective)
    theirs = value_of(plan.price, options.objective)
    if plan.plan.hash == result.best.plan.hash:
        text = f"{plan.name} is the recommended plan."
        return Answer(question=question, verdict="chosen", text=text, plan=plan)
    if abs(theirs - mine) <= _TIE * abs(mine):
        text = f"{plan.name} is as good as {result.best.name}; the order of the space decided."
        return Answer(question=question, verdict="tie", text=text, plan=plan)
    text = f"The best such plan is {plan.name}: {compare(result.best, plan, options)}"
    return Answer(question=question, verdict="dominated", text=text, plan=plan)


def _outside(
    profile: GraphProfile, cluster: Cluster, wanted: Spec, options: SearchOptions
) -> str | None:
    """Why no point of the space has the wanted values, or ``None``."""
    fixed = fixed_spec(options)
    for axis, value in wanted.items():
        if fixed.get(axis, value) != value:
            return f"--fix asks for {axis}={fixed[axis]}, not {value}."
    everything = build_space(profile, cluster, replace(options, fix={}, forbid=()))
    if any(point.matches(wanted) for point in everything.points):
        allowed = build_space(profile, cluster, replace(options, fix=wanted))
        return None if allowed.points else "--forbid rules it out."
    for axis, value in wanted.items():
        if not any(point.value(axis) == value for point in everything.points):
            known = sorted({str(point.value(axis)) for point in everything.points}, key=_order)
            shown = ", ".join(known[:12]) + (" ..." if len(known) > 12 else "")
            return f"{axis}={value} is not in the space; {axis} takes {shown}."
    return (
        f"no point has {describe(wanted)} together on {cluster.device_count} devices with global "
        f"batch {everything.global_batch} and {len(profile.blocks)} blocks."
    )


def _order(text: str) -> tuple[int, str]:
    return (int(text), "") if text.isdecimal() else (0, text)


def what_if_answer(
    spec: str,
    result: SearchResult,
    profile: GraphProfile,
    cluster: Cluster,
    options: SearchOptions | None = None,
) -> Answer:
    """Search a changed cluster and say whether the choice changes.

    The global batch stays what it was.

    Args:
        spec: Changes as :func:`autopar.search.change.changed_cluster` reads them.
        result: The search in question.
        profile: What is trained.
        cluster: Where it is planned for now.
        options: Of the search in question.

    Raises:
        InputError: The change cannot be read or applied.
    """
    options = options or SearchOptions()
    changed = changed_cluster(cluster, spec)
    batch = options.batch_for(profile, cluster.device_count)
    try:
        then = replace(options, global_batch=batch, top=1, storage=None)
        after = find(profile, changed, then, relaxations=False).best
    except InfeasibleError as error:
        return Answer(question=spec, verdict="infeasible", text=f"{error.message}.")
    before = result.best
    times = (
        f"{format_seconds(before.price.step_time_s.value)} now, "
        f"{format_seconds(after.price.step_time_s.value)} then"
    )
    if after.name == before.name:
        moved = "" if _cuts(after) == _cuts(before) else " with other stage boundaries"
        text = f"With {spec} the choice stays {after.name}{moved} ({times})."
        return Answer(question=spec, verdict="same", text=text, plan=after)
    text = f"With {spec} the choice flips from {before.name} to {after.name} ({times})."
    return Answer(question=spec, verdict="flips", text=text, plan=after)


def _cuts(item: RankedPlan) -> list[int]:
    return [stage.stop_op for stage in item.plan.stages]
