"""Peak memory of published runs through traced graphs: the road of ``autopar plan``.

The model of a row is a zoo model, its plan a point of the search space; memory is what the
planner says of it. Only what the row's framework holds differently from autopar is put in its
place: gradient bytes, optimizer temporaries, buckets, the loss, the margin fitted for it, and
whether its figure counts the whole device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

from autopar.calibration.memory import MemoryConstants
from autopar.cluster import Cluster
from autopar.core.units import GIB
from autopar.cost import CostModel
from autopar.cost import memory as mem
from autopar.cost.price import layout_of
from autopar.cost.states import ParameterBytes
from autopar.graph import GraphProfile
from autopar.search import SearchOptions
from autopar.search.select import solve_point
from autopar.search.space.named import point_of
from autopar.search.space.spec import parse_spec
from autopar.validation.memory.facts import facts
from autopar.validation.memory.oom import unjudged
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


@dataclass(frozen=True, kw_only=True)
class GraphPeak:
    """A row's peak through its graph, in bytes.

    Attributes:
        row: The run.
        target: The zoo model.
        spec: The point of the search space.
        value: With what the row's framework holds and as its source counts.
        own: As autopar would run the plan, the whole device: what ``plan`` prints.
    """

    row: Row
    target: str
    spec: str
    value: float
    own: float


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


def graph_peak(row: Row, profile: GraphProfile, cluster: Cluster) -> GraphPeak:
    """Peak memory of a row's plan on its traced model.

    Args:
        row: A row without a :func:`why_not`.
        profile: Of :func:`target_of` the row.
        cluster: Its devices.

    Raises:
        InputError: The plan is not in the space.
    """
    spec, roomy = spec_of(row), _roomy(cluster)
    batch = int(row.dp * row.micro_batch * max(1.0, row.microbatches))
    options = SearchOptions(global_batch=batch, precision="bfloat16").resolved(roomy)
    model = CostModel(profile, roomy, options.precision)
    found = solve_point(point_of(parse_spec(spec), profile, roomy, batch), model, options)
    own = found.price.peak_memory_bytes.value
    fact = facts([row])
    theirs = _as_framework(CostModel(profile, roomy, options.precision), row)
    bucket = theirs.memory.bucket_bytes * fact.reduce_bytes[0] / 2 * fact.buckets[0] / 2
    layout, cuts = layout_of(replace(found.plan, bucket_bytes=max(1, int(bucket))), theirs)
    parts = list(mem.memories(layout, cuts))
    counts = bool(fact.whole_device[0])
    value = max(p.total_bytes - (0 if counts else p.framework_bytes) for p in parts)
    return GraphPeak(row=row, target=target_of(row), spec=spec, value=value, own=own)


def _as_framework(model: CostModel, row: Row) -> CostModel:
    """The planner's model with what the row's framework holds."""
    fact, c = facts([row]), MemoryConstants.shipped()
    model.memory = replace(c, allocator_margin=c.margin(row.framework))
    model.sizes = ParameterBytes(
        weight=float(fact.weight_bytes[0]),
        gradient=float(fact.gradient_bytes[0]),
        state=float(fact.optimizer_bytes[0]),
    )
    model.update_bytes = float(fact.update_bytes[0])
    model.loss_factor = float(fact.loss[0])
    return model


def _roomy(cluster: Cluster) -> Cluster:
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


def graph_rows(rows: Sequence[Row]) -> list[Row]:
    """Rows with a judged peak that can be priced through a graph, model by model."""
    skip = unjudged(rows)
    found = [
        row
        for row in rows
        if row.measured_memory_bytes is not None and row.id not in skip and why_not(row) is None
    ]
    return sorted(found, key=lambda row: (row.family, target_of(row), row.id))


def cluster_text(row: Row) -> str:
    """The cluster of a row, as ``plan --cluster`` takes it; one node where they do not fill."""
    per_node = min(row.devices_per_node, row.devices)
    nodes = row.devices // per_node if row.devices % per_node == 0 else 1
    each = row.devices // nodes
    return f"{nodes}x{each}:{MACHINES[row.platform.device]}"


def memory_table(found: Sequence[GraphPeak]) -> str:
    """One line per run, and the errors over all, as Markdown."""
    lines = [
        "| run | model | plan | measured GiB | graph GiB | error | planned by autopar GiB |",
        "|---|---|---|---|---|---|---|",
    ]
    errors = []
    for item in found:
        measured = item.row.measured_memory_bytes or float("nan")
        errors.append(item.value / measured - 1)
        lines.append(
            f"| {item.row.id} | {item.row.model} | {item.spec} | {measured / GIB:.1f} "
            f"| {item.value / GIB:.1f} | {errors[-1]:+.1%} | {item.own / GIB:.1f} |"
        )
    size = [abs(error) for error in errors]
    under = sum(error < -0.1 for error in errors)
    lines.append(
        f"\n{len(found)} runs: median absolute error {median(size):.1%}, largest {max(size):.1%}; "
        f"{under} more than 10 % too low."
    )
    return "\n".join(lines) + "\n"
