"""The plan of a published row: degrees, batch, ZeRO stage, blocks of its pipeline stages."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass

from autopar.validation.rows.frameworks import Framework
from autopar.validation.rows.shapes import size_in_name
from autopar.validation.rows.table import Entry, UnpriceableError


@dataclass(frozen=True, slots=True, kw_only=True)
class PrintedPlan:
    """Degrees and batch of a row; fields as in :class:`~autopar.validation.rows.rows.Row`."""

    devices: int
    dp: int
    tp: int
    pp: int
    vpp: int
    cp: int
    ep: int
    micro_batch: float
    microbatches: float
    global_batch: float


def printed_plan(entry: Entry, framework: Framework, notes: list[str]) -> PrintedPlan:
    """Degrees and batch, and what was filled in added to ``notes``.

    Raises:
        UnpriceableError: A degree is missing, or they do not divide the devices.
    """
    devices = entry.whole("gpus")
    tp, pp = entry.whole("tp"), entry.whole("pp")
    cp = entry.whole("cp", 1)
    dp = _replicas(entry, devices, tp * pp * cp, f"tp {tp} x pp {pp} x cp {cp}", notes)
    micro, batch = _batch(entry, framework, dp, pp, notes)
    vpp = entry.positive("vpp")
    if vpp is None:
        vpp = 2 if "interleaved" in entry.text("notes").lower() and pp > 1 else 1
    return PrintedPlan(
        devices=devices,
        dp=dp,
        tp=tp,
        pp=pp,
        vpp=round(max(1, vpp)),
        cp=cp,
        ep=entry.whole("ep", 1),
        micro_batch=micro,
        microbatches=max(1.0, batch / (micro * dp)),
        global_batch=batch,
    )


def _replicas(entry: Entry, devices: int, model_ranks: int, degrees: str, notes: list[str]) -> int:
    """Data parallel degree: where the printed one contradicts the others, they count."""
    dp = entry.whole("dp", max(1, devices // model_ranks))
    if dp * model_ranks == devices:
        return dp
    if devices % model_ranks:
        raise UnpriceableError(f"{degrees} does not divide {devices} devices")
    notes.append(f"dp {devices // model_ranks}, not the printed {dp}: the product counts")
    return devices // model_ranks


def _batch(
    entry: Entry, framework: Framework, dp: int, pp: int, notes: list[str]
) -> tuple[float, float]:
    """Sequences per microbatch and replica, and per step."""
    micro = entry.positive("micro_batch")
    batch = entry.positive("global_batch")
    if micro is None:
        micro = framework.micro_batch(
            entry.positive("params_b") or size_in_name(entry.text("model"))
        )
        notes.append(f"microbatch {micro:g} assumed")
    if batch is None:
        batch = micro * dp
        notes.append("one microbatch per step assumed")
    if pp > 1 and framework.splits_microbatch and micro * dp >= batch:
        micro = max(1.0, micro / pp)
        notes.append("microbatches per step = stages, the framework's default")
    return micro, batch


def zero_stage(
    entry: Entry, framework: Framework, plan: PrintedPlan, node: int, notes: list[str]
) -> tuple[int, int]:
    """ZeRO stage and the ranks it spreads over.

    Args:
        entry: The row as printed.
        framework: Its framework.
        plan: Its degrees.
        node: Devices of a node, over which hybrid sharding spreads unless it says otherwise.
        notes: What was filled in.
    """
    text = entry.text("zero_or_fsdp").lower()
    ranks = round(plan.dp * plan.cp)
    within = re.search(r"within (\d+)", text)
    hybrid = "hsdp" in text or "hybrid" in text
    if within or hybrid:
        ranks = min(ranks, int(within[1]) if within else max(1, node // plan.tp))
    if hybrid:
        return (2 if "zero2" in text else 3), ranks
    if "shard_grad_op" in text:
        return 2, ranks
    if "fsdp" in text or "full_shard" in text:
        return 3, ranks
    stage = re.search(r"zero-?\s?([0-3])", text)
    if stage:
        return int(stage[1]), ranks
    if "distributed optimizer" in text:
        return 1, ranks
    if not text and framework.zero:
        notes.append(f"ZeRO-{framework.zero} assumed, the framework's default")
    return framework.zero if text == "" else 0, ranks


def splits_sequence(entry: Entry, framework: Framework, plan: PrintedPlan) -> bool:
    """Whether norms and residuals are split by tp too."""
    stated = entry.number("sp")
    return plan.tp > 1 and (framework.sequence_parallel if stated is None else stated > 0)


def stage_layers(layers: int, pp: int, notes: str) -> tuple[float, float, float]:
    """Blocks of the first, the largest middle and the last stage.

    Printed stage lists count embedding and head as units. Without one, ``layers + 2`` divisible
    by ``pp`` means that embedding and head take a block's place each; else the remainder goes to
    the middle stages.
    """
    if pp == 1:
        return float(layers), 0.0, float(layers)
    printed = _printed_stages(layers, pp, notes)
    if printed is not None:
        middle = max(printed[1:-1], default=0.0)
        return printed[0], middle, printed[-1]
    if (layers + 2) % pp == 0 and layers % pp:
        most = (layers + 2) / pp
        return most - 1, most if pp > 2 else 0.0, most - 1
    most, least = -(-layers // pp), layers // pp
    return (
        (float(least) if pp > 2 else float(most)),
        (float(most) if pp > 2 else 0.0),
        float(least),
    )


def _printed_stages(layers: int, pp: int, notes: str) -> list[float] | None:
    cuts = re.search(r"layer partition \[([\d, ]+)\]", notes)
    counts = re.search(r"stages \[([\d, ]+)\] layers", notes)
    if cuts:
        bounds = [int(x) for x in cuts[1].split(",")]
        pad = (bounds[-1] - layers) // 2
        inner = [min(max(b - pad, 0), layers) for b in bounds]
        stages = [float(b - a) for a, b in itertools.pairwise(inner)]
    elif counts:
        stages = [float(x) for x in counts[1].split(",")]
        extra = (sum(stages) - layers) / 2
        stages[0] -= extra
        stages[-1] -= extra
    else:
        return None
    return stages if len(stages) == pp else None
