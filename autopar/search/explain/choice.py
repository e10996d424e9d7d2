"""Why this plan, from its price alone: what every search result says without further pricing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from autopar.cluster import Cluster
from autopar.core.units import format_bytes, format_joule, format_seconds
from autopar.plans import Plan
from autopar.results import Certificate, PlanPrice, RankedPlan, Rejection
from autopar.search.explain.machines_used import idle_words
from autopar.search.explain.parts import (
    difference_words,
    differences,
    memory_words,
    time_words,
    useful_share,
)
from autopar.search.options import SearchOptions
from autopar.search.space.spec import AXES
from autopar.search.stages.goal import value_of

FULL = 0.9
"""From this share on, margin included, memory is said to be full."""


def explain(
    top: Sequence[RankedPlan],
    baselines: Mapping[str, RankedPlan | Rejection],
    certificate: Certificate,
    options: SearchOptions,
) -> tuple[str, ...]:
    """Paragraphs for people, each opened by what it is about.

    :func:`autopar.search.questions.reasons.reasons` says more, at the price of pricing more.
    """
    best = top[0]
    lines = [
        verdict(best, certificate, options.objective),
        layout_words(best),
        f"Time. {time_words(best.price.breakdown)}. {useful_words(best.price)}",
        memory_paragraph(best.price, options.max_memory_bytes),
        *baseline_paragraphs(best, baselines, options.objective),
    ]
    if len(top) > 1:
        lines.append(
            f"Against the runner-up, {top[1].name}. {compare(best, top[1], options.objective)}"
        )
    lines.append(proof(certificate))
    return tuple(lines)


def verdict(best: RankedPlan, certificate: Certificate, objective: str) -> str:
    """The plan and its figures in one sentence, and how sure it is the best."""
    price = best.price
    step = price.step_time_s
    facts = [
        f"{format_seconds(step.value)} per step ({format_seconds(step.low)} to "
        f"{format_seconds(step.high)}, {step.source})",
        f"{price.samples_per_s:.4g} samples/s",
    ]
    if price.mfu is not None:
        facts.append(f"MFU {price.mfu:.0%}")
    facts.append(
        f"{format_bytes(price.peak_memory_bytes.value)} of "
        f"{format_bytes(price.capacity_bytes)} on the fullest rank"
    )
    if price.energy_joule is not None:
        facts.append(format_joule(price.energy_joule.value))
    if price.cost_usd is not None:
        facts.append(f"{price.cost_usd.value:.3g} USD")
    claim = (
        "proved best" if certificate.gap == 0 else f"at most {certificate.gap:.2%} from the best"
    )
    return (
        f"Verdict. {best.name}: {', '.join(facts)} a step; {claim} for {objective} in the space "
        f"of {certificate.space:,} points."
    )


def layout_words(best: RankedPlan, cluster: Cluster | None = None) -> str:
    """What the plan's name means.

    Args:
        best: The plan.
        cluster: To say how many of its devices stay idle.
    """
    plan = best.plan
    degrees = {axis: n for axis, n in plan.mesh.to_dict().items() if n > 1}
    product = [f"{n} {AXES[axis].summary}" for axis, n in degrees.items() if axis != "ep"]
    if plan.zero:
        sharded = f"{degrees['dp_shard']} {AXES['dp_shard'].summary}"
        product[product.index(sharded)] = f"{sharded} (ZeRO-{plan.zero})"
    text = f"{' x '.join(product) or 'one rank'} = {plan.world_size} devices"
    if "ep" in degrees:
        text += f", experts over {degrees['ep']} of them"
    text += (
        f"; {_count(plan.microbatches, 'microbatch', 'es')} of "
        f"{_count(plan.microbatch_size, 'sample', 's')} per replica, global batch "
        f"{plan.global_batch}"
    )
    if len(plan.stages) > 1:
        lengths = [len(stage.blocks) for stage in plan.stages]
        shortest, longest = min(lengths), max(lengths)
        each = f"{shortest}" if shortest == longest else f"{shortest} to {longest}"
        text += f"; {len(plan.stages)} stages of {each} blocks, schedule {plan.schedule}"
    text += "".join(f"; {saver}" for saver in _memory_savers(plan))
    if cluster is not None and cluster.device_count > plan.world_size:
        text += f". {_idle(best, cluster)}"
    return f"Plan. {text}."


def _idle(best: RankedPlan, cluster: Cluster) -> str:
    """How many devices have no rank, why, and that nobody pays for them here."""
    devices, nodes = cluster.device_count, idle_words(best.plan, cluster)
    text = f"The other {devices - best.plan.world_size} of {devices} devices"
    text += f" ({nodes})" if nodes and not cluster.uniform else ""
    text += " stay idle: no plan of the space that uses them is better"
    if best.price.cost_usd is None and best.price.energy_joule is None:
        return text
    return f"{text}; money and energy are of the devices used, idle ones are not counted"


def _count(number: int, word: str, ending: str) -> str:
    return f"{number} {word}{'' if number == 1 else ending}"


def _memory_savers(plan: Plan) -> list[str]:
    """What a plan does to need less memory, besides dividing the model."""
    blocks = sum(len(stage.blocks) for stage in plan.stages)
    savers = ["sequence parallel"] if plan.sequence_parallel else []
    for word, count in (
        ("full", sum(len(stage.recompute) for stage in plan.stages)),
        ("selective", sum(len(stage.selective) for stage in plan.stages)),
    ):
        if count:
            share = "all" if count == blocks else f"{count} of {blocks}"
            savers.append(f"{word} recompute of {share} blocks")
    return [*savers, "optimizer state in host memory"] if plan.offload else savers


def useful_words(price: PlanPrice) -> str:
    """How much of the step is the training itself."""
    share = useful_share(price.breakdown)
    ideal = price.step_time_s.value * share
    return (
        f"Forward and backward compute are {share:.0%} of the step; were all else free, it would "
        f"take {format_seconds(ideal)}."
    )


def memory_paragraph(price: PlanPrice, limit_bytes: float | None = None) -> str:
    """What fills the fullest rank, and whether memory binds."""
    room = min(price.capacity_bytes, limit_bytes or price.capacity_bytes)
    high = price.peak_memory_bytes.high
    used = high / room if room else 0.0
    text = (
        f"Memory. {memory_words(price.worst_memory)}; at the upper end of its range, "
        f"which decides, {format_bytes(high)}, {used:.0%} of {format_bytes(room)}"
    )
    return text + (", which is what binds." if used > FULL else ".")


def baseline_paragraphs(
    best: RankedPlan,
    baselines: Mapping[str, RankedPlan | Rejection],
    objective: str,
    odds: Mapping[str, float] | None = None,
) -> list[str]:
    """What people try first, against the chosen plan.

    Args:
        best: The chosen plan.
        baselines: As in the search result.
        objective: What was minimised.
        odds: Plan hash -> probability that it is the better one, where it was worked out.
    """
    known = odds or {}
    lines = []
    impossible = [
        f"{name} {item.detail}" for name, item in baselines.items() if isinstance(item, Rejection)
    ]
    if impossible:
        lines.append(f"Not possible. {'; '.join(impossible)}.")
    for name, item in baselines.items():
        if isinstance(item, Rejection):
            continue
        if item.plan.hash == best.plan.hash:
            lines.append(f"Against {name}. It is the chosen plan.")
        else:
            words = compare(best, item, objective, odds=known.get(item.plan.hash))
            lines.append(f"Against {name}, {item.name}. {words}")
    return lines


def compare(
    best: RankedPlan, other: RankedPlan, objective: str, *, odds: float | None = None
) -> str:
    """How much more another plan needs, in which parts of the step, and how sure that is.

    Args:
        best: The chosen plan.
        other: What it is compared with.
        objective: What was minimised.
        odds: Probability that the other plan is the better one, where it was worked out.
    """
    text = f"It needs {margin_words(best, other, objective)}"
    if other.plan.world_size != best.plan.world_size:
        text += f" on {other.plan.world_size} instead of {best.plan.world_size} devices"
    delta = other.price.step_time_s.value - best.price.step_time_s.value
    gains = differences(best, other)
    if gains:
        longer = "longer" if delta >= 0 else "shorter"
        text += f", {format_seconds(abs(delta))} {longer} a step: {difference_words(gains)}"
    if odds is not None:
        likely = "under 1%" if odds < 0.01 else f"{odds:.0%}"
        return f"{text}. Odds that it is in fact the better one: {likely}."
    if objective in ("time", "time-to-target") and (
        other.price.step_time_s.low <= best.price.step_time_s.high
    ):
        text += "; their ranges overlap"
    return text + "."


def margin_words(best: RankedPlan, other: RankedPlan, objective: str) -> str:
    """What another plan needs of the objective: ``+3.1% money``, ``15.5 times the time``."""
    mine, theirs = value_of(best.price, objective), value_of(other.price, objective)
    margin = theirs / mine - 1 if mine else 0.0
    ratio = f"{margin:+.1%}" if margin < 1 else f"{1 + margin:.1f} times the"
    return f"{ratio} {_unit(objective)}"


def proof(certificate: Certificate) -> str:
    """What happened to every point of the space."""
    rejected = ", ".join(
        f"{count:,} {reason}"
        for reason, count in sorted(certificate.rejected.items(), key=lambda item: -item[1])
        if count
    )
    text = f"Rejected. Of {certificate.space:,} points "
    if rejected:
        text += f"{sum(certificate.rejected.values()):,} are not possible ({rejected}), "
    text += (
        f"{certificate.bounded:,} cannot beat the best by a lower bound, "
        f"{certificate.priced:,} were priced in full"
    )
    if certificate.gap == 0:
        return text + ": proved best in this space."
    return text + f": at most {certificate.gap:.2%} may be left to gain."


def _unit(objective: str) -> str:
    return {"memory": "memory", "energy": "energy", "cost": "money"}.get(objective, "time")
