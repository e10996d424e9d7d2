"""The measurement of a task, put together from the points that were timed."""

from __future__ import annotations

from autopar.core.stats import median
from autopar.core.units import format_bytes
from autopar.graph import Block, BlockCurve, Measurement
from autopar.profiler.timing.campaign import Campaign, parameter_bytes
from autopar.profiler.timing.points import point_name


def assemble(campaign: Campaign) -> Measurement | None:
    """Curves and factors from the stored results."""
    curves = {
        block.signature: curve
        for block in campaign.unique
        if (curve := _curve(campaign, block)) is not None
    }
    _warn_unmeasured(campaign, curves)
    if not curves:
        return None
    spread = _spread(campaign)
    if spread > campaign.policy.noisy_spread:
        campaign.warnings.append(
            f"timings vary by +-{spread:.0%}: other programs kept the host busy; for sharper "
            f"predictions delete {campaign.store.path.parent} and profile again on a quiet host"
        )
    return Measurement(
        device=campaign.load.name,
        busy_ranks=campaign.load.ranks,
        threads=campaign.load.threads,
        curves=curves,
        composition=_composition(campaign, curves),
        eager=_eager(campaign),
        again=_again(campaign),
        **_optimizer(campaign),
        resident_bytes=campaign.store.results.get("resident", {}).get("resident_bytes", 0.0),
        spread=spread,
        pace_s=campaign.store.results.get("pace", {}).get("pace_s"),
    )


def _optimizer(campaign: Campaign) -> dict[str, float]:
    """What an optimizer step takes, and calls that were timed beside it."""
    step = campaign.store.value("optimizer", "optimizer", 1) or {}
    per_byte = step.get("step_s", 0.0) / step["bytes"] if step else 0.0
    total = parameter_bytes(campaign.traced)
    scale = total / step["bytes"] if step else 0.0
    clear_s = step.get("zero_grad_s", 0.0) * scale
    within_s = _within_step_s(campaign)
    if within_s is not None and total:
        per_byte = max(within_s - clear_s, 0.0) / total
    calls = ("checkpoint_s", "checkpoint_s_per_op", "selective_s", "selective_s_per_op")
    return {
        "optimizer_s": per_byte * total,
        "optimizer_s_per_byte": per_byte,
        "zero_grad_s": clear_s,
        "accumulate_s_per_byte": step.get("accumulate_s", 0.0) / step["bytes"] if step else 0.0,
        **{name: step.get(name, 0.0) for name in calls},
    }


def _again(campaign: Campaign) -> dict[str, tuple[float, float]]:
    """Per block, what computing it again costs in full and without products."""
    found = {}
    for block in campaign.unique:
        row = campaign.store.value("block", block.signature, campaign.sizes[0]) or {}
        if "full_s" in row:
            found[block.signature] = (row["full_s"], row["selective_s"])
        elif "again_failed" in row:
            campaign.warnings.append(
                f"block '{block.name}' could not be computed again ({row['again_failed']}): "
                "its recompute is priced by a chain of tiny layers"
            )
    return found


def _curve(campaign: Campaign, block: Block) -> BlockCurve | None:
    points = [
        (float(s), row["forward_s"], row["backward_s"])
        for s in campaign.sizes
        if (row := campaign.store.value("block", block.signature, s)) is not None
    ]
    return BlockCurve(points=tuple(points)) if points else None


def _composition(
    campaign: Campaign, curves: dict[str, BlockCurve]
) -> tuple[tuple[float, float], ...]:
    """Per size, time of the whole model over the sum of its blocks."""
    if any(block.signature not in curves for block in campaign.blocks):
        return ()
    result = []
    for samples in campaign.sizes:
        row = campaign.store.value("whole", "whole", samples)
        if row is None:
            continue
        parts = sum(sum(curves[b.signature].at(samples)) for b in campaign.blocks)
        result.append((float(samples), (row["forward_s"] + row["backward_s"]) / parts))
    return tuple(result)


def _eager(campaign: Campaign) -> tuple[tuple[float, float, float], ...]:
    """Per size, time of the user's own module over the traced one, forward and backward."""
    result = []
    for samples in campaign.sizes:
        own = campaign.store.value("eager", "eager", samples)
        traced = campaign.store.value("whole", "whole", samples)
        if own is not None and traced is not None:
            forward, backward = (
                max(own[key] / max(traced[key], 1e-9), 1.0) for key in ("forward_s", "backward_s")
            )
            result.append((float(samples), forward, backward))
    return tuple(result)


def _within_step_s(campaign: Campaign) -> float | None:
    """Seconds of an optimizer step inside a training step, ``None`` when not known."""
    rows = [campaign.store.value("whole", "whole", samples) for samples in campaign.sizes]
    found = [row["optimizer_s"] for row in rows if row and row.get("optimizer_s")]
    return median(found) if found and campaign.pickled else None


def _spread(campaign: Campaign) -> float:
    spreads = [row["spread"] for row in campaign.store.results.values() if "spread" in row]
    return median(spreads) if spreads else 0.0


def _warn_unmeasured(campaign: Campaign, curves: dict[str, BlockCurve]) -> None:
    missing = [block for block in campaign.unique if block.signature not in curves]
    large = [block for block in missing if not campaign.fits(block, campaign.sizes[0])]
    if large:
        need = max(block.parameter_bytes for block in large)
        campaign.warnings.append(
            f"{len(large)} of {len(campaign.unique)} unique blocks are too large to time here "
            f"(up to {format_bytes(need)} of parameters, {campaign.load.ranks} busy ranks); "
            "they are priced from their FLOPs and bytes"
        )
    for block in missing:
        rows = [
            campaign.store.results.get(point_name("block", block.signature, s), {})
            for s in campaign.sizes
        ]
        reasons = [r.get("failed") or r.get("skipped") for r in rows if r]
        if reasons:
            cause = "a pass takes too long" if reasons[0] == "slow" else str(reasons[0])
            campaign.warnings.append(f"block '{block.name}' is not measured: {cause}")
