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
from autopar.validation.memory.facts import facts
from autopar.validation.memory.oom import unjudged
from autopar.validation.rows.graph_plan import planned, roomy, spec_of, target_of, why_not
from autopar.validation.rows.rows import Row


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


def graph_peak(row: Row, profile: GraphProfile, cluster: Cluster) -> GraphPeak:
    """Peak memory of a row's plan on its traced model.

    Args:
        row: A row without a :func:`why_not`.
        profile: Of :func:`target_of` the row.
        cluster: Its devices.

    Raises:
        InputError: The plan is not in the space.
    """
    spec, large = spec_of(row), roomy(cluster)
    batch = int(row.dp * row.micro_batch * max(1.0, row.microbatches))
    options = SearchOptions(global_batch=batch, precision="bfloat16").resolved(large)
    model = CostModel(profile, large, options.precision)
    found = planned(row, model, options, batch)
    own = found.price.peak_memory_bytes.value
    fact = facts([row])
    theirs = _as_framework(CostModel(profile, large, options.precision), row)
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


def graph_rows(rows: Sequence[Row]) -> list[Row]:
    """Rows with a judged peak that can be priced through a graph, model by model."""
    skip = unjudged(rows)
    found = [
        row
        for row in rows
        if row.measured_memory_bytes is not None and row.id not in skip and why_not(row) is None
    ]
    return sorted(found, key=lambda row: (row.family, target_of(row), row.id))


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
