"""From a point and stage boundaries to a layout and a plan."""

from __future__ import annotations

from autopar.cost import price
from autopar.cost.layout import Cuts, Layout
from autopar.cost.model import CostModel
from autopar.cost.work import FULL, NONE, SELECTIVE, Levels
from autopar.plans import Plan, Stage, TaskRef
from autopar.results import RankedPlan
from autopar.search.options import SearchOptions
from autopar.search.space.point import Point

LEVELS = {"none": NONE, "selective": SELECTIVE, "full": FULL}
"""Recompute level of every block in each uniform mode."""


def layout_for(
    point: Point, model: CostModel, options: SearchOptions, levels: Levels | None = None
) -> Layout:
    """The layout of a point: ranks on devices 0, 1, 2 ...

    Args:
        point: The choices.
        model: Shared caches.
        options: What is asked.
        levels: Recompute level of every block where the point leaves it open.
    """
    uniform = (LEVELS.get(point.recompute, NONE),) * len(model.profile.blocks)
    return Layout(
        model=model,
        mesh=point.mesh,
        placement=model.first_devices(point.world),
        schedule=point.schedule,
        stages=point.stages,
        microbatches=point.microbatches,
        microbatch_size=point.microbatch_size,
        levels=levels or uniform,
        zero=point.zero,
        sequence_parallel=point.sequence_parallel == "on",
        offload=point.offload == "on",
        sync=point.sync,
        clip=options.clip_norm is not None,
    )


def build_plan(
    point: Point,
    cuts: Cuts,
    model: CostModel,
    options: SearchOptions,
    levels: Levels | None = None,
) -> Plan:
    """The plan of a point with given block boundaries."""
    profile = model.profile
    chosen = levels or (LEVELS.get(point.recompute, NONE),) * len(profile.blocks)
    schedule = model.schedule(point.schedule)
    stages = []
    for index in range(point.stages):
        blocks = profile.blocks[cuts[index] : cuts[index + 1]]
        ranges = {
            level: tuple((b.first_op, b.stop_op) for b in blocks if chosen[b.index] == level)
            for level in (SELECTIVE, FULL)
        }
        stages.append(
            Stage(
                first_op=blocks[0].first_op,
                stop_op=blocks[-1].stop_op,
                pp=schedule.rank_of(index, point.pp),
                recompute=ranges[FULL],
                selective=ranges[SELECTIVE],
                units=tuple((b.first_op, b.stop_op) for b in blocks) if point.zero else (),
                blocks=tuple(block.name for block in blocks),
            )
        )
    return Plan(
        task=TaskRef(
            name=profile.task,
            target=profile.target,
            fingerprint=profile.fingerprint,
            op_count=len(profile.ops),
        ),
        mesh=point.mesh,
        stages=tuple(stages),
        schedule=point.schedule,
        microbatches=point.microbatches,
        microbatch_size=point.microbatch_size,
        precision=model.precision,
        zero=point.zero,
        sequence_parallel=point.sequence_parallel == "on",
        offload=point.offload == "on",
        sync=point.sync,
        clip_norm=options.clip_norm,
        seed=options.seed,
        threads=profile.measurement.threads if profile.measurement is not None else None,
        cluster=model.cluster.name,
    )


def rank_plan(
    point: Point,
    cuts: Cuts,
    model: CostModel,
    options: SearchOptions,
    levels: Levels | None = None,
) -> RankedPlan:
    """Plan and price of a point with given boundaries."""
    plan = build_plan(point, cuts, model, options, levels)
    cost = price(plan, model.profile, model.cluster, model)
    return RankedPlan(plan=plan.with_predicted(cost.to_dict()), price=cost)
