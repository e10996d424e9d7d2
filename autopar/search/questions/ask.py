"""Questions about an answer: why not this plan, and what if the cluster were another."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from autopar.cluster import Cluster
from autopar.core.errors import InfeasibleError, InputError
from autopar.core.units import format_bytes, format_joule, format_seconds
from autopar.cost import CostModel, price
from autopar.graph import GraphProfile
from autopar.results import PlanPrice, RankedPlan, SearchResult
from autopar.search.driver import find
from autopar.search.explain.change import changed_cluster, parse_changes
from autopar.search.explain.choice import compare
from autopar.search.explain.infeasible import least_memory, unknown_values
from autopar.search.explain.machines_used import machines_used
from autopar.search.explain.parts import difference_words, differences, memory_words, strategy_name
from autopar.search.explain.relax import feasible, sold_bytes
from autopar.search.options import SearchOptions
from autopar.search.questions.breakeven import LIMIT, effort_for, flip_until
from autopar.search.questions.flips import BreakEven
from autopar.search.questions.pairs import compare_pair, overlap
from autopar.search.questions.sensitivity import RESOURCES, Repricer
from autopar.search.space.build import Space, build_space, fixed_spec
from autopar.search.space.spec import Spec, describe, parse_spec
from autopar.search.stages.goal import value_of

_TIE = 1e-9
_SAME = 5e-4
"""Relative changes below this are not worth a word."""
NEAR = 0.01
"""A plan that is ahead by less than this is practically as good."""
_NOT_FIXED = "not what --fix asks for"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Reply to a question.

    Attributes:
        question: As asked.
        verdict: ``chosen``, ``tie``, ``dominated``, ``infeasible`` or ``not in the space`` for
            why-not; ``same``, ``tie`` (another plan is ahead by less than :data:`NEAR`),
            ``flips`` or ``infeasible`` for what-if.
        text: The reason, with numbers.
        plan: The best plan that meets the question's terms, if there is one.
        break_even: Where the choice flips on the way to what was asked, or beyond it.
    """

    question: str
    verdict: str
    text: str
    plan: RankedPlan | None = None
    break_even: BreakEven | None = None


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
    options = (options or SearchOptions()).resolved(cluster)
    wanted = parse_spec(spec)
    question = describe(wanted)
    clash = _outside(profile, cluster, wanted, options)
    if clash is not None:
        return Answer(question=question, verdict="not in the space", text=clash)
    asked = replace(options, fix={**fixed_spec(options), **wanted}, top=1, storage=None)
    try:
        plan = find(profile, cluster, asked, relaxations=False).best
    except InfeasibleError as error:
        text = _does_not_fit(error, profile, cluster, asked, wanted)
        return Answer(question=question, verdict="infeasible", text=text)
    mine = value_of(result.best.price, options.objective)
    theirs = value_of(plan.price, options.objective)
    if plan.plan.hash == result.best.plan.hash:
        text = f"{plan.name} is the recommended plan."
        return Answer(question=question, verdict="chosen", text=text, plan=plan)
    if abs(theirs - mine) <= _TIE * abs(mine):
        text = f"{plan.name} is as good as {result.best.name}; the order of the space decided."
        return Answer(question=question, verdict="tie", text=text, plan=plan)
    text = _slower(result.best, plan, profile, cluster, options)
    return Answer(question=question, verdict="dominated", text=text, plan=plan)


def _slower(
    best: RankedPlan,
    plan: RankedPlan,
    profile: GraphProfile,
    cluster: Cluster,
    options: SearchOptions,
) -> str:
    """By which plan it is beaten, in which parts, how sure that is, and what would turn it."""
    text = (
        f"{best.name} is better. The best such plan is {plan.name}, "
        f"{format_seconds(plan.price.step_time_s.value)} per step against "
        f"{format_seconds(best.price.step_time_s.value)}, "
        f"{format_bytes(plan.price.peak_memory_bytes.value)} against "
        f"{format_bytes(best.price.peak_memory_bytes.value)} on the fullest rank. "
    )
    if options.objective == "memory" or not overlap(best, plan):
        return text + compare(best, plan, options.objective)
    pair = compare_pair(best, plan, Repricer(profile, cluster), options.objective)
    text += compare(best, plan, options.objective, odds=pair.odds)
    if pair.drivers:
        name, factor = pair.drivers[0]
        text += f" It would win with {RESOURCES[name].title} at x{factor:.2g} of what is assumed."
    return text


