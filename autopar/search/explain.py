"""Why this plan: against baselines and the runner-up, part by part, with the margin of error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from autopar.core.units import format_bytes, format_seconds
from autopar.results import Certificate, RankedPlan, Rejection
from autopar.search.goal import value_of
from autopar.search.options import SearchOptions

_PARTS = {
    "forward_s": "forward",
    "backward_s": "backward",
    "recompute_s": "recompute",
    "pipeline_communication_s": "pipeline communication",
    "gradient_sync_s": "gradient synchronisation",
    "bubble_s": "bubble",
    "optimizer_s": "optimizer",
    "other_s": "other",
}


def explain(
    top: Sequence[RankedPlan],
    baselines: Mapping[str, RankedPlan | Rejection],
    certificate: Certificate,
    options: SearchOptions,
) -> tuple[str, ...]:
    """Paragraphs for people."""
    best = top[0]
    lines = [_verdict(best, options), _proof(certificate), _binding(best)]
    for name, item in baselines.items():
        if isinstance(item, Rejection):
            lines.append(f"{name} is not possible: {item.detail}.")
        elif item.plan.hash == best.plan.hash:
            lines.append(f"{name} is the chosen plan.")
        else:
            lines.append(f"Against {name} ({item.name}): {compare(best, item, options)}")
    if len(top) > 1:
        lines.append(f"Against the runner-up {top[1].name}: {compare(best, top[1], options)}")
    return tuple(lines)


def _verdict(best: RankedPlan, options: SearchOptions) -> str:
    price = best.price
    return (
        f"{best.name}: {format_seconds(price.step_time_s.value)} per step "
        f"({format_seconds(price.step_time_s.low)} to {format_seconds(price.step_time_s.high)}, "
        f"{price.step_time_s.source}), {price.samples_per_s:.4g} samples/s, peak memory "
        f"{format_bytes(price.peak_memory_bytes.value)}; best for {options.objective}."
    )


def _proof(certificate: Certificate) -> str:
    rejected = sum(certificate.rejected.values())
    claim = (
        "proved best in this space"
        if certificate.gap == 0
        else f"at most {certificate.gap:.2%} from the best in this space"
    )
    return (
        f"Of {certificate.space} points {rejected} were rejected, {certificate.bounded} ruled out "
        f"by a bound and {certificate.priced} priced in full: {claim}."
    )


def _binding(best: RankedPlan) -> str:
    """The resource that limits the plan."""
    price = best.price
    used = price.peak_memory_bytes.high / price.capacity_bytes if price.capacity_bytes else 0.0
    parts = price.breakdown.to_dict()
    total = parts.pop("total_s") or 1.0
    largest = max(parts, key=lambda key: parts[key])
    waits = {k: v for k, v in parts.items() if k not in ("forward_s", "backward_s")}
    worst = max(waits, key=lambda key: waits[key])
    text = (
        f"{parts[largest] / total:.0%} of the step is {_PARTS[largest]}; the largest cost beside "
        f"computing is {_PARTS[worst]} with {parts[worst] / total:.1%}; memory is filled to "
        f"{used:.0%}"
    )
    return text + (", which is what binds." if used > 0.9 else ".")


def compare(best: RankedPlan, other: RankedPlan, options: SearchOptions) -> str:
    """How much another plan loses and in which parts; says when the margin is within the error."""
    mine, theirs = (
        value_of(best.price, options.objective),
        value_of(other.price, options.objective),
    )
    margin = theirs / mine - 1 if mine else 0.0
    gains = differences(best, other)
    named = ", ".join(
        f"{_PARTS[key]} {'+' if delta > 0 else '-'}{format_seconds(abs(delta))}"
        for key, delta in gains[:3]
    )
    text = f"it needs {margin:+.1%} {_unit(options.objective)}"
    if named:
        text += f" (its {named})"
    step = best.price.step_time_s
    spread = (step.high - step.value) / step.value if step.value else 0.0
    if options.objective in ("time", "time-to-target") and margin < spread:
        text += f"; too close to call within the +-{spread:.0%} range"
    return text + "."


def differences(best: RankedPlan, other: RankedPlan) -> list[tuple[str, float]]:
    """Parts of the step that differ by more than 0.1 %, largest first."""
    total = best.price.step_time_s.value
    mine, theirs = best.price.breakdown.to_dict(), other.price.breakdown.to_dict()
    deltas = [(key, theirs[key] - mine[key]) for key in _PARTS]
    kept = [(key, delta) for key, delta in deltas if abs(delta) > 1e-3 * total]
    return sorted(kept, key=lambda item: -abs(item[1]))


def _unit(objective: str) -> str:
    return {"memory": "memory", "energy": "energy", "cost": "money"}.get(objective, "time")
