"""From a point and stage boundaries to a layout and a plan."""

from __future__ import annotations

from autopar.cost import price
from autopar.cost.layout import Cuts, Layout
from autopar.cost.model import CostModel
from autopar.plans import Plan, Stage, TaskRef
from autopar.results import RankedPlan
from autopar.search.options import SearchOptions
from autopar.search.space import Point


def layout_for(point: Point, model: CostModel, options: SearchOptions) -> Layout:
    """The layout of a point: ranks on devices 0, 1, 2 ..."""
    again = point.recompute == "full"
    return Layout(
        model=model,
        mesh=point.mesh,
        placement=tuple(range(point.world)),
        schedule=point.schedule,
        stages=point.stages,
        microbatches=point.microbatches,
        microbatch_size=point.microbatch_size,
        recompute=(again,) * len(model.profile.blocks),
        clip=options.clip_norm is not None,
    )


def build_plan(point: Point, cuts: Cuts, model: CostModel, options: SearchOptions) -> Plan:
    """The plan of a point with given block boundaries."""
    profile = model.profile
    stages = []
    for index in range(point.stages):
        blocks = profile.blocks[cuts[index] : cuts[index + 1]]
        recompute = tuple((b.first_op, b.stop_op) for b in blocks)
        stages.append(
            Stage(
                first_op=blocks[0].first_op,
                stop_op=blocks[-1].stop_op,
                pp=index % point.pp,
                recompute=recompute if point.recompute == "full" else (),
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
        precision=options.precision,
        sync=options.sync_modes()[0],
        clip_norm=options.clip_norm,
        seed=options.seed,
        threads=profile.measurement.threads if profile.measurement is not None else None,
        cluster=model.cluster.name,
    )


def rank_plan(point: Point, cuts: Cuts, model: CostModel, options: SearchOptions) -> RankedPlan:
    """Plan and price of a point with given boundaries."""
    plan = build_plan(point, cuts, model, options)
    cost = price(plan, model.profile, model.cluster, model)
    return RankedPlan(plan=plan.with_predicted(cost.to_dict()), price=cost)
