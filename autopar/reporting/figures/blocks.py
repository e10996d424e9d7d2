"""What each block of the model costs: rows, table, and the most expensive ones."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import plotly.graph_objects as go

from autopar.graph import Block, GraphProfile
from autopar.plans import Plan
from autopar.reporting.figures.style import bars_height, figure
from autopar.reporting.palette import BLUE, ORANGE
from autopar.reporting.table import Column, Table
from autopar.reporting.text import axis_seconds, clean, middle, plot_text

MAX_ROWS = 2000
MAX_BARS = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockRow:
    """One kind of block: equal signatures in one stage are one row.

    Attributes:
        name: First block's name, and the last one's for repeats.
        stage: Virtual stage, -1 without a plan.
        repeats: How many blocks.
        forward_s: Measured forward seconds of one block, ``None`` when not measured.
        backward_s: Measured backward seconds of one block.
        Other fields: amounts of one block for one microbatch.
    """

    name: str
    stage: int
    repeats: int
    parameter_bytes: float
    forward_flop: float
    backward_flop: float
    traffic_bytes: float
    saved_bytes: float
    forward_s: float | None
    backward_s: float | None

    @property
    def seconds(self) -> float | None:
        """Forward and backward of all repeats."""
        if self.forward_s is None or self.backward_s is None:
            return None
        return (self.forward_s + self.backward_s) * self.repeats

    @property
    def flop(self) -> float:
        """Forward and backward FLOPs of all repeats."""
        return (self.forward_flop + self.backward_flop) * self.repeats

    @property
    def intensity(self) -> float | None:
        """FLOPs per byte moved."""
        one = self.forward_flop + self.backward_flop
        return one / self.traffic_bytes if self.traffic_bytes else None

    @property
    def rate(self) -> float | None:
        """Achieved FLOP/s."""
        return self.flop / self.seconds if self.seconds else None


def stage_of(plan: Plan | None, block: Block) -> int:
    """Virtual stage a block begins in, -1 without a plan."""
    if plan is None:
        return -1
    for index, stage in enumerate(plan.stages):
        if stage.first_op <= block.first_op < stage.stop_op:
            return index
    return -1


def block_rows(profile: GraphProfile, plan: Plan | None, samples: int) -> tuple[BlockRow, ...]:
    """Blocks of equal structure in one stage joined, in model order."""
    groups: dict[tuple[int, str], list[Block]] = defaultdict(list)
    for block in profile.blocks:
        groups[stage_of(plan, block), block.signature].append(block)
    curves = profile.measurement.curves if profile.measurement else {}
    rows = []
    for (stage, signature), blocks in groups.items():
        first, last = blocks[0], blocks[-1]
        times = curves[signature].at(samples) if signature in curves else (None, None)
        name = clean(first.name) + (f" … {clean(last.name)}" if len(blocks) > 1 else "")
        rows.append(
            BlockRow(
                name=name,
                stage=stage,
                repeats=len(blocks),
                parameter_bytes=first.parameter_bytes,
                forward_flop=first.forward_flop.at(samples),
                backward_flop=first.backward_flop.at(samples),
                traffic_bytes=first.forward_bytes.at(samples) + first.backward_bytes.at(samples),
                saved_bytes=first.saved_bytes.at(samples),
                forward_s=times[0],
                backward_s=times[1],
            )
        )
    return tuple(rows)


def block_table(rows: tuple[BlockRow, ...], samples: int) -> Table:
    """One row per kind of block."""
    values = [
        (
            row.name,
            row.stage if row.stage >= 0 else None,
            row.repeats,
            row.parameter_bytes,
            row.forward_flop,
            row.backward_flop,
            row.traffic_bytes,
            row.saved_bytes,
            row.intensity,
            row.forward_s,
            row.backward_s,
            row.rate,
        )
        for row in rows[:MAX_ROWS]
    ]
    return Table(
        id="blocks-data",
        caption=f"Blocks, each for one microbatch of {samples}; repeats share a row",
        columns=(
            Column("block", "block"),
            Column("stage", "stage", "count"),
            Column("repeats", "repeats", "count"),
            Column("parameter_bytes", "parameters", "bytes"),
            Column("forward_flop", "forward", "flop"),
            Column("backward_flop", "backward", "flop"),
            Column("traffic_bytes", "read and written", "bytes"),
            Column("saved_bytes", "kept for backward", "bytes"),
            Column("flop_per_byte", "FLOP/byte", "number"),
            Column("forward_s", "forward time", "seconds"),
            Column("backward_s", "backward time", "seconds"),
            Column("flop_per_s", "achieved", "flop_rate"),
        ),
        rows=tuple(values),
        searchable=True,
        omitted=max(len(rows) - MAX_ROWS, 0),
    )


def share_figure(rows: tuple[BlockRow, ...]) -> go.Figure:
    """The most expensive kinds of block: time when measured, FLOPs otherwise."""
    timed = all(row.seconds is not None for row in rows)
    ordered = sorted(rows, key=lambda r: -((r.seconds or 0.0) if timed else r.flop))[:MAX_BARS]
    if timed:
        factor, unit = axis_seconds(max(row.seconds or 0.0 for row in ordered))
        pairs = [
            ((r.forward_s or 0) * r.repeats, (r.backward_s or 0) * r.repeats) for r in ordered
        ]
        title = f"time of one microbatch ({unit})"
    else:
        factor, unit = 1e-9, "GFLOP"
        pairs = [(r.forward_flop * r.repeats, r.backward_flop * r.repeats) for r in ordered]
        title = "work of one microbatch (GFLOP)"
    labels = [f"{index + 1}. {block_label(row)}" for index, row in enumerate(ordered)]
    result = figure(height=bars_height(len(ordered), row=28), x_title=title, barmode="stack")
    for index, (name, color, pattern) in enumerate(
        (("forward", BLUE, ""), ("backward", ORANGE, "/"))
    ):
        result.add_bar(
            x=[pair[index] * factor for pair in pairs],
            y=labels,
            orientation="h",
            name=name,
            marker={
                "color": color,
                "pattern": {
                    "shape": pattern, "size": 6, "solidity": 0.18,
                    "fillmode": "overlay", "fgcolor": "rgba(0,0,0,0.45)",
                },
            },
            hovertemplate=f"%{{y}}<br>{name}: %{{x:.4g}} {unit}<extra></extra>",
        )  # fmt: skip
    result.update_yaxes(autorange="reversed", showgrid=False)
    return result


def block_label(row: BlockRow) -> str:
    """Short plot label of a row: first block's name and the number of repeats."""
    times = f" \N{MULTIPLICATION SIGN}{row.repeats}" if row.repeats > 1 else ""
    name = row.name.split(" … ", maxsplit=1)[0]
    return plot_text(middle(name, 30) + times)
