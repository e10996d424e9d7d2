"""All that can be said about a choice: what limits it, how sure it is, what would flip it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from autopar.cluster import Cluster
from autopar.core.errors import InputError
from autopar.graph import GraphProfile
from autopar.results import RankedPlan, SearchResult
from autopar.search.explain.choice import (
    FULL,
    baseline_paragraphs,
    compare,
    layout_words,
    memory_paragraph,
    proof,
    useful_words,
    verdict,
)
from autopar.search.explain.parts import seconds_by_part, strategy_name, time_words, useful_share
from autopar.search.explain.quantities import QUANTITIES
from autopar.search.options import SearchOptions
from autopar.search.questions.breakeven import Effort, break_even, effort_for
from autopar.search.questions.pairs import CLOSE, Pair, compare_pair, overlap
from autopar.search.questions.sensitivity import RESOURCES, STEP, Repricer

FLIPS = ("inter_node_bandwidth", "memory", "devices")
"""Quantities whose break-even is looked for."""
_NAMED_CLUSTER = re.compile(r"local(:\d+)?|\d+x\d+:[\w.-]+(\+\d+x\d+:[\w.-]+)*")
"""Cluster names that the command line understands; others came from a file."""
NEGLIGIBLE = 0.005
"""A tenth more of a resource that saves less than this share of the step does not limit it."""


@dataclass(frozen=True, kw_only=True)
class Explainer:
    """Says why, when asked: the work is done at the first call.

    Attributes:
        result: The search.
        profile: What is trained.
        cluster: Where.
        options: What was asked.
    """

    result: SearchResult
    profile: GraphProfile
    cluster: Cluster
    options: SearchOptions

    def __call__(self) -> tuple[str, ...]:
        """The paragraphs."""
        return self.paragraphs

    @cached_property
    def paragraphs(self) -> tuple[str, ...]:
        """The reasons, each opened by what it is about."""
        return reasons(self.result, self.profile, self.cluster, self.options)


def reasons(
    result: SearchResult,
    profile: GraphProfile,
    cluster: Cluster,
    options: SearchOptions | None = None,
) -> tuple[str, ...]:
    """Why the chosen plan, for people, each paragraph opened by what it is about.

    Args:
        result: The search.
        profile: What it was searched for.
        cluster: Where.
        options: What was asked.
    """
    asked = options or SearchOptions(objective=result.objective)
    best, repricer = result.best, Repricer(profile, cluster)
    pairs = [compare_pair(best, item, repricer, result.objective) for item in _rivals(result)]
    odds = {pair.other.plan.hash: pair.odds for pair in pairs}
    return (
        verdict(best, result.certificate, result.objective),
        layout_words(best, cluster),
        binding(best, repricer, asked.max_memory_bytes),
        f"Time. {time_words(best.price.breakdown)}. {useful_words(best.price)}",
        memory_paragraph(best.price, asked.max_memory_bytes),
        *baseline_paragraphs(best, result.baselines, result.objective, odds),
        *_runners_up(result, odds),
        _how_sure(result, pairs, profile),
        proof(result.certificate),
        _assumed(result, pairs),
        *_flips(result, profile, cluster, asked),
    )


def _rivals(result: SearchResult) -> list[RankedPlan]:
    """Other plans whose range meets the chosen one's, each once."""
    best = result.best
    items = [*result.top, *(b for b in result.baselines.values() if isinstance(b, RankedPlan))]
    found = {item.plan.hash: item for item in items if overlap(best, item)}
    found.pop(best.plan.hash, None)
    return list(found.values()) if result.objective != "memory" else []


def binding(best: RankedPlan, repricer: Repricer, limit_bytes: float | None = None) -> str:
    """What limits the plan: idle time, or the resource of which a tenth more saves most."""
    elastic = repricer.elasticities(best.plan, best.price.step_time_s.value)
    saved = {name: 1 - STEP**-share for name, share in elastic.items()}
    order = sorted(saved, key=lambda name: -saved[name])
    parts = seconds_by_part(best.price.breakdown)
    total = sum(parts.values()) or 1.0
    bubble, again = parts["bubble_s"] / total, parts["recompute_s"] / total
    if bubble > useful_share(best.price.breakdown):
        text = (
            f"The pipeline bubble limits this plan: ranks idle {bubble:.0%} of the step "
            f"({best.plan.mesh.pp} pipeline ranks, {best.plan.microbatches} microbatches). A"
        )
    else:
        text = f"{RESOURCES[order[0]].limit}: a"
    shown = [name for name in order if saved[name] >= NEGLIGIBLE] or order[:1]
    text += " tenth more of each resource would save "
    text += ", ".join(f"{saved[name]:.1%} ({RESOURCES[name].title})" for name in shown)
    idle = [RESOURCES[name].title for name in order if name not in shown]
    text += f"; next to nothing: {', '.join(idle)}." if idle else "."
    room = min(best.price.capacity_bytes, limit_bytes or best.price.capacity_bytes)
    if best.price.peak_memory_bytes.high > FULL * room:
        text += " Memory is full: it decides which plans are possible."
    if again > NEGLIGIBLE:
        text += f" Recompute, which buys memory with time, takes {again:.1%} of the step."
    return f"Binding constraint. {text}"


