"""What a campaign still has to time, and the ops of it cut out of the traced graph."""

from __future__ import annotations

import torch

from autopar.core.errors import InputError, TraceError
from autopar.graph import Block
from autopar.profiler.counting.dataflow import CountedGraph, count
from autopar.profiler.timing.campaign import Campaign, parameters
from autopar.profiler.timing.payload import make_payload, real_leaves
from autopar.profiler.timing.points import Point, point_name
from autopar.trace import TracedTask, trace

Wanted = tuple[str, Block | None, int]
"""Kind of a point, its block, samples."""


def missing(campaign: Campaign) -> list[Wanted]:
    """``(kind, block, samples)`` of what is missing: extremes of the sizes first."""
    ends = list(dict.fromkeys((campaign.sizes[0], campaign.sizes[-1])))
    middle = [s for s in campaign.sizes if s not in ends]
    fitting = [b for b in campaign.unique if campaign.fits(b, campaign.sizes[0])]
    share = campaign.flop_share(fitting)
    if share < campaign.policy.smallest_share:
        campaign.warnings.append(
            f"nothing is timed: blocks that fit in memory here hold {share:.0%} of the FLOPs"
        )
        return []
    rows: list[Wanted] = []
    for samples in (*ends, *middle):
        rows += [("block", b, samples) for b in fitting if campaign.fits(b, samples)]
        if campaign.whole_fits(samples):
            kinds = ("whole", "eager") if campaign.traced.task.target else ("whole",)
            rows += [(kind, None, samples) for kind in kinds]
    if fitting:
        rows.append(("optimizer", None, 1))
    return [row for row in rows if _name(row) not in campaign.store.results]


def cut_points(campaign: Campaign, wanted: list[Wanted]) -> list[Point]:
    """Cut out what is to be timed; each size needs its own trace."""
    made: dict[str, Point] = {}
    sizes = sorted({s for kind, _, s in wanted if kind != "optimizer"})
    for position, samples in enumerate(sizes):
        if campaign.progress is not None:
            campaign.progress("trace sizes", position, len(sizes))
        cut = _at(campaign, samples)
        if cut is None:
            continue
        traced, graph = cut
        leaves = real_leaves(traced)
        for kind, block, s in wanted:
            if s == samples and kind != "optimizer":
                made[_name((kind, block, s))] = _point(
                    campaign, traced, graph, leaves, kind, block, s
                )
    for row in wanted:
        if row[0] == "optimizer":
            point = _optimizer_point(campaign)
            if point is not None:
                made[_name(row)] = point
    return [made[_name(row)] for row in wanted if _name(row) in made]


def _at(campaign: Campaign, samples: int) -> tuple[TracedTask, CountedGraph] | None:
    if samples == campaign.traced.batch:
        return campaign.traced, campaign.graph
    device = "meta" if _is_meta(campaign.traced) else "cpu"
    try:
        traced = trace(campaign.traced.task, samples, device=device)
    except (TraceError, InputError) as error:
        campaign.warnings.append(f"microbatch of {samples} cannot be traced: {error}")
        return None
    if traced.fingerprint != campaign.traced.fingerprint:
        campaign.warnings.append(
            f"microbatch of {samples} gives another graph ({len(traced.nodes)} ops instead of "
            f"{len(campaign.traced.nodes)}); not measured"
        )
        return None
    return traced, count(traced)


def _point(
    campaign: Campaign,
    traced: TracedTask,
    graph: CountedGraph,
    leaves: list[torch.Tensor],
    kind: str,
    block: Block | None,
    samples: int,
) -> Point:
    first, stop = (block.first_op, block.stop_op) if block else (0, len(traced.nodes))
    among = [block] if block else list(campaign.blocks)
    flop = sum(b.forward_flop.at(samples) + b.backward_flop.at(samples) for b in among)
    return Point(
        kind=kind,
        key=block.signature if block else kind,
        samples=samples,
        label=block.name if block else "the whole model",
        flop=flop,
        payload=None if kind == "eager" else make_payload(traced, graph, first, stop, leaves),
        optimizer=b"" if block else campaign.pickled or b"",
        again=block is not None and samples == campaign.sizes[0],
        optional=samples not in (campaign.sizes[0], campaign.sizes[-1]),
    )


def _optimizer_point(campaign: Campaign) -> Point | None:
    data = campaign.pickled
    if data is None:
        campaign.warnings.append(
            "the optimizer's class cannot be pickled; its step is not measured "
            "(define the class at the top level of a module)"
        )
        return None
    shapes: list[tuple[tuple[int, ...], torch.dtype]] = []
    limit = min(campaign.policy.largest_optimizer_bytes, campaign.available / 6)
    total = 0
    for parameter in parameters(campaign.traced):
        total += parameter.numel() * parameter.element_size()
        if total > limit and shapes:
            break
        shapes.append((tuple(parameter.shape), parameter.dtype))
    return Point(
        kind="optimizer",
        key="optimizer",
        samples=1,
        label="the optimizer step",
        optimizer=data,
        shapes=tuple(shapes),
    )


def _name(row: Wanted) -> str:
    kind, block, samples = row
    return point_name(kind, block.signature if block else kind, samples)


def _is_meta(traced: TracedTask) -> bool:
    return all(p.is_meta for p in parameters(traced))
