"""The certificate is true: search equals brute force over every point and every partition."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autopar.cluster import Cluster, HostOverhead, NodeGroup
from autopar.cluster.overhead import NO_OVERHEAD, ShardCost, SplitOverhead
from autopar.core.errors import InfeasibleError
from autopar.cost import CostModel, price
from autopar.cost.memory import device_capacity, peak_estimate
from autopar.cost.work import FULL, NONE, SELECTIVE
from autopar.graph import GraphProfile
from autopar.search import SearchOptions, search
from autopar.search.mixed_clusters.placement import device_orders
from autopar.search.space.build import build_space
from autopar.search.space.plans import build_plan
from autopar.search.space.point import Point
from autopar.search.stages.chunks import chunked_cuts
from autopar.search.stages.goal import value_of

from .builders import chain_profile, cluster_of, gpu


def partitions(point: Point, profile: GraphProfile) -> Iterator[tuple[int, ...]]:
    n = len(profile.blocks)
    if point.chunks > 1:
        yield from chunked_cuts(profile, point.stages)
        return
    for inner in itertools.combinations(range(1, n), point.stages - 1):
        yield (0, *inner, n)


def all_levels(point: Point, profile: GraphProfile) -> Iterator[tuple[int, ...] | None]:
    if point.recompute != "mixed":
        yield None
        return
    yield from itertools.product((NONE, SELECTIVE, FULL), repeat=len(profile.blocks))


def brute_force(profile: GraphProfile, cluster: Cluster, options: SearchOptions) -> float:
    """Smallest objective over all points, partitions and levels that fit, by pricing each."""
    options = options.resolved(cluster)
    model = CostModel(profile, cluster, options.precision)
    best = math.inf
    limit = options.max_memory_bytes or math.inf
    for point in build_space(profile, cluster, options).points:
        for cuts in partitions(point, profile):
            for levels in all_levels(point, profile):
                plan = build_plan(point, cuts, model, options, levels)
                result = price(plan, profile, cluster, model)
                fits = all(
                    peak_estimate(model, part.total_bytes).high
                    <= min(limit, *(device_capacity(cluster.device(d)) for d in group))
                    for part, group in zip(result.memory, groups(plan), strict=True)
                )
                if fits:
                    best = min(best, value_of(result, options.objective))
    return best


def groups(plan) -> list[list[int]]:
    size = plan.world_size // plan.mesh.pp
    return [list(plan.placement[q * size : (q + 1) * size]) for q in range(plan.mesh.pp)]


@st.composite
def profiles(draw: st.DrawFn, most: int = 6) -> GraphProfile:
    n = draw(st.integers(3, most))
    flops = draw(st.lists(st.sampled_from([1e10, 5e10, 1e11, 3e11]), min_size=n, max_size=n))
    sizes = draw(st.lists(st.sampled_from([4, 400_000, 40_000_000]), min_size=n, max_size=n))
    pairs = list(itertools.combinations(range(n), 2))
    far = [pair for pair in pairs if pair[1] - pair[0] > 1]
    return chain_profile(
        flops,
        parameter_bytes=sizes,
        activation_bytes=draw(st.sampled_from([1e3, 1e6, 3e7])),
        saved_bytes=draw(st.sampled_from([1e6, 1e8])),
        tied=draw(st.lists(st.sampled_from(pairs), max_size=1)),
        skips=draw(st.lists(st.sampled_from(far), max_size=2, unique=True)),
        missing=draw(st.lists(st.integers(1, n - 1), max_size=1)),
    )


BUSY = HostOverhead(
    forward_action_s=2e-4,
    backward_action_s=1e-4,
    step_s=1e-3,
    split=SplitOverhead(
        first=ShardCost(unit_s=1e-4, weight_s=2e-5), second=ShardCost(unit_s=3e-4, weight_s=5e-5)
    ),
    receive_s=5e-4,
)
"""A host whose ranks receive messages when they need them."""


@st.composite
def clusters(draw: st.DrawFn) -> Cluster:
    nodes, per_node = draw(st.sampled_from([(1, 1), (1, 2), (2, 1), (3, 1), (1, 4), (2, 2)]))
    memory = draw(st.sampled_from([2.2e9, 3e9, 80e9]))
    intra = draw(st.sampled_from([300e9, 1e9]))
    first = cluster_of(nodes, per_node, device=gpu(memory=memory), intra=intra, inter=intra / 8)
    first = replace(first, overhead=draw(st.sampled_from([NO_OVERHEAD, BUSY])))
    if nodes > 1 and draw(st.booleans()):
        slow = cluster_of(1, per_node, device=gpu("slow", peak=4e13), intra=intra).groups[0]
        fast = NodeGroup(machine=first.groups[0].machine, nodes=nodes - 1)
        return Cluster(name="mixed", groups=(fast, slow), overhead=first.overhead)
    return first


def check(profile: GraphProfile, cluster: Cluster, options: SearchOptions) -> None:
    expected = min(
        brute_force(profile, order.cluster, options) for order in device_orders(cluster)
    )
    if math.isinf(expected):
        with pytest.raises(InfeasibleError):
            search(profile, cluster, options)
        return
    result = search(profile, cluster, options)
    assert value_of(result.best.price, options.objective) == pytest.approx(expected, rel=1e-9)
    assert result.certificate.gap == 0
    certificate = result.certificate
    rejected = sum(certificate.rejected.values())
    assert certificate.space == rejected + certificate.bounded + certificate.priced


SETTINGS = settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)


@pytest.mark.parametrize("objective", ["time", "memory", "energy", "cost"])
@SETTINGS
@given(profile=profiles(), cluster=clusters(), batch=st.sampled_from([1, 2, 4, 6]))
def test_search_equals_brute_force(
    objective: str, profile: GraphProfile, cluster: Cluster, batch: int
):
    options = SearchOptions(
        global_batch=batch, objective=objective, top=1, forbid=("recompute=mixed",)
    )
    check(profile, cluster, options)


@SETTINGS
@given(
    profile=profiles(most=4),
    cluster=clusters(),
    batch=st.sampled_from([1, 2, 4]),
    memory=st.sampled_from([None, 5.0e9, 5.2e9, 5.5e9, 6.2e9]),
)
def test_levels_per_block_equal_brute_force(
    profile: GraphProfile, cluster: Cluster, batch: int, memory: float | None
):
    options = SearchOptions(
        global_batch=batch,
        top=1,
        max_memory_bytes=memory,
        fix=("recompute=mixed", "offload=off"),
    )
    check(profile, cluster, options)
