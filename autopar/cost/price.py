"""price(): everything the cost model says about one plan."""

from __future__ import annotations

from dataclasses import replace

from autopar.cluster import Cluster, Device
from autopar.core.errors import InputError
from autopar.core.estimate import Estimate, Source, weakest
from autopar.core.host_watch import disturbed
from autopar.cost import constants as k
from autopar.cost import memory as mem
from autopar.cost.layout import Cuts, Layout
from autopar.cost.model import CostModel
from autopar.cost.power import cost_usd, energy_joule
from autopar.cost.simulation.replay import step_and_breakdown
from autopar.cost.step_overhead import bookkeeping_seconds
from autopar.cost.work import FULL, NONE, SELECTIVE, Levels
from autopar.graph import GraphProfile
from autopar.plans import Plan
from autopar.results import CostBreakdown, PlanPrice
from autopar.strategies import Split


def price(
    plan: Plan, profile: GraphProfile, cluster: Cluster, model: CostModel | None = None
) -> PlanPrice:
    """Predict step time, memory, energy and money of a plan.

    Args:
        plan: Any valid plan whose stages begin at block boundaries of the profile.
        profile: The profile of the plan's task.
        cluster: Where it runs; it needs the devices the plan places ranks on.
        model: Caches shared between calls with the same profile, cluster and precision.

    Raises:
        InputError: Plan, profile and cluster do not fit each other, or a device has no peak for
            the precision.
    """
    if model is None or model.precision != plan.precision:
        model = CostModel(profile, cluster, plan.precision)
    layout, cuts = layout_of(plan, model)
    return price_layout(plan, layout, cuts)


def layout_of(plan: Plan, model: CostModel) -> tuple[Layout, Cuts]:
    """The layout and block boundaries a plan stands for.

    Raises:
        InputError: The plan is for another graph, another cluster or cuts inside a block.
    """
    profile = model.profile
    if plan.task.fingerprint != profile.fingerprint:
        raise InputError(
            f"the plan is for graph {plan.task.fingerprint}, the profile has "
            f"{profile.fingerprint}",
            hint="plan again with this profile",
        )
    missing = [d for d in plan.placement if not 0 <= d < model.cluster.device_count]
    if missing:
        raise InputError(
            f"the plan uses device {missing[0]}, cluster '{model.cluster.name}' has devices "
            f"0..{model.cluster.device_count - 1}",
            hint="plan again for this cluster",
        )
    reason = model.strategies.why_not(split_of(plan))
    if reason is not None:
        raise InputError(f"plan {plan.name} cannot be priced: {reason}", hint="plan again")
    schedule = model.schedule(plan.schedule)
    for index, stage in enumerate(plan.stages):
        wanted = schedule.rank_of(index, plan.mesh.pp)
        if stage.pp != wanted:
            raise InputError(
                f"stage {index} is on pipeline rank {stage.pp}, schedule '{plan.schedule}' needs "
                f"{wanted}",
                hint=f"place it on pipeline rank {wanted}",
            )
    starts = {block.first_op: block.index for block in profile.blocks}
    starts[profile.blocks[-1].stop_op] = len(profile.blocks)
    edges = [plan.stages[0].first_op, *(stage.stop_op for stage in plan.stages)]
    inside = [op for op in edges if op not in starts]
    if inside:
        raise InputError(
            f"a stage is cut at op {inside[0]}, inside a block",
            hint="cut at the first op of a block",
        )
    layout = Layout(
        model=model,
        mesh=plan.mesh,
        placement=plan.placement,
        schedule=plan.schedule,
        stages=len(plan.stages),
        microbatches=plan.microbatches,
        microbatch_size=plan.largest_microbatch,
        levels=_levels(plan, profile),
        zero=plan.zero,
        sequence_parallel=plan.sequence_parallel,
        offload=plan.offload,
        sync=plan.sync,
        bucket_bytes=plan.bucket_bytes,
        clip=plan.clip_norm is not None,
    )
    return layout, tuple(starts[op] for op in edges)


def split_of(plan: Plan) -> Split:
    """How a plan divides the work inside its stages."""
    mesh = plan.mesh
    return Split(tp=mesh.tp, sequence_parallel=plan.sequence_parallel, cp=mesh.cp, ep=mesh.ep)


def _levels(plan: Plan, profile: GraphProfile) -> Levels:
    """Recompute level of every block.

    Raises:
        InputError: A range cuts a block.
    """
    levels = [NONE] * len(profile.blocks)
    for level, ranges in (
        (FULL, [pair for stage in plan.stages for pair in stage.recompute]),
        (SELECTIVE, [pair for stage in plan.stages for pair in stage.selective]),
    ):
        for first, stop in ranges:
            for block in profile.blocks:
                if first <= block.first_op and block.stop_op <= stop:
                    levels[block.index] = level
                elif block.first_op < stop and first < block.stop_op:
                    raise InputError(
                        f"recompute range {first}..{stop} cuts block '{block.name}'",
                        hint="recompute whole blocks",
                    )
    return tuple(levels)