def _runners_up(result: SearchResult, odds: Mapping[str, float]) -> list[str]:
    """Each further plan of the ranking, with the odds that it is the better one."""
    seen = {result.best.plan.hash}
    lines = []
    for place, item in enumerate(result.top[1:], start=2):
        if item.plan.hash in seen:  # another point, the same plan
            continue
        seen.add(item.plan.hash)
        words = compare(result.best, item, result.objective, odds=odds.get(item.plan.hash))
        lines.append(f"Against number {place}, {item.name}. {words}")
    return lines


def _how_sure(result: SearchResult, pairs: Sequence[Pair], profile: GraphProfile) -> str:
    """Which plans cannot be told from the chosen one, by what rule, and what to do."""
    close = sorted((pair for pair in pairs if pair.close), key=lambda pair: -pair.odds)
    rule = (
        "both plans are priced on the same uncertain hardware, so what slows both alike cancels; "
        f"called close from {CLOSE:.0%} odds of the wrong order"
    )
    if not close:
        return f"How sure. No plan shown is too close to call ({rule})."
    names = ", ".join(f"{pair.other.name} ({pair.odds:.0%})" for pair in close)
    ranks = {item.plan.hash: place for place, item in enumerate(result.top, start=1)}
    last = max((ranks.get(pair.other.plan.hash, 1) for pair in close), default=1)
    text = f"Too close to call. {names}: {rule}."
    if last > 1 and profile.target:
        name = str(result.cluster.get("name", ""))
        where = name if _NAMED_CLUSTER.fullmatch(name) else "CLUSTER-FILE"
        text += (
            f" Measure them: autopar bench '{profile.target}' --cluster {where} --global-batch "
            f"{result.best.plan.global_batch} --plans top:{last}"
        )
    return text


def _assumed(result: SearchResult, pairs: Sequence[Pair]) -> str:
    """Constants that were not measured, and which of them alone could flip the choice."""
    turning = [
        f"{RESOURCES[name].title} at x{factor:.3g} of what is assumed puts {pair.other.name} ahead"
        for pair in pairs
        for name, factor in pair.drivers[:1]
    ]
    notes = list(dict.fromkeys((*result.best.price.assumptions, *result.warnings)))
    if turning:
        text = f"Within its uncertainty one alone could flip the choice: {'; '.join(turning)}."
    else:
        text = "No resource alone, within its uncertainty, flips the choice."
    return f"Assumed. {text} Constants: {'; '.join(notes) if notes else 'none'}."


def _flips(
    result: SearchResult, profile: GraphProfile, cluster: Cluster, options: SearchOptions
) -> list[str]:
    """Break-even values, with the effort that the space allows."""
    effort = effort_for(result.certificate)
    chosen = strategy_name(result.best.plan)
    found, steady = [], []
    for quantity in FLIPS:
        if quantity == "inter_node_bandwidth" and cluster.node(cluster.device_count - 1) == 0:
            continue
        if quantity == "devices" and effort != "full":
            continue
        spent: Effort = "known" if quantity == "memory" and effort == "ends" else effort
        try:
            flips = break_even(result, profile, cluster, quantity, options, effort=spent)
        except InputError as error:  # a mixed or measured cluster cannot be changed so
            steady.append(f"{quantity} ({error.message})")
            continue
        found += [flip.text for flip in flips]
        steady += [] if flips else [QUANTITIES[quantity].title]
    subject = f"{chosen} stays the choice"
    if effort != "full":
        subject = f"Among the plans compared {chosen} stays ahead"
    text = f"Break-even. {subject} from x1/16 to x16"
    text += f" except: {'; '.join(found)}." if found else "."
    text += f" No flip by {' or '.join(steady)}." if steady else ""
    if effort != "full":
        ends = " and the best at either end" if effort == "ends" else ""
        text += (
            f" Compared were the plans shown{ends}; --what-if searches the space of "
            f"{result.certificate.space:,} points again."
        )
    return [text.replace(", among the plans compared", "")] if effort != "full" else [text]
