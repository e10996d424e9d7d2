"""Who does what when: predicted over measured on one time scale, idle time shaded."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Any

import plotly.graph_objects as go

from autopar.reporting.figures.style import figure, marker
from autopar.reporting.palette import EVENTS
from autopar.reporting.table import Column, Table, Value
from autopar.reporting.text import axis_seconds
from autopar.results import Event, Timeline

MAX_LANES = 32
MAX_INTERVALS = 12_000
MAX_LABELLED = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """One row of the picture: a rank in one of the two timelines.

    Attributes:
        rank: Global rank.
        source: ``predicted`` or ``measured``.
        events: Its events by start, idle gaps included as kind ``idle``.
    """

    rank: int
    source: str
    events: tuple[Event, ...]

    @property
    def busy_s(self) -> float:
        """Seconds of work: neither idle nor waiting."""
        return sum(e.end_s - e.start_s for e in self.events if e.kind not in ("idle", "wait"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Gantt:
    """The picture as data.

    Attributes:
        lanes: Rows from top to bottom.
        duration_s: End of the time axis.
        note: What was merged or left out, for the reader.
    """

    lanes: tuple[Lane, ...]
    duration_s: float
    note: str = ""


def gantt_data(
    predicted: Timeline | None, measured: Timeline | None, peers: dict[int, int]
) -> Gantt:
    """Rows for both timelines.

    Args:
        predicted: Simulated step (ranks of replica 0), if any.
        measured: Measured step, if any.
        peers: Measured rank -> rank of replica 0 at the same pipeline coordinate, whose
            prediction stands for it.
    """
    sources = {"predicted": _by_rank(predicted), "measured": _by_rank(measured)}
    duration = max((t.duration_s for t in (predicted, measured) if t), default=0.0)
    ranks = sorted(sources["measured"] or sources["predicted"])
    leaders = [rank for rank in ranks if peers.get(rank, rank) == rank]
    others = [rank for rank in ranks if peers.get(rank, rank) != rank]
    shown = sorted((leaders + others)[: MAX_LANES // (2 if measured and predicted else 1)])
    lanes = []
    for rank in shown:
        for source, events in sources.items():
            owner = peers.get(rank, rank) if source == "predicted" else rank
            if owner in events:
                end = predicted.duration_s if source == "predicted" and predicted else duration
                if source == "measured" and measured:
                    end = measured.duration_s
                lane = with_idle(events[owner], end)
                lanes.append(Lane(rank=rank, source=source, events=lane))
    return _thin(Gantt(lanes=tuple(lanes), duration_s=duration), len(shown), len(ranks))


def _by_rank(timeline: Timeline | None) -> dict[int, list[Event]]:
    ranks: dict[int, list[Event]] = defaultdict(list)
    for event in timeline.events if timeline else ():
        ranks[event.rank].append(event)
    return ranks


def with_idle(events: list[Event], end_s: float) -> tuple[Event, ...]:
    """Events sorted by start, with an ``idle`` event in every gap up to ``end_s``."""
    filled: list[Event] = []
    clock = 0.0
    for event in sorted(events, key=lambda e: e.start_s):
        if event.start_s > clock + 1e-9:
            filled.append(Event(rank=event.rank, kind="idle", start_s=clock, end_s=event.start_s))
        filled.append(event)
        clock = max(clock, event.end_s)
    if events and end_s > clock + 1e-9:
        filled.append(Event(rank=events[0].rank, kind="idle", start_s=clock, end_s=end_s))
    return tuple(filled)


def _thin(gantt: Gantt, shown: int, ranks: int) -> Gantt:
    notes = []
    if shown < ranks:
        notes.append(f"{shown} of {ranks} ranks are drawn, those of replica 0 first.")
    count = sum(len(lane.events) for lane in gantt.lanes)
    lanes = gantt.lanes
    if count > MAX_INTERVALS:
        bins = max(MAX_INTERVALS // max(len(lanes), 1), 50)
        lanes = tuple(
            replace(lane, events=binned(lane.events, gantt.duration_s, bins)) for lane in lanes
        )
        drawn = sum(len(lane.events) for lane in lanes)
        notes.append(
            f"{count:,} events are drawn as {drawn:,} intervals: time is cut into {bins} slots, "
            "each shows the kind that fills most of it. The record has every event."
        )
    return replace(gantt, lanes=lanes, note=" ".join(notes))


def binned(events: tuple[Event, ...], duration_s: float, bins: int) -> tuple[Event, ...]:
    """At most ``bins`` events: per slot the kind with most time; equal neighbours joined."""
    width = duration_s / bins
    weights: list[dict[str, float]] = [defaultdict(float) for _ in range(bins)]
    for event in events:
        first = min(int(event.start_s / width), bins - 1)
        for slot in range(first, min(int(event.end_s / width), bins - 1) + 1):
            inside = min(event.end_s, (slot + 1) * width) - max(event.start_s, slot * width)
            weights[slot][event.kind] += max(inside, 0.0)
    merged: list[Event] = []
    for slot, weight in enumerate(weights):
        if not weight:
            continue
        kind = max(weight, key=lambda k: weight[k])
        start, end = slot * width, (slot + 1) * width
        if merged and merged[-1].kind == kind and abs(merged[-1].end_s - start) < width / 2:
            merged[-1] = replace(merged[-1], end_s=end)
        else:
            merged.append(Event(rank=events[0].rank, kind=kind, start_s=start, end_s=end))
    return tuple(merged)


def gantt_table(gantt: Gantt) -> Table:
    """Seconds per lane by kind."""
    kinds = [k for k in EVENTS if any(e.kind == k for lane in gantt.lanes for e in lane.events)]
    rows: list[tuple[Value, ...]] = []
    for lane in gantt.lanes:
        sums: dict[str, float] = defaultdict(float)
        for event in lane.events:
            sums[event.kind] += event.end_s - event.start_s
        rows.append((lane.rank, lane.source, *(sums[kind] for kind in kinds)))
    return Table(
        id="timeline-data",
        caption="Seconds of one step per rank, by what the rank did",
        columns=(
            Column("rank", "rank", "count"),
            Column("source", "source"),
            *(Column(f"{kind}_s", EVENTS[kind].label, "seconds") for kind in kinds),
        ),
        rows=tuple(rows),
    )


def gantt_figure(gantt: Gantt) -> go.Figure:
    """Horizontal bars, one trace per kind; microbatch numbers where they fit."""
    factor, unit = axis_seconds(gantt.duration_s)
    both = len({lane.source for lane in gantt.lanes}) == 2
    positions = _positions(gantt, both)
    row = 26 if len(gantt.lanes) <= 16 else 18
    result = figure(
        height=int(110 + row * (max(positions, default=0.0) + 1)),
        x_title=f"time since the step began ({unit})",
        barmode="overlay",
        bargap=0,
        uniformtext={"minsize": 9, "mode": "hide"},
    )
    few = sum(len(lane.events) for lane in gantt.lanes) <= MAX_LABELLED
    for kind in EVENTS:
        picked = [
            (event, lane, y)
            for lane, y in zip(gantt.lanes, positions, strict=True)
            for event in lane.events
            if event.kind == kind
        ]
        if picked:
            numbered = few and kind.startswith(("forward", "backward", "recompute"))
            result.add_bar(**_bars(kind, picked, factor, unit, numbered=numbered))
    labels = [_label(lane, both) for lane in gantt.lanes]
    result.update_yaxes(
        tickmode="array",
        tickvals=positions,
        ticktext=labels,
        range=[max(positions, default=0.0) + 0.6, -0.6],
        showgrid=False,
    )
    result.update_xaxes(range=[0, gantt.duration_s * factor * 1.01])
    return result


def _bars(
    kind: str,
    picked: list[tuple[Event, Lane, float]],
    factor: float,
    unit: str,
    *,
    numbered: bool,
) -> dict[str, Any]:
    """One trace: the events of a kind, each with its lane and vertical place."""
    ink = EVENTS[kind]
    return {
        "x": [(e.end_s - e.start_s) * factor for e, _, _ in picked],
        "base": [e.start_s * factor for e, _, _ in picked],
        "y": [y for _, _, y in picked],
        "width": 0.86,
        "orientation": "h",
        "name": ink.label,
        "marker": {**marker(ink), "opacity": 0.35 if kind == "idle" else 1.0},
        "text": [str(e.microbatch) if e.microbatch >= 0 else "" for e, _, _ in picked]
        if numbered
        else None,
        "textposition": "inside",
        "insidetextanchor": "middle",
        "textangle": 0,
        "textfont": {"size": 10, "color": "#ffffff" if kind == "forward" else "#111111"},
        "customdata": [
            [lane.rank, lane.source, _place(e), round((e.end_s - e.start_s) * factor, 4)]
            for e, lane, _ in picked
        ],
        "hovertemplate": (
            f"rank %{{customdata[0]}} %{{customdata[1]}}<br>{ink.label} %{{customdata[2]}}"
            f"<br>%{{customdata[3]}} {unit} from %{{base:.4g}} {unit}<extra></extra>"
        ),
    }


def _positions(gantt: Gantt, both: bool) -> list[float]:
    """Vertical place of each lane; pairs of one rank stand closer than ranks."""
    positions: list[float] = []
    place = 0.0
    for index, lane in enumerate(gantt.lanes):
        if index and both and lane.rank != gantt.lanes[index - 1].rank:
            place += 0.45
        positions.append(round(place, 3))
        place += 1.0
    return positions


def _label(lane: Lane, both: bool) -> str:
    if not both:
        return f"rank {lane.rank}"
    return f"rank {lane.rank} predicted" if lane.source == "predicted" else "measured"


def _place(event: Event) -> str:
    words = []
    if event.stage >= 0:
        words.append(f"stage {event.stage}")
    if event.microbatch >= 0:
        words.append(f"microbatch {event.microbatch}")
    return ", ".join(words)
