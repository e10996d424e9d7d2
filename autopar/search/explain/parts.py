"""Seconds and bytes by part, in words; works for any part a breakdown has."""

from __future__ import annotations

from collections.abc import Mapping

from autopar.core.units import format_bytes, format_seconds
from autopar.plans import Plan
from autopar.results import CostBreakdown, MemoryBreakdown, RankedPlan

_WORDS = {
    "collective_s": "collectives inside layers",
    "pipeline_communication_s": "waiting for pipeline messages",
    "gradient_sync_s": "exposed gradient synchronisation",
    "bubble_s": "bubble (idle in the pipeline)",
    "optimizer_s": "optimizer",
    "transient_bytes": "workspace",
    "communication_bytes": "communication buffers",
    "framework_bytes": "context and libraries",
    "allocator_bytes": "margin of the allocator",
    "optimizer_bytes": "optimizer state",
}
USEFUL = ("forward_s", "backward_s")
"""Parts that are the training itself; the rest is what splitting it costs."""
SHOWN = 0.002
"""Parts below this share of the whole are left out of sentences."""


def part_name(key: str) -> str:
    """A part's field name in words: ``gradient_sync_s`` -> "exposed gradient synchronisation"."""
    return _WORDS.get(key) or key.removesuffix("_s").removesuffix("_bytes").replace("_", " ")


def seconds_by_part(breakdown: CostBreakdown) -> dict[str, float]:
    """Part -> seconds, without the total."""
    return {key: s for key, s in breakdown.to_dict().items() if key != "total_s"}


def bytes_by_part(breakdown: MemoryBreakdown) -> dict[str, float]:
    """Part -> bytes, without the total."""
    return {key: size for key, size in breakdown.to_dict().items() if key != "total_bytes"}


def differences(best: RankedPlan, other: RankedPlan) -> list[tuple[str, float]]:
    """Seconds by part that another plan needs more than the best one, largest first.

    Parts that differ by less than 0.1 % of the best plan's step are left out.
    """
    total = best.price.step_time_s.value
    mine = seconds_by_part(best.price.breakdown)
    theirs = seconds_by_part(other.price.breakdown)
    deltas = [(key, theirs[key] - mine[key]) for key in mine]
    kept = [(key, delta) for key, delta in deltas if abs(delta) > 1e-3 * total]
    return sorted(kept, key=lambda item: -abs(item[1]))


def signed_seconds(delta_s: float) -> str:
    """A difference for people: ``+1.2 s``, ``-30 ms``."""
    return f"{'+' if delta_s >= 0 else '-'}{format_seconds(abs(delta_s))}"


def difference_words(deltas: list[tuple[str, float]], most: int = 4) -> str:
    """``bubble +1.2 s, optimizer -30 ms``; the rest summed when parts are left out."""
    named = [f"{part_name(key)} {signed_seconds(delta)}" for key, delta in deltas[:most]]
    rest = sum(delta for _, delta in deltas[most:])
    if rest:
        named.append(f"other parts {signed_seconds(rest)}")
    return ", ".join(named)


def time_words(breakdown: CostBreakdown) -> str:
    """Where a step goes: seconds and share of each part, largest first."""
    parts = seconds_by_part(breakdown)
    total = sum(parts.values()) or 1.0
    return ", ".join(
        f"{part_name(key)} {format_seconds(seconds)} ({seconds / total:.1%})"
        for key, seconds in _largest(parts, total)
    )


def memory_words(breakdown: MemoryBreakdown) -> str:
    """What fills a rank: bytes of each part, largest first."""
    parts = bytes_by_part(breakdown)
    return ", ".join(
        f"{part_name(key)} {format_bytes(size)}"
        for key, size in _largest(parts, breakdown.total_bytes or 1.0)
    )


def _largest(parts: Mapping[str, float], total: float) -> list[tuple[str, float]]:
    kept = [(key, value) for key, value in parts.items() if abs(value) >= SHOWN * total]
    return sorted(kept, key=lambda item: -item[1])


def useful_share(breakdown: CostBreakdown) -> float:
    """Share of the step that is forward and backward compute on the critical rank."""
    parts = seconds_by_part(breakdown)
    total = sum(parts.values())
    return sum(parts[key] for key in USEFUL) / total if total else 0.0


def strategy_name(plan: Plan) -> str:
    """How a plan divides the model over devices: its name up to schedule and microbatches.

    ``dp2·pp2·1f1b·m8·b4`` -> ``dp2·pp2``. Schedules and microbatches are easily changed, and two
    plans that differ in them only are of one strategy.
    """
    details = plan.name.find(f"·m{plan.microbatches}·")
    parts = (plan.name if details < 0 else plan.name[:details]).split("·")
    if plan.mesh.pp > 1:
        parts = parts[:-1]
    return "·".join(parts)
