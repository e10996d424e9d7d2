"""Step times of published runs through traced graphs: the road of ``autopar plan``.

The model of a row is a zoo model, its plan a point of the search space, the constants are those of
a plan that autopar runs itself; nothing of the row's framework enters. Its kernels may be fused,
compiled or older than torch's, so this says how far a planned time lies from what other software
reached with the same plan. The constants were fitted on these rows through the closed form, the
graphs were not seen by the fit.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from autopar.cluster import Cluster
from autopar.core.stats import median, quantile
from autopar.cost import CostModel
from autopar.graph import GraphProfile
from autopar.search import SearchOptions
from autopar.validation.rows.graph_plan import planned, roomy, spec_of, target_of, why_not
from autopar.validation.rows.rows import Row

NARROW = ("bfloat16", "float16")
MAX_SEQ, MAX_DEVICES = 8192, 512
"""Longer sequences and more devices take minutes to trace and to price."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphTime:
    """A row's step time through its graph.

    Attributes:
        row: The run.
        spec: The point of the search space.
        value_s: Predicted.
        low_s: Lower end of the planner's range.
        high_s: Upper end.
        measured_s: What the source printed.
    """

    row: Row
    spec: str
    value_s: float
    low_s: float
    high_s: float
    measured_s: float

    @property
    def error(self) -> float:
        """Predicted over measured, minus one."""
        return self.value_s / self.measured_s - 1


def timed_rows(rows: Iterable[Row], each: int) -> list[Row]:
    """Rows whose step can be priced through a graph, at most some of each model.

    Args:
        rows: All rows.
        each: Most rows of one model and source; the first, the last and those between, evenly.
    """
    by_model: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        fits = row.seq <= MAX_SEQ and row.devices <= MAX_DEVICES and row.precision in NARROW
        if fits and row.measured_s and row.fused_attention and why_not(row) is None:
            by_model[row.family, target_of(row)].append(row)
    found = []
    for _, alike in sorted(by_model.items()):
        step = max(1.0, (len(alike) - 1) / max(1, each - 1))
        found += [alike[round(i * step)] for i in range(min(each, len(alike)))]
    return found


def graph_time(row: Row, profile: GraphProfile, cluster: Cluster) -> GraphTime:
    """Step time of a row's plan on its traced model.

    Args:
        row: One of :func:`timed_rows`.
        profile: Of :func:`target_of` the row.
        cluster: Its devices.

    Raises:
        InputError: The plan is not in the space.
    """
    assert row.measured_s is not None  # timed_rows looked
    spec, large = spec_of(row), roomy(cluster)
    batch = int(row.dp * row.micro_batch * max(1.0, row.microbatches))
    options = SearchOptions(global_batch=batch, precision=row.precision).resolved(large)
    model = CostModel(profile, large, options.precision)
    found = planned(row, model, options, batch)
    step = found.price.step_time_s
    return GraphTime(
        row=row,
        spec=spec,
        value_s=step.value,
        low_s=step.low,
        high_s=step.high,
        measured_s=row.measured_s,
    )


def time_table(found: Sequence[GraphTime]) -> str:
    """Errors by source and over all, then one line per run, as Markdown."""
    families: dict[str, list[GraphTime]] = defaultdict(list)
    for item in found:
        families[item.row.family].append(item)
    lines = [
        "| source | runs | median error | median abs. | mean abs. | p90 abs. | in range |",
        "|---|---|---|---|---|---|---|",
        *(_summary(name, some) for name, some in sorted(families.items())),
        _summary("all", found),
        "",
        "| run | model | devices | plan | measured s | predicted s | error |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {item.row.id} | {item.row.model} | {item.row.devices} {item.row.platform.device} "
            f"| {item.spec} | {item.measured_s:.3g} | {item.value_s:.3g} | {item.error:+.1%} |"
            for item in found
        ),
    ]
    return "\n".join(lines) + "\n"


def _summary(name: str, some: Sequence[GraphTime]) -> str:
    errors = [item.error for item in some]
    size = [abs(error) for error in errors]
    inside = sum(item.low_s <= item.measured_s <= item.high_s for item in some) / len(some)
    return (
        f"| {name} | {len(some)} | {median(errors):+.1%} | {median(size):.1%} "
        f"| {sum(size) / len(size):.1%} | {quantile(size, 0.9):.1%} | {inside:.0%} |"
    )
