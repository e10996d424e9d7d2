"""The step: where its seconds go, who does what when, and how steady it is."""

from __future__ import annotations

from autopar.core.units import format_seconds
from autopar.reporting.figures.breakdown import Bar, breakdown_figure, breakdown_table
from autopar.reporting.figures.difference import difference_figure, difference_table
from autopar.reporting.figures.gantt import Gantt, gantt_data, gantt_figure, gantt_table
from autopar.reporting.figures.steps import steps_figure, steps_table
from autopar.reporting.model import Chart, Section
from autopar.reporting.palette import PARTS
from autopar.reporting.sections.subject import Subject
from autopar.reporting.text import percent, signed_percent
from autopar.results import CostBreakdown, RunRecord

IDLE = 0.005
"""Smaller shares of idle time are not worth a sentence."""
INSIDE_WORDS = (
    "A run's forward and backward hold the collectives between their ops, which the prediction "
    "shows on their own."
)


def _hidden(subject: Subject) -> bool:
    """True when the prediction has collectives that the measurement does not show."""
    known = subject.price is not None and subject.price.breakdown.collective_s > 0
    return known and subject.record is not None


def step_section(subject: Subject) -> Section | None:
    """Breakdown, difference and steadiness of the step time."""
    bars = _bars(subject)
    if not bars:
        return None
    charts: list[Chart] = [
        Chart(
            id="breakdown",
            title=_finding(bars[-1]),
            how_to_read="Each bar is one step, cut into what the rank that ends last spends its "
            "time on; the parts add up to the step. The line across the end of a bar spans the "
            "range of the total. Patterns repeat what the colours say."
            + (f" {INSIDE_WORDS}" if _hidden(subject) else ""),
            table=breakdown_table(bars, "breakdown-data"),
            figure=breakdown_figure(bars),
        )
    ]
    if subject.record and subject.price:
        charts.append(_difference(subject.price.breakdown, subject.record.breakdown))
    if subject.record and len(subject.record.step_times_s) > 1:
        charts.append(_steps(subject, subject.record))
    return Section(id="step", title="Step time", lead=_lead(subject), parts=tuple(charts))


def _bars(subject: Subject) -> tuple[Bar, ...]:
    bars = []
    if subject.price:
        estimate = subject.price.step_time_s
        bars.append(
            Bar(
                label="predicted",
                breakdown=subject.price.breakdown,
                low_s=estimate.low,
                high_s=estimate.high,
            )
        )
    if subject.record:
        quantiles = subject.record.step_time_quantiles_s if subject.record.step_times_s else {}
        bars.append(
            Bar(
                label="measured",
                breakdown=subject.record.breakdown,
                low_s=quantiles.get("p10"),
                high_s=quantiles.get("p90"),
            )
        )
    return tuple(bars)


def _lead(subject: Subject) -> str:
    if subject.record is None:
        return "The cost model simulates the schedule's own action list."
    if subject.price is None:
        return "The plan carries no prediction, so only the measurement is shown."
    return "What the planner expected, beside what the run measured."


def _finding(bar: Bar) -> str:
    """The largest part and the idle share."""
    total = bar.breakdown.total_s
    if total <= 0:
        return "The step has no recorded parts"
    key = max(PARTS, key=lambda k: getattr(bar.breakdown, k))
    words = f"{PARTS[key].label.capitalize()} takes {percent(getattr(bar.breakdown, key) / total)}"
    words += f" of the {bar.label} step"
    if key != "bubble_s" and bar.breakdown.bubble_s / total >= IDLE:
        words += f"; the rank idles {percent(bar.breakdown.bubble_s / total)}"
    return words


def _difference(predicted: CostBreakdown, measured: CostBreakdown) -> Chart:
    pooled = predicted.collective_s > 0
    table = difference_table(predicted, measured, "difference-data", pooled=pooled)
    part, before, _, change = table.rows[0] if table.rows else ("nothing", 0.0, 0.0, 0.0)
    delta = float(change or 0.0)
    direction = "longer" if delta > 0 else "shorter"
    relative = f" ({signed_percent(delta / float(before))})" if before else ""
    return Chart(
        id="difference",
        title=f"Largest miss: {part} took {format_seconds(abs(delta))} {direction} than "
        f"predicted{relative}",
        how_to_read="Start at the predicted step, add each part's miss, end at the sum of the "
        "measured parts. Orange: slower than predicted, blue: faster. The axis may start above "
        "zero." + (f" {INSIDE_WORDS}" if pooled else ""),
        table=table,
        figure=difference_figure(table, "predicted", "measured"),
    )


def _steps(subject: Subject, record: RunRecord) -> Chart:
    quantiles = record.step_time_quantiles_s
    spread = (quantiles["p90"] - quantiles["p10"]) / quantiles["median"]
    return Chart(
        id="steps",
        title=f"Median {format_seconds(quantiles['median'])}; eight steps in ten lie between "
        f"{format_seconds(quantiles['p10'])} and {format_seconds(quantiles['p90'])} "
        f"({percent(spread)} wide)",
        how_to_read="One point per step in the order they ran, taken from the slowest rank. The "
        "band is the predicted range. The bars at the side count steps by time. Warm-up steps "
        "slower than the axis are cut off; the table has them.",
        table=steps_table(record.warmup_step_times_s, record.step_times_s),
        figure=steps_figure(
            record.warmup_step_times_s,
            record.step_times_s,
            subject.price.step_time_s if subject.price else None,
        ),
    )


def timeline_section(subject: Subject) -> Section | None:
    """Predicted and measured Gantt."""
    measured = (
        subject.record.timeline if subject.record and subject.record.timeline.events else None
    )
    predicted = subject.predicted_timeline
    gantt = gantt_data(predicted, measured, subject.peers)
    if not gantt.lanes:
        return None
    chart = Chart(
        id="gantt",
        title=_idle_finding(gantt),
        how_to_read="Time runs to the right, one row per rank. Numbers are microbatches. Dotted "
        "grey is idle time: pipeline fill and drain, or waiting for other ranks. Where both are "
        "known, the prediction lies directly over the measurement on the same scale; a replica's "
        "prediction is that of replica 0. Drag to zoom, double-click to go back.",
        table=gantt_table(gantt),
        figure=gantt_figure(gantt),
        note=gantt.note,
    )
    lead = "One typical step of every rank."
    if measured is None:
        lead = "One simulated step of every rank of replica 0."
    return Section(id="timeline", title="Timeline", lead=lead, parts=(chart,))


def _idle_finding(gantt: Gantt) -> str:
    """Share of rank time that is neither work nor communication."""
    shares: dict[str, float] = {}
    for source in ("measured", "predicted"):
        lanes = [lane for lane in gantt.lanes if lane.source == source]
        spans = [max((e.end_s for e in lane.events), default=0.0) for lane in lanes]
        if sum(spans):
            shares[source] = max(1 - sum(lane.busy_s for lane in lanes) / sum(spans), 0.0)
    source, share = next(iter(shares.items()), ("", 0.0))
    if all(value < IDLE for value in shares.values()):
        return f"Hardly any rank waits in the {source} step"
    words = f"Ranks idle or wait {percent(share)} of the {source} step"
    if len(shares) == 2:
        words += f"; predicted {percent(shares['predicted'])}"
    return words
