"""Published runs as plans of traced graphs: zoo model, point of the space, cluster."""

from __future__ import annotations

from dataclasses import replace

from autopar.cluster import Cluster
from autopar.cost import CostModel
from autopar.results import RankedPlan
from autopar.search import SearchOptions
from autopar.search.space.named import point_of
from autopar.search.space.plans import rank_plan
from autopar.search.space.spec import parse_spec
from autopar.validation.rows.rows import Row

ROOM_BYTES = 1e15
"""Memory of a device while a row is priced: whether it fits is not the question."""


MACHINES = {
    "a100": "a100-80gb-sxm",
    "a800": "a100-80gb-sxm",
    "h100": "h100-sxm",
    "h200": "h200-sxm",
}
"""Machine of the catalogue for a row's device; memory and multiprocessors are what count."""


def why_not(row: Row) -> str | None:
    """Why a row cannot be priced through a graph, or ``None``."""
    shape, whole = row.shape, row.micro_batch == int(row.micro_batch)
    scores = not row.fused_attention and row.recompute != "full"
    reasons = (
        (bool(shape.experts) or shape.attention_share < 1, "not a dense transformer"),
        (shape.heads * shape.head_dim != shape.hidden, "heads do not divide the width"),
        (row.lora, "adapters"),
        (scores, "attention keeps its scores, the zoo's is fused"),
        (row.seq > MAX_SEQ, f"sequences beyond {MAX_SEQ}"),
        (row.platform.device not in MACHINES, "device is not looked up"),
        (not whole, "microbatch is not whole"),
    )
    return next((reason for holds, reason in reasons if holds), None)


MAX_SEQ = 32768
"""Longer sequences need context parallel plans whose traced attention autopar gathers."""


def target_of(row: Row) -> str:
    """The zoo model of a row."""
    s = row.shape
    text = f"layers={s.layers}&hidden={s.hidden}&heads={s.heads}&ffn={s.ffn}&vocab={s.vocab}"
    if s.gated:
        return f"zoo:llama?{text}&kv_heads={s.kv_heads}&seq={row.seq}"
    return f"zoo:gpt?{text}&seq={row.seq}"


def spec_of(row: Row) -> str:
    """The point of the search space that a row ran at."""
    shared = row.zero > 0 and row.dp > 1
    wanted = {"dp_shard": row.dp, "zero": row.zero} if shared else {"dp_replicate": row.dp}
    wanted |= {"tp": row.tp, "cp": row.cp, "pp": row.pp}
    words = [f"{name}={value}" for name, value in wanted.items()]
    words += [f"b={int(row.micro_batch)}", f"recompute={row.recompute}"]
    if row.pp > 1:
        words.append("schedule=interleaved" if row.vpp > 1 else "schedule=1f1b")
        words += [f"v={row.vpp}"] if row.vpp > 1 else []
    if row.sequence_parallel and row.tp > 1:
        words.append("sp=on")
    return ",".join(words)


def roomy(cluster: Cluster) -> Cluster:
    """The cluster with memory for everything."""
    groups = tuple(
        replace(
            group,
            machine=replace(
                group.machine, device=replace(group.machine.device, memory_bytes=ROOM_BYTES)
            ),
        )
        for group in cluster.groups
    )
    return replace(cluster, groups=groups)


def cluster_text(row: Row) -> str:
    """The cluster of a row, as ``plan --cluster`` takes it; one node where they do not fill."""
    per_node = min(row.devices_per_node, row.devices)
    nodes = row.devices // per_node if row.devices % per_node == 0 else 1
    each = row.devices // nodes
    return f"{nodes}x{each}:{MACHINES[row.platform.device]}"


def planned(row: Row, model: CostModel, options: SearchOptions, batch: int) -> RankedPlan:
    """A row's plan on its traced model, priced; layers are shared out evenly, as frameworks do.

    Args:
        row: A row without a :func:`why_not`.
        model: Of its model and devices.
        options: Batch and precision.
        batch: Samples a step.

    Raises:
        InputError: The plan is not in the space.
    """
    point = point_of(parse_spec(spec_of(row)), model.profile, model.cluster, batch)
    blocks = len(model.profile.blocks)
    cuts = even_cuts(blocks, min(row.shape.layers, blocks), point.stages)
    return rank_plan(point, cuts, model, options)


def even_cuts(blocks: int, layers: int, stages: int) -> tuple[int, ...]:
    """Boundaries with as many layers in every stage, what comes before and after at the ends.

    Args:
        blocks: Of the graph: the layers, one before them if there are more, the rest behind.
        layers: Of the model.
        stages: Virtual stages.
    """
    before = 1 if blocks > layers else 0
    inner = (before + round(layers * stage / stages) for stage in range(1, stages))
    return (0, *inner, blocks)
