"""Rows are made complete: what the formula needs is read, filled in, or the reason given why not.

Nothing here reads a measured column, except to say what the prediction is compared with.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, replace

from autopar.calibration.table import architecture
from autopar.validation.rows.frameworks import Framework, framework_of
from autopar.validation.rows.platform import (
    WIDE,
    Platform,
    find_platform,
    measured_bytes_per_s,
    named_bytes_per_s,
)
from autopar.validation.rows.printed_plan import (
    PrintedPlan,
    printed_plan,
    splits_sequence,
    stage_layers,
    zero_stage,
)
from autopar.validation.rows.rows import Row, Unpriced
from autopar.validation.rows.shapes import Shape
from autopar.validation.rows.stated_attention import fuses_attention
from autopar.validation.rows.stated_recompute import recompute_of
from autopar.validation.rows.stated_shape import shape_of
from autopar.validation.rows.stated_tokens import head_share, trained_length
from autopar.validation.rows.table import Entry, UnpriceableError

PRINTED = ("gpu", "precision", "recompute", "zero_or_fsdp", "notes")
"""Columns that rows keep as text."""


def complete(entries: Sequence[Entry]) -> tuple[list[Row], list[Unpriced]]:
    """Complete what can be completed.

    Args:
        entries: Lines of a CSV.

    Returns:
        Rows to price, and the others with the reason; no line is lost.
    """
    rows: list[Row] = []
    unpriced: list[Unpriced] = []
    for entry in entries:
        try:
            rows.append(_row(entry))
        except UnpriceableError as error:
            unpriced.append(Unpriced(id=entry.id, family=entry.family, reason=str(error)))
    return rows, unpriced


def _row(entry: Entry) -> Row:
    """One row; what was filled in is told in ``assumed``.

    Raises:
        UnpriceableError: Something is missing that nothing can supply.
    """
    notes: list[str] = []
    framework = framework_of(entry.text("framework"), entry.text("source"))
    platform = _platform(entry, notes)
    shape = shape_of(entry, framework, notes)
    plan = printed_plan(entry, framework, notes)
    precision = _precision(entry, platform, notes)
    seq = trained_length(entry, framework, notes)
    node = entry.whole("gpus_per_node", platform.devices_per_node)
    network, network_assumed = platform.inter_bytes_per_s, False
    if plan.devices > node:
        network, network_assumed = _network(entry, platform, notes)
    zero, zero_ranks = zero_stage(entry, framework, plan, node, notes)
    row = Row(
        id=entry.id,
        family=entry.family,
        group=f"{entry.text('model')}|{entry.text('gpu')}|{plan.devices}",
        choice=_choice(entry, framework, shape, plan, precision),
        fingerprint=entry.fingerprint,
        model=entry.text("model"),
        framework=framework.name,
        platform=platform,
        shape=shape,
        devices_per_node=node,
        intra_bytes_per_s=_rate(entry, "intra_gbps", platform.intra_bytes_per_s),
        inter_bytes_per_s=network,
        network_assumed=network_assumed,
        seq=seq,
        **asdict(plan),
        zero=zero,
        zero_ranks=zero_ranks,
        recompute="none",
        precision=precision,
        block_scaled="MX" in entry.text("precision").upper(),
        row_scaled="rowwise" in entry.text("precision").lower(),
        autocast=_autocasts(entry, framework, precision),
        fused_attention=fuses_attention(entry, framework, platform, notes),
        older_attention=_older_attention(framework, platform),
        sequence_parallel=splits_sequence(entry, framework, plan),
        gradient_bytes=framework.exchanged_bytes(
            entry.text("framework"), float32=precision in WIDE
        ),
        fused_softmax=framework.fused_softmax,
        overlaps_sync=framework.overlaps_sync,
        overlaps_tensor=framework.overlaps_tensor,
        gathers_once=framework.gathers_once and zero == 3 and plan.pp > 1,
        lora="lora" in (entry.text("model") + entry.text("notes")).lower(),
        head_share=head_share(entry, seq),
        stage_layers=stage_layers(shape.layers, plan.pp, entry.text("notes")),
        weight=_weight(entry, shape),
        measured_s=entry.positive("step_time_s"),
        measured_memory_bytes=_memory(entry),
        out_of_memory=bool(re.search("oom", entry.text("metric_value"), re.IGNORECASE)),
        printed={name: entry.text(name) for name in PRINTED},
    )
    return replace(row, recompute=recompute_of(entry, framework, row, notes), assumed=tuple(notes))


def _platform(entry: Entry, notes: list[str]) -> Platform:
    platform = find_platform(entry.text("gpu"))
    if platform is None:
        raise UnpriceableError(f"device '{entry.text('gpu')}' is not in the catalogue")
    if platform.note:
        notes.append(platform.note)
    return platform


def _choice(
    entry: Entry, framework: Framework, shape: Shape, plan: PrintedPlan, precision: str
) -> str:
    """What runs share that are alternatives to each other."""
    parts = (
        shape.layers,
        shape.hidden,
        shape.heads,
        entry.whole("seq"),
        entry.text("gpu"),
        plan.devices,
        plan.global_batch,
        framework.name,
        precision,
    )
    return "|".join(str(part) for part in parts)


def _rate(entry: Entry, column: str, default: float) -> float:
    """Bytes per second of a column in Gbit/s."""
    value = entry.positive(column)
    return value * 1e9 / 8 if value else default


def _network(entry: Entry, platform: Platform, notes: list[str]) -> tuple[float, bool]:
    """Link rate of a node, and whether it is nothing but the catalogue machine's.

    It is taken as measured, as printed, as that of the machine type that is named.
    """
    stated = measured_bytes_per_s(entry.text("notes"))
    if stated is None and (printed := entry.positive("inter_gbps")):
        stated = printed * 1e9 / 8
    if stated is None:
        stated = named_bytes_per_s(entry.text("notes"))
    if stated is not None:
        return stated, False
    gbps = platform.inter_bytes_per_s * 8 / 1e9
    notes.append(f"network of {gbps:g} Gbit/s a node assumed, the catalogue machine's")
    return platform.inter_bytes_per_s, True


def _precision(entry: Entry, platform: Platform, notes: list[str]) -> str:
    text = entry.text("precision").lower()
    if "fp4" in text:
        name = "float4"
    elif "fp8" in text or "float8" in text:
        name = "float8"
    elif "tf32" in text:
        name = "tf32"
    elif "fp32" in text and "amp" not in text:
        name = "float32"
    else:
        name = "float16"
        if not text:
            notes.append("16-bit products assumed")
    if name not in platform.peak_flop_per_s:
        raise UnpriceableError(f"{platform.device} has no {name} products in the catalogue")
    return name


def _older_attention(framework: Framework, platform: Platform) -> bool:
    """FlashAttention-2 on a device that has newer instructions."""
    newer = architecture(platform.device) in ("hopper", "blackwell")
    return newer and not framework.hopper_attention


def _autocasts(entry: Entry, framework: Framework, precision: str) -> bool:
    """Runs below float32 where ``torch.autocast`` chooses the width of every op."""
    stated = "amp" in entry.text("precision").lower()
    return (stated or framework.autocasts) and precision not in WIDE


def _weight(entry: Entry, shape: Shape) -> float:
    """Fits trust complete rows most: [A] 1, [B] something assumed 0.5, [C] noisy 0.2.

    A stand-in for blocks the formula cannot describe counts less still: its errors are not those
    of the constants.
    """
    note = entry.text("notes")
    stated = 0.2 if note.startswith("[C") else 0.5 if note.startswith("[B") else 1.0
    return stated * (0.3 if shape.flop_per_token else 1.0)


def _memory(entry: Entry) -> float | None:
    gib = entry.positive("peak_mem_gib")
    if gib is None:
        return None
    unit = 1e9 if "printed as GB" in entry.text("notes") else 1024**3
    return gib * unit