def _does_not_fit(
    error: InfeasibleError,
    profile: GraphProfile,
    cluster: Cluster,
    asked: SearchOptions,
    wanted: Spec,
) -> str:
    """What fills the smallest such plan, and the smallest changes that were tried and help."""
    model = CostModel(profile, cluster, asked.precision)
    smallest = least_memory(model, asked)
    if smallest is None:
        return f"{error.message}."
    part = smallest.price.worst_memory
    need = smallest.price.peak_memory_bytes.high
    text = (
        f"{error.message}. Bytes on its fullest rank: {memory_words(part)}; at the upper end "
        f"{format_bytes(need)}. It would fit with {format_bytes(sold_bytes(cluster, need))} per "
        "device"
    )
    for axis in wanted:
        rest = {key: value for key, value in fixed_spec(asked).items() if key != axis}
        if len(wanted) > 1 and feasible(model, replace(asked, fix=rest)):
            text += f", or without {axis}={wanted[axis]}"
    return text + "."


def _outside(
    profile: GraphProfile, cluster: Cluster, wanted: Spec, options: SearchOptions
) -> str | None:
    """Why no point of the space has the wanted values, or ``None``."""
    fixed = fixed_spec(options)
    for axis, value in wanted.items():
        if fixed.get(axis, value) != value:
            return f"--fix asks for {axis}={fixed[axis]}, not {value}."
    model = CostModel(profile, cluster, options.precision)
    free = replace(options, fix={}, forbid=())
    narrowed = build_space(profile, cluster, replace(free, fix=wanted))
    if narrowed.groups:
        asked = replace(options, fix=wanted)
        allowed = build_space(profile, cluster, asked)
        return None if allowed.groups else "--forbid rules it out."
    unknown = unknown_values(model, options, wanted)
    if unknown:
        axis = unknown[0].partition("=")[0]
        alone = replace(free, fix={axis: wanted[axis]})
        why = _why(build_space(profile, cluster, alone), {axis: wanted[axis]})
        return f"{unknown[0]}.{why}"
    return (
        f"no point has {describe(wanted)} together on {cluster.device_count} devices with global "
        f"batch {narrowed.global_batch} and {len(profile.blocks)} blocks.{_why(narrowed, wanted)}"
    )


def _why(empty: Space, wanted: Spec) -> str:
    """What rejected the points that were asked for, besides the wish itself.

    Reasons that name a value which was not asked for ("tp=8 does not ..." for ``tp=16``) are of
    other points; so are those without a value where a single one was asked for.
    """
    reasons = []
    for reason in empty.rejected:
        named = re.findall(r"\b(\w+)=(\w+)", reason)
        about = all(str(wanted.get(axis)) == value for axis, value in named)
        if reason != _NOT_FIXED and about and (named or len(wanted) > 1):
            reasons.append(reason)
    return f" They are rejected for: {', '.join(reasons)}." if reasons else ""


def what_if_answer(
    spec: str,
    result: SearchResult,
    profile: GraphProfile,
    cluster: Cluster,
    options: SearchOptions | None = None,
) -> Answer:
    """Search a changed cluster: what becomes of the plan, what is best then, and where it flips.

    The global batch stays what it was.

    Args:
        spec: Changes as :func:`autopar.search.explain.change.changed_cluster` reads them.
        result: The search in question.
        profile: What is trained.
        cluster: Where it is planned for now.
        options: Of the search in question.

    Raises:
        InputError: The change cannot be read or applied.
    """
    options = (options or SearchOptions()).resolved(cluster)
    changed = changed_cluster(cluster, spec)
    batch = options.batch_for(profile, cluster.device_count)
    then = replace(options, global_batch=batch, top=1, storage=None)
    before = result.best
    kept = _kept(before, profile, changed, options)
    try:
        after = find(profile, changed, then, relaxations=False).best
    except InfeasibleError as error:
        text = f"Nothing fits any more: {error.message}."
        return Answer(question=spec, verdict="infeasible", text=text)
    same = after.name == before.name
    times = (
        f"{format_seconds(before.price.step_time_s.value)} now, "
        f"{format_seconds(after.price.step_time_s.value)} then"
    )
    lead = _lead(after, kept, options.objective)
    if same:
        moved = "" if _cuts(after) == _cuts(before) else " with other stage boundaries"
        text = f"The choice stays {after.name}{moved} ({times})"
    elif strategy_name(after.plan) == strategy_name(before.plan):
        text = (
            f"The choice stays {strategy_name(after.plan)}, but for its details: {before.name} "
            f"becomes {after.name} ({times})"
        )
    elif lead is not None and lead < NEAR:
        text = f"Practically a tie: {after.name} is ahead of {before.name} by {lead:.1%} ({times})"
    else:
        text = f"The choice flips from {before.name} to {after.name} ({times})"
    text += f". {_repriced(before, kept)}"
    if not same and isinstance(kept, PlanPrice):
        old = RankedPlan(plan=before.plan, price=kept)
        text += f" Against the new choice: {_lower_first(compare(after, old, options.objective))}"
    flip = _break_even(spec, result, profile, cluster, options, after)
    if flip is not None:
        text += f" Break-even: {flip.text}."
    near = lead is not None and lead < NEAR
    verdict = "same" if same else "tie" if near else "flips"
    return Answer(question=spec, verdict=verdict, text=text, plan=after, break_even=flip)


