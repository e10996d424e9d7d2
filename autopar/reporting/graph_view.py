"""The model as a drawing: repeated blocks collapsed, layers left to right, coloured by stage."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import networkx as nx

from autopar.graph import Block, GraphProfile
from autopar.plans import Plan
from autopar.reporting.figures.blocks import stage_of
from autopar.reporting.table import Column, Table
from autopar.reporting.text import clean
from autopar.results import PlanPrice

MAX_NODES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One box: a block, a run of repeated blocks, or a stage.

    Attributes:
        index: Position in model order.
        name: What it is.
        stage: Virtual stage, -1 without a plan.
        blocks: How many blocks it stands for.
        flop: Forward and backward FLOPs of one microbatch, ``None`` without a profile.
        parameter_bytes: Bytes of its parameters.
    """

    index: int
    name: str
    stage: int
    blocks: int
    flop: float | None
    parameter_bytes: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrow:
    """Bytes that flow between two boxes, forward, for one microbatch."""

    producer: int
    consumer: int
    size_bytes: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphView:
    """The drawing as data; arrows point forward in node order."""

    nodes: tuple[Node, ...]
    arrows: tuple[Arrow, ...]
    note: str = ""

    def columns(self) -> dict[int, int]:
        """Node -> column: the topological generation."""
        graph: nx.DiGraph[Hashable] = nx.DiGraph()
        graph.add_nodes_from(node.index for node in self.nodes)
        graph.add_edges_from((arrow.producer, arrow.consumer) for arrow in self.arrows)
        return {
            node: column
            for column, generation in enumerate(nx.topological_generations(graph))
            for node in generation
            if isinstance(node, int)
        }


def from_profile(profile: GraphProfile, plan: Plan | None, samples: int) -> GraphView:
    """The block graph, repeated blocks collapsed until it fits ``MAX_NODES`` boxes."""
    groups = [[block] for block in profile.blocks]
    note = ""
    if len(groups) > MAX_NODES // 2:
        groups = collapse(list(profile.blocks), plan)
        note = f"{len(profile.blocks)} blocks are drawn as {len(groups)} boxes, repeats as one."
    if len(groups) > MAX_NODES:
        groups = _even(groups, MAX_NODES, plan)
        note = f"{len(profile.blocks)} blocks are drawn as {len(groups)} boxes of neighbours."
    nodes = tuple(_node(index, group, plan, samples) for index, group in enumerate(groups))
    owner = {block.index: index for index, group in enumerate(groups) for block in group}
    sizes: dict[tuple[int, int], dict[int, float]] = {}
    for edge in profile.block_edges:
        pair = owner[edge.producer], owner[edge.consumer]
        if pair[0] != pair[1]:
            sizes.setdefault(pair, {})[edge.tensor] = edge.size_bytes.at(samples)
    arrows = tuple(
        Arrow(producer=a, consumer=b, size_bytes=sum(tensors.values()))
        for (a, b), tensors in sorted(sizes.items())
    )
    return GraphView(nodes=nodes, arrows=arrows, note=note)


def from_plan(plan: Plan, price: PlanPrice | None) -> GraphView:
    """Stages only, for a plan without its profile."""
    nodes = tuple(
        Node(
            index=index,
            name=_span([clean(name) for name in stage.blocks])
            or f"ops {stage.first_op} to {stage.stop_op - 1}",
            stage=index,
            blocks=max(len(stage.blocks), 1),
            flop=None,
            parameter_bytes=None,
        )
        for index, stage in enumerate(plan.stages)
    )
    transfers = price.transfers if price else ()
    arrows = {
        (t.producer, t.consumer): Arrow(
            producer=t.producer, consumer=t.consumer, size_bytes=t.size_bytes
        )
        for t in transfers
    }
    note = "Boxes are stages; the profile would show their blocks."
    return GraphView(nodes=nodes, arrows=tuple(arrows.values()), note=note)


def collapse(blocks: list[Block], plan: Plan | None) -> list[list[Block]]:
    """Join each run of repeats (the shortest repeating pattern of signatures) inside a stage."""
    marks = [(stage_of(plan, block), block.signature) for block in blocks]
    groups: list[list[Block]] = []
    start = 0
    while start < len(blocks):
        period, repeats = _repeat(marks, start)
        length = period * repeats if repeats > 1 else 1
        groups.append(blocks[start : start + length])
        start += length
    return groups


def _repeat(marks: list[tuple[int, str]], start: int) -> tuple[int, int]:
    """Period and count of the pattern that covers most blocks from ``start`` on."""
    best = (1, 1)
    for period in range(1, min(16, len(marks) - start) + 1):
        pattern = marks[start : start + period]
        if len({stage for stage, _ in pattern}) > 1:
            break
        count = 1
        while marks[start + count * period : start + (count + 1) * period] == pattern:
            count += 1
        if count > 1 and period * count > best[0] * best[1]:
            best = (period, count)
    return best


def _even(groups: list[list[Block]], limit: int, plan: Plan | None) -> list[list[Block]]:
    """Neighbours joined, never across a stage border unless there are more stages than boxes."""
    size = -(-len(groups) // limit)
    joined: list[list[Block]] = []
    counts: list[int] = []
    stages = len(plan.stages) if plan else 1
    for group in groups:
        same = joined and stage_of(plan, joined[-1][0]) == stage_of(plan, group[0])
        if joined and (same or stages > limit // 2) and counts[-1] < size * (2 if same else 1):
            joined[-1] = joined[-1] + group
            counts[-1] += 1
        else:
            joined.append(list(group))
            counts.append(1)
    return joined


def _node(index: int, group: list[Block], plan: Plan | None, samples: int) -> Node:
    return Node(
        index=index,
        name=_span([clean(block.name) for block in group]),
        stage=stage_of(plan, group[0]),
        blocks=len(group),
        flop=sum(b.forward_flop.at(samples) + b.backward_flop.at(samples) for b in group),
        parameter_bytes=sum(block.parameter_bytes for block in group),
    )


def _span(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} … {names[-1]}" if names else ""


def graph_table(view: GraphView) -> Table:
    """One row per box, with what it sends."""
    sent = {node.index: 0.0 for node in view.nodes}
    for arrow in view.arrows:
        sent[arrow.producer] += arrow.size_bytes
    return Table(
        id="graph-data",
        caption="Boxes of the drawing, in model order",
        columns=(
            Column("name", "name"),
            Column("stage", "stage", "count"),
            Column("blocks", "blocks", "count"),
            Column("flop", "forward + backward", "flop"),
            Column("parameter_bytes", "parameters", "bytes"),
            Column("sent_bytes", "sends per microbatch", "bytes"),
        ),
        rows=tuple(
            (
                node.name,
                node.stage if node.stage >= 0 else None,
                node.blocks,
                node.flop,
                node.parameter_bytes,
                sent[node.index],
            )
            for node in view.nodes
        ),
        searchable=len(view.nodes) > 12,
    )
