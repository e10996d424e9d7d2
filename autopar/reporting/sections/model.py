"""The model: drawing, cost by block, roofline, operators, curves."""

from __future__ import annotations

from autopar.cluster import Cluster
from autopar.core.units import format_bytes, format_count
from autopar.graph import GraphProfile
from autopar.plans import Plan
from autopar.reporting.figures.blocks import BlockRow, block_rows, block_table, share_figure
from autopar.reporting.figures.roofline import roofline_figure
from autopar.reporting.graph_svg import graph_svg
from autopar.reporting.graph_view import GraphView, from_plan, from_profile, graph_table
from autopar.reporting.model import Chart, Section
from autopar.reporting.sections.subject import Subject
from autopar.reporting.text import middle, percent, plural, quantity


def model_section(subject: Subject) -> Section | None:
    """Drawing coloured by stage; with a profile also costs by block and the roofline."""
    plan = subject.plan
    if subject.profile is None:
        if len(plan.stages) < 2:
            return None
        chart = graph_chart(from_plan(plan, subject.price), plan)
        return Section(id="model", title="Model", lead="", parts=(chart,))
    samples = plan.microbatch_size
    parts = block_charts(subject.profile, plan, samples, subject.cluster)
    graph = graph_chart(from_profile(subject.profile, plan, samples), plan)
    return Section(
        id="model", title="Model", lead=model_lead(subject.profile), parts=(graph, *parts)
    )


def model_lead(profile: GraphProfile) -> str:
    """Size of the model in one sentence."""
    return (
        f"{format_count(profile.parameter_count)} parameters in {len(profile.blocks)} blocks "
        f"({profile.unique_blocks} different ones), {len(profile.ops):,} operators."
    )


def graph_chart(view: GraphView, plan: Plan | None) -> Chart:
    """The drawing with its table."""
    stage = {node.index: node.stage for node in view.nodes}
    cuts = [a for a in view.arrows if stage[a.producer] != stage[a.consumer]]
    if cuts:
        total = sum(arrow.size_bytes for arrow in cuts)
        title = (
            f"{len(set(stage.values()))} stages; {format_bytes(total)} cross "
            "stage borders per microbatch"
        )
    elif plan is not None:
        title = "Every rank holds the whole model"
    else:
        blocks = plural(sum(node.blocks for node in view.nodes), "block")
        title = f"{blocks} from input to loss"
    return Chart(
        id="graph",
        title=title,
        how_to_read="Boxes are blocks of the model in order, left to right, then row by row; "
        "a count stands before repeats drawn as one. Arrows carry tensors forward, with their "
        "bytes for one microbatch; thick arrows cross a stage border. The mark at the left edge "
        "and the number after S name the stage. The line inside a box is its share of the work, "
        "the longest is the most. Hover for full names.",
        table=graph_table(view),
        svg=graph_svg(view, title),
        note=view.note,
    )


def block_charts(
    profile: GraphProfile, plan: Plan | None, samples: int, cluster: Cluster | None
) -> list[Chart]:
    """Cost by block, and the roofline where blocks were measured."""
    rows = block_rows(profile, plan, samples)
    charts = [
        Chart(
            id="blocks",
            title=_share_finding(rows),
            how_to_read="The most expensive kinds of block; equal blocks of one stage share a "
            "bar. Blue is forward, striped orange backward. The table has every block: search "
            "it, sort it by a click on a heading.",
            table=block_table(rows, samples),
            figure=share_figure(rows),
        )
    ]
    timed = [row for row in rows if row.rate and row.intensity]
    if timed:
        charts.append(_roofline(tuple(timed), profile, plan, cluster))
    return charts


def _share_finding(rows: tuple[BlockRow, ...]) -> str:
    timed = all(row.seconds is not None for row in rows)
    values = [(row.seconds or 0.0) if timed else row.flop for row in rows]
    total = sum(values)
    if total <= 0:
        return "No block has a counted cost"
    top = max(range(len(rows)), key=lambda i: values[i])
    name = middle(rows[top].name.split(" … ")[0], 40)
    times = f" (\N{MULTIPLICATION SIGN}{rows[top].repeats})" if rows[top].repeats > 1 else ""
    return (
        f"{name}{times} takes {percent(values[top] / total)} of the {'time' if timed else 'work'}"
    )


def _roofline(
    rows: tuple[BlockRow, ...], profile: GraphProfile, plan: Plan | None, cluster: Cluster | None
) -> Chart:
    best = max(rows, key=lambda row: row.rate or 0.0)
    device = cluster.device(0) if cluster else None
    precision = plan.precision if plan else "float32"
    peak = device.peak_flop_per_s.get(precision) if device else None
    roof = "The line is the device's roof: memory bandwidth, then peak."
    if not peak:
        roof = "The device's peak is not part of this report, so no roof is drawn."
    title = f"The best block reaches {quantity(best.rate or 0.0, 'FLOP/s')}"
    if peak:
        title += f", {percent((best.rate or 0.0) / peak)} of the {precision} peak"
    return Chart(
        id="roofline",
        title=title,
        how_to_read="Each bubble is a kind of block, measured forward and backward: to the right, "
        "more arithmetic per byte; up, faster. Area is its share of the time. " + roof,
        table=block_table(rows, plan.microbatch_size if plan else profile.batch),
        figure=roofline_figure(rows, peak, device.memory_bytes_per_s if device else None),
    )