def _lead(after: RankedPlan, kept: PlanPrice | str, objective: str) -> float | None:
    """How much more of the objective the plan of now would need; ``None`` if it is impossible."""
    if isinstance(kept, str):
        return None
    best = value_of(after.price, objective)
    return value_of(kept, objective) / best - 1 if best else 0.0


def _kept(
    best: RankedPlan, profile: GraphProfile, changed: Cluster, options: SearchOptions
) -> PlanPrice | str:
    """The chosen plan's price on the changed cluster, or why it is not possible there."""
    try:
        cost = price(best.plan, profile, changed)
    except InputError as error:
        return error.message
    room = min(cost.capacity_bytes, options.max_memory_bytes or math.inf)
    if cost.peak_memory_bytes.high > room:
        return (
            f"{format_bytes(cost.peak_memory_bytes.high)}, margin included, are more than "
            f"{format_bytes(room)}"
        )
    return cost


def _repriced(best: RankedPlan, kept: PlanPrice | str) -> str:
    """What the change does to the chosen plan."""
    if isinstance(kept, str):
        return f"The plan of now is not possible then: {kept}."
    then = RankedPlan(plan=best.plan, price=kept)
    ratio = kept.step_time_s.value / best.price.step_time_s.value - 1
    if abs(ratio) < _SAME:
        return f"The plan of now takes as long as now{_bill(best.price, kept)}."
    text = f"The plan of now would take {format_seconds(kept.step_time_s.value)} ({ratio:+.1%}"
    moved = differences(best, then)
    return text + (f": {difference_words(moved)})." if moved else ").")


def _bill(now: PlanPrice, then: PlanPrice) -> str:
    """Money and energy of a step where a change moves them."""
    moved = []
    for old, new, show in (
        (now.cost_usd, then.cost_usd, lambda usd: f"{usd:.4g} USD"),
        (now.energy_joule, then.energy_joule, format_joule),
    ):
        if old is not None and new is not None and abs(new.value - old.value) > _SAME * old.value:
            moved.append(f"{show(new.value)} a step instead of {show(old.value)}")
    return f", at {' and '.join(moved)}" if moved else ""


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]


def _break_even(
    spec: str,
    result: SearchResult,
    profile: GraphProfile,
    cluster: Cluster,
    options: SearchOptions,
    after: RankedPlan,
) -> BreakEven | None:
    """Where the strategy flips: on the way to the change, else beyond it; for one quantity."""
    changes = parse_changes(spec)
    quantity, change = changes[0]
    if len(changes) > 1 or quantity.name in ("devices", "price", "power"):
        return None
    now = quantity.read(machines_used(cluster, result.best.plan))
    scale = change(now) / now
    if scale == 1:
        return None
    edge = min(scale, 1 / LIMIT) if scale < 1 else max(scale, LIMIT)
    for far in dict.fromkeys((scale, edge)):
        flip = flip_until(
            result,
            profile,
            cluster,
            quantity.name,
            far,
            options,
            known=[after.plan],
            effort="full" if effort_for(result.certificate) == "full" else "known",
        )
        if flip is not None:
            return flip
    return None


def _cuts(item: RankedPlan) -> list[int]:
    return [stage.stop_op for stage in item.plan.stages]
