"""What a plan's step time hangs on: the same plan priced again on changed hardware."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from autopar.calibration.constants import SPECS
from autopar.cluster import Cluster
from autopar.cost import CostModel, price
from autopar.cost import constants as k
from autopar.cost.computation.compute import ComputeModel
from autopar.graph import GraphProfile
from autopar.plans import Plan
from autopar.results import PlanPrice
from autopar.search.explain.quantities import QUANTITIES, other_peak

STEP = 1.1
"""Resources are raised by a tenth to see what a step gains."""
Z90 = 1.645
"""Half-width of a 90 % range in standard deviations."""

World = tuple[GraphProfile, Cluster]


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """Something of which a cluster may have more.

    Attributes:
        name: Key.
        title: In a list: "memory bandwidth".
        limit: When it is what limits a plan: "Compute limits this plan".
        change: The same profile and cluster with a factor more of it.
        constant: Calibrated constant that says which part of it is reached; the spread of that
            constant between devices and frameworks is how uncertain the resource is.
    """

    name: str
    title: str
    limit: str
    change: Callable[[GraphProfile, Cluster, float], World]
    constant: str


def _measured_compute(profile: GraphProfile, factor: float) -> GraphProfile:
    """A profile whose measured times are shorter by a factor."""
    timed = profile.measurement
    if timed is None:
        return profile
    composition = tuple((size, c / factor) for size, c in timed.composition or ((1.0, 1.0),))
    faster = replace(
        timed,
        composition=composition,
        optimizer_s=timed.optimizer_s / factor,
        optimizer_s_per_byte=timed.optimizer_s_per_byte / factor,
        zero_grad_s=timed.zero_grad_s / factor,
        accumulate_s_per_byte=timed.accumulate_s_per_byte / factor,
        again={name: (a / factor, b / factor) for name, (a, b) in timed.again.items()},
        checkpoint_s=timed.checkpoint_s / factor,
        checkpoint_s_per_op=timed.checkpoint_s_per_op / factor,
        selective_s=timed.selective_s / factor,
        selective_s_per_op=timed.selective_s_per_op / factor,
    )
    return replace(profile, measurement=faster)


def _compute(profile: GraphProfile, cluster: Cluster, factor: float) -> World:
    """Faster arithmetic: peaks of catalogue devices, times of measured ones."""
    faster = other_peak(cluster, lambda peak: peak * factor)
    return _measured_compute(profile, factor), faster


def _stream(profile: GraphProfile, cluster: Cluster, factor: float) -> World:
    if cluster.measured:  # part of the measured times, which count as compute
        return profile, cluster
    return profile, QUANTITIES["memory_bandwidth"].apply(cluster, lambda old: old * factor)


def _link(name: str, *, rate: bool) -> Callable[[GraphProfile, Cluster, float], World]:
    def change(profile: GraphProfile, cluster: Cluster, factor: float) -> World:
        times = factor if rate else 1 / factor
        return profile, QUANTITIES[name].apply(cluster, lambda old: old * times)

    return change


def _launch(profile: GraphProfile, cluster: Cluster, factor: float) -> World:
    """Hosts that launch faster; see :func:`_model` for the calibrated launch time of devices."""
    groups = tuple(
        replace(
            group,
            machine=replace(
                group.machine,
                device=replace(
                    group.machine.device, launch_s=group.machine.device.launch_s / factor
                ),
            ),
        )
        for group in cluster.groups
    )
    return profile, replace(cluster, groups=groups)


def _model(resource: str, factor: float, world: World, precision: str) -> CostModel:
    """The cost model of a changed world."""
    profile, cluster = world
    model = CostModel(profile, cluster, precision)
    if resource == "launch":
        shipped = model.compute.calibration
        known = dict(shipped.factors.get("launch_s", {}))
        known["global"] = known.get("global", 1.0) / factor
        faster = replace(shipped, factors={**shipped.factors, "launch_s": known})
        model.compute = ComputeModel(profile, cluster, precision, calibration=faster)
    return model


RESOURCES = {
    resource.name: resource
    for resource in (
        Resource(
            name="compute",
            title="FLOP/s",
            limit="Compute limits this plan",
            change=_compute,
            constant="gemm_efficiency",
        ),
        Resource(
            name="memory_bandwidth",
            title="memory bandwidth",
            limit="Memory bandwidth limits this plan",
            change=_stream,
            constant="memory_efficiency",
        ),
        Resource(
            name="intra_node_bandwidth",
            title="bandwidth inside nodes",
            limit="The links inside nodes limit this plan",
            change=_link("intra_node_bandwidth", rate=True),
            constant="intra_share",
        ),
        Resource(
            name="inter_node_bandwidth",
            title="bandwidth between nodes",
            limit="The network between nodes limits this plan",
            change=_link("inter_node_bandwidth", rate=True),
            constant="inter_share",
        ),
        Resource(
            name="latency",
            title="shorter network latency",
            limit="Network latency limits this plan",
            change=_link("latency", rate=False),
            constant="collective_latency_s",
        ),
        Resource(
            name="launch",
            title="faster kernel launches",
            limit="Kernel launches limit this plan",
            change=_launch,
            constant="launch_s",
        ),
    )
}
"""What the step time is tested against, by name."""

_SPREAD = {
    spec.name: math.hypot(*(w for scope, w in spec.widths.items() if scope != "global"))
    for spec in SPECS
}


class Repricer:
    """Prices plans on changed hardware; one cost model per change serves all plans.

    Args:
        profile: What is trained.
        cluster: Where.
    """

    def __init__(self, profile: GraphProfile, cluster: Cluster) -> None:
        self.profile = profile
        self.cluster = cluster
        self._models: dict[tuple[str, float, str], CostModel] = {}
        self._elasticities: dict[str, dict[str, float]] = {}

    def price(self, plan: Plan, resource: str, factor: float) -> PlanPrice:
        """A plan with a factor more of a resource.

        Raises:
            InputError: The plan is for another profile or cluster.
        """
        key = (resource, factor, plan.precision)
        if key not in self._models:
            world = RESOURCES[resource].change(self.profile, self.cluster, factor)
            self._models[key] = _model(resource, factor, world, plan.precision)
        model = self._models[key]
        return price(plan, model.profile, model.cluster, model)

    def elasticities(self, plan: Plan, step_s: float) -> Mapping[str, float]:
        """Resource -> share of the step that shrinks with it: ``-d ln T / d ln r``, at +10 %.

        Args:
            plan: The plan.
            step_s: Its step time as the cluster is.
        """
        if plan.hash not in self._elasticities:
            self._elasticities[plan.hash] = {
                name: -math.log(self.price(plan, name, STEP).step_time_s.value / step_s)
                / math.log(STEP)
                for name in self._relevant(plan)
            }
        return self._elasticities[plan.hash]

    def _relevant(self, plan: Plan) -> list[str]:
        """Resources that can matter: no links for one rank, no network inside one node."""
        nodes = {self.cluster.node(device) for device in plan.placement}
        alone = {"intra_node_bandwidth", "inter_node_bandwidth", "latency"}
        skipped = alone if plan.world_size == 1 else set()
        if len(nodes) == 1:
            skipped = skipped | {"inter_node_bandwidth"}
        if self.cluster.measured:
            skipped = skipped | {"memory_bandwidth", "launch"}
        return [name for name in RESOURCES if name not in skipped]

    def uncertainty(self, resource: str) -> float:
        """Standard deviation of the logarithm of what is reached of a resource.

        Measured figures: the spread between repeats. Others: how much the calibrated constant
        differs between devices and frameworks, the prior widths of the calibration.
        """
        measurement = self.profile.measurement
        floor = k.MEASURED_SPREAD_FLOOR.value / Z90
        if resource == "compute" and measurement is not None and self.cluster.measured:
            return max(measurement.spread / Z90, floor)
        links = ("intra_node_bandwidth", "inter_node_bandwidth", "latency")
        if resource in links and self.cluster.curves:
            return floor
        return _SPREAD[RESOURCES[resource].constant]