def price_layout(plan: Plan, layout: Layout, cuts: Cuts) -> PlanPrice:
    """:func:`price` once plan and profile are matched."""
    costs, transfers = layout.stage_costs(cuts), layout.transfers(cuts)
    memory = tuple(mem.memories(layout, cuts))
    source, spread = evidence(layout)
    nothing = Estimate(value=0.0, low=0.0, high=0.0, source=source)
    peak = max(part.total_bytes for part in memory)
    draft = PlanPrice(
        step_time_s=nothing,
        peak_memory_bytes=mem.peak_estimate(layout.model, peak),
        samples_per_s=0.0,
        mfu=None,
        energy_joule=None,
        cost_usd=None,
        breakdown=CostBreakdown(other_s=bookkeeping_seconds(layout)),
        memory=memory,
        capacity_bytes=mem.capacity_bytes(layout),
        stage_costs=tuple(costs),
        transfers=tuple(transfers),
        step_overhead_s=layout.overhead_s,
        tied_syncs=tuple(layout.tied_syncs(cuts)),
        steps_multiplier=layout.steps_multiplier,
        pace_s=profiled_pace_s(layout),
        assumptions=assumptions(layout),
    )
    step, breakdown = step_and_breakdown(plan, draft, layout.program)
    time = Estimate.spread(step, relative=spread, source=source)
    busy = [plan.microbatches * (c.forward_s + c.backward_s + c.recompute_s) for c in costs]
    return replace(
        draft,
        step_time_s=time,
        samples_per_s=plan.global_batch / step if step > 0 else 0.0,
        mfu=model_flop_utilisation(layout, step),
        energy_joule=energy_joule(layout, busy, time),
        cost_usd=cost_usd(layout, time),
        breakdown=breakdown,
    )


def profiled_pace_s(layout: Layout) -> float | None:
    """Seconds of the reference pass when the host was profiled, with as many ranks as the plan."""
    compute, measurement = layout.model.compute, layout.model.profile.measurement
    if measurement is None or measurement.pace_s is None:
        return None
    kinds = _kinds(layout)
    if not all(compute.measured_on(device) for device, _ in kinds):
        return None
    return measurement.pace_s * max(compute.slowdown(device, busy) for device, busy in kinds)


def untimed_blocks(layout: Layout) -> int:
    """Blocks of a measured profile that have no curve, being too large or slow to time."""
    profile = layout.model.profile
    if profile.measurement is None:
        return 0
    return sum(block.signature not in profile.measurement.curves for block in profile.blocks)


def evidence(layout: Layout) -> tuple[Source, float]:
    """What step times rest on, and the relative half-width of their range."""
    compute, cluster = layout.model.compute, layout.model.cluster
    devices = {cluster.device(d).name: d for d in layout.placement}
    measured = all(compute.measured_on(cluster.device(d)) for d in devices.values())
    measurement = layout.model.profile.measurement
    if not measured or measurement is None or untimed_blocks(layout):
        if all(compute.calibrated(device) for device, _ in _kinds(layout)):
            return "calibrated", k.ANALYTIC_SPREAD.value
        return "analytic", k.UNKNOWN_SPREAD.value
    spread = max(measurement.spread, k.MEASURED_SPREAD_FLOOR.value)
    if layout.mesh.world_size == 1:
        return "measured", spread
    covered = bool(cluster.curves)
    source = weakest("measured", "measured" if covered else "analytic")
    return source, spread if covered else k.ANALYTIC_SPREAD.value


def _kinds(layout: Layout) -> tuple[tuple[Device, int], ...]:
    """Kinds of devices the plan uses."""
    return layout.model.kinds(layout.placement, layout.placement)


def assumptions(layout: Layout) -> tuple[str, ...]:
    """Constants that were assumed rather than measured."""
    cluster = layout.model.cluster
    devices = {cluster.device(d).name: cluster.device(d) for d in layout.placement}
    notes = list(mem.assumed(layout.model))
    notes += disturbances(layout)
    missing = untimed_blocks(layout)
    if missing:
        total = len(layout.model.profile.blocks)
        notes.append(f"{missing} of {total} blocks were not timed: priced by the device's peaks")
    for device in devices.values():
        if layout.model.compute.measured_on(device):
            continue
        notes += layout.model.compute.assumed(device)
        notes.append(k.BACKWARD_KERNELS.note)
    if layout.offload:
        notes += [k.HOST_LINK_BYTES_PER_S.note, k.HOST_MEMORY_BYTES_PER_S.note]
    if layout.mesh.world_size > 1 and not cluster.curves:
        machines = {cluster.machine(d).name: cluster.machine(d) for d in layout.placement}
        notes += [
            f"link {link.name} reaches {link.efficiency:g} of its nominal rate"
            f" ({link.sources.get('efficiency', 'assumed')})"
            for machine in machines.values()
            for link in (machine.intra, machine.inter)
        ]
    return tuple(dict.fromkeys(notes))


def disturbances(layout: Layout) -> list[str]:
    """What was measured while other programs were busy, and how to do better."""
    profile, cluster = layout.model.profile, layout.model.cluster
    found = [
        disturbed("the profile", profile.others_share if profile.measurement else None),
        disturbed(f"cluster {cluster.name}", cluster.others_share),
    ]
    return [text for text in found if text]


def model_flop_utilisation(layout: Layout, step_s: float) -> float | None:
    """FLOPs the model needs (recompute not counted) over what the devices could do."""
    cluster, profile = layout.model.cluster, layout.model.profile
    counts: dict[str, int] = {}
    for device_id in layout.placement:
        name = cluster.device(device_id).name
        counts[name] = counts.get(name, 0) + 1
    peaks = {
        cluster.device(d).name: cluster.device(d).peak_flop_per_s.get(layout.model.precision)
        for d in layout.placement
    }
    total = sum((peaks[name] or 0.0) * count for name, count in counts.items())
    if step_s <= 0 or total <= 0 or any(peak is None for peak in peaks.values()):
        return None
    b, m = layout.microbatch_size, layout.microbatches
    flop = profile.forward_flop.at(b) + profile.backward_flop.at(b)
    return flop * m * layout.mesh.replicas / (step_s * total)
