"""Mixed clusters: every order of the machines is searched; brute force over placements agrees."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import replace

import pytest

from autopar.cluster import Cluster
from autopar.core.errors import InfeasibleError
from autopar.cost import CostModel, price
from autopar.cost.memory import device_capacity, peak_estimate
from autopar.graph import GraphProfile
from autopar.results import SearchResult
from autopar.search import SearchOptions, search
from autopar.search.explain.choice import layout_words
from autopar.search.explain.machines_used import node_words
from autopar.search.mixed_clusters.placed import least_objective
from autopar.search.mixed_clusters.placement import MOST_ORDERS, device_orders
from autopar.search.ordered import find_in_order
from autopar.search.questions.breakeven import break_even
from autopar.search.space.build import build_space
from autopar.search.space.plans import build_plan
from autopar.search.stages.goal import value_of

from .builders import chain_profile, cluster_of, gpu

FEW_AXES = ("recompute=none", "offload=off")


def mixed(fast: int, slow: int, *, peak: float = 2.5e13, memory: float = 80e9) -> Cluster:
    """Nodes of one device each, the fast ones first."""
    groups = (
        *cluster_of(fast, 1, device=gpu("fast", peak=1e14)).groups,
        *cluster_of(slow, 1, device=gpu("slow", peak=peak, memory=memory)).groups,
    )
    return Cluster(name=f"{fast}+{slow}", groups=groups)


def brute_force(profile: GraphProfile, cluster: Cluster, options: SearchOptions) -> float:
    """Best objective over all points, boundaries and arrangements of devices."""
    options = options.resolved(cluster)
    model = CostModel(profile, cluster, options.precision)
    n = len(profile.blocks)
    best = math.inf
    counts = range(1, cluster.device_count + 1)
    worlds = {w for w in counts if cluster.device_count % w == 0}
    worlds |= {w for g in cluster.groups for w in counts if g.devices % w == 0}
    for world in worlds:
        # The points of `world` devices are the same whichever devices they are.
        stand_in = replace(cluster, groups=cluster_of(world, 1).groups)
        points = [p for p in build_space(profile, stand_in, options).points if p.world == world]
        for point in points:
            for inner in itertools.combinations(range(1, n), point.stages - 1):
                base = build_plan(point, (0, *inner, n), model, options)
                for devices in itertools.permutations(range(cluster.device_count), world):
                    plan = replace(base, placement=devices)
                    result = price(plan, profile, cluster, model)
                    each = world // plan.mesh.pp
                    fits = all(
                        peak_estimate(model, part.total_bytes).high
                        <= min(
                            device_capacity(cluster.device(d)) for d in devices[q * each :][:each]
                        )
                        for q, part in enumerate(result.memory)
                    )
                    if fits:
                        best = min(best, value_of(result, options.objective))
    return best


@pytest.mark.parametrize("seed", range(10))
def test_search_equals_brute_force_over_all_arrangements(seed: int) -> None:
    random_ = random.Random(seed)
    flops = [random_.choice([1e10, 5e10, 2e11]) for _ in range(3)]
    sizes = [random_.choice([400_000, 40_000_000]) for _ in range(3)]
    profile = chain_profile(flops, parameter_bytes=sizes, saved_bytes=1e8)
    cluster = mixed(
        *random_.choice([(1, 1), (2, 1), (1, 2)]),
        peak=random_.choice([1e13, 6e13]),
        memory=random_.choice([5.3e9, 80e9]),
    )
    options = SearchOptions(
        global_batch=random_.choice([2, 6]),
        objective=random_.choice(["time", "cost", "energy", "memory"]),
        fix=(*FEW_AXES, "zero=0"),
        space="runnable",
        forbid=("schedule=interleaved", "schedule=looped_bfs"),
    )
    expected = brute_force(profile, cluster, options)
    if math.isinf(expected):
        with pytest.raises(InfeasibleError):
            search(profile, cluster, options)
        return
    result = search(profile, cluster, options)
    assert value_of(result.best.price, options.objective) == pytest.approx(expected, rel=1e-9)
    assert least_objective(profile, cluster, options) <= expected * (1 + 1e-9)
    check_certificate(result)


def check_certificate(result: SearchResult) -> None:
    proof = result.certificate
    assert proof.gap == 0
    assert proof.space == sum(proof.rejected.values()) + proof.bounded + proof.priced


def test_plans_are_priced_alike_in_their_order_and_on_the_whole_cluster() -> None:
    profile = chain_profile([1e10, 5e10, 2e11, 1e11])
    cluster = mixed(2, 2)
    for order in device_orders(cluster):
        options = SearchOptions(global_batch=8)
        alone = find_in_order(profile, order.cluster, options, relaxations=False).best
        plan = replace(alone.plan, placement=order.placed(alone.plan.placement))
        whole = price(plan, profile, cluster)
        assert whole.step_time_s == alone.price.step_time_s
        assert [cluster.device(d).name for d in plan.placement] == [
            order.cluster.device(d).name for d in alone.plan.placement
        ]


def test_the_heavy_end_of_a_pipeline_goes_to_the_fast_machine() -> None:
    profile = chain_profile([1e10, 1e10, 6e11], parameter_bytes=[4_000_000] * 3)
    options = SearchOptions(global_batch=8, fix=("pp=2", "world=2", *FEW_AXES))
    cluster = mixed(1, 1)
    result = search(profile, cluster, options)
    assert [cluster.device(d).name for d in result.best.plan.placement] == ["slow", "fast"]
    own = find_in_order(profile, cluster, options, relaxations=False).best
    assert own.price.step_time_s.value > 2 * result.best.price.step_time_s.value
    assert any(
        text.startswith("Placement. Ranks run over 1 node of slow") for text in result.explanation
    )


def test_the_placement_names_what_is_used_idle_and_next_and_no_plan_twice() -> None:
    """Orders that begin with the fast nodes give one plan; it is no runner-up of itself."""
    profile = chain_profile([1e11] * 4, parameter_bytes=[400_000_000] * 4)
    cluster = mixed(2, 2, peak=1e12)
    asked = SearchOptions(global_batch=8)
    result = search(profile, cluster, asked)
    assert {cluster.device(d).name for d in result.best.plan.placement} == {"fast"}
    (words,) = [text for text in result.explanation if text.startswith("Placement.")]
    nodes = len(result.best.plan.placement)
    opening = f"Placement. Ranks run over {node_words('fast', nodes)}, the best of 8 orders"
    assert words.startswith(opening)
    assert "2 nodes of slow" in words and "idle" in words
    assert "+0.0%" not in words
    plan = layout_words(result.best, cluster)
    assert "2 nodes of slow) stay idle" in plan and "idle ones are not counted" in plan


def test_the_next_order_is_measured_by_what_was_minimised() -> None:
    """The next cheapest machines may well be the faster ones."""
    profile = chain_profile([1e11] * 4, parameter_bytes=[400_000] * 4)
    cluster = Cluster(
        name="1+1",
        groups=(
            *cluster_of(1, 1, device=gpu("dear", peak=1e14, usd=9.0)).groups,
            *cluster_of(1, 1, device=gpu("cheap", peak=5e13, usd=1.0)).groups,
        ),
    )
    result = search(profile, cluster, SearchOptions(global_batch=8, objective="cost"))
    (words,) = [text for text in result.explanation if text.startswith("Placement.")]
    assert words.startswith("Placement. Ranks run over 1 node of cheap, ")
    assert "of the others that had to be priced the best is 1 node of dear" in words
    assert words.endswith("times the money.")


def test_break_even_is_told_of_the_machines_that_the_plan_uses() -> None:
    fast = cluster_of(2, 1, device=gpu("fast"), inter=4e10)
    slow = cluster_of(2, 1, device=gpu("slow", peak=1e12), inter=1e10)
    cluster = Cluster(name="2+2", groups=(*fast.groups, *slow.groups))
    profile = chain_profile([1e11] * 4, parameter_bytes=[100_000_000] * 4)
    asked = SearchOptions(global_batch=8, fix=("pp=1",))
    result = search(profile, cluster, asked)
    assert {cluster.device(d).name for d in result.best.plan.placement} == {"fast"}
    (flip, *_) = break_even(result, profile, cluster, "inter_node_bandwidth", asked, effort="ends")
    assert flip.now == 4e10 and "of 320 Gbit/s" in flip.text


def test_machines_of_one_kind_alone_may_be_best() -> None:
    profile = chain_profile([1e11] * 4, parameter_bytes=[400_000] * 4)
    result = search(profile, mixed(3, 2, peak=1e12), SearchOptions(global_batch=12))
    assert sorted(result.best.plan.placement) == [0, 1, 2]  # 3 does not divide 5
    check_certificate(result)
    with_all = search(profile, mixed(3, 2, peak=1e12), SearchOptions(fix=("world=5",)))
    assert with_all.best.plan.world_size == 5


def test_orders_are_every_sequence_of_nodes_each_once() -> None:
    cluster = mixed(2, 2)
    orders = device_orders(cluster)
    names = [
        "".join(g.machine.name[0] * g.nodes for g in order.cluster.groups) for order in orders
    ]
    assert names[0] == "ffss"
    assert sorted(names) == sorted(["ffss", "fsfs", "fssf", "sffs", "sfsf", "ssff", "ff", "ss"])
    for order in orders:
        assert len(set(order.devices)) == len(order.devices) == order.cluster.device_count
        for own, device in enumerate(order.devices):
            assert order.cluster.device(own) == cluster.device(device)


def test_many_nodes_keep_kinds_together() -> None:
    orders = device_orders(mixed(5, 5))  # 252 sequences
    assert MOST_ORDERS < 252
    assert [order.words for order in orders] == [
        "5 nodes of fast, then 5 nodes of slow",
        "5 nodes of slow, then 5 nodes of fast",
        "5 nodes of fast",
        "5 nodes of slow",
    ]


def test_one_kind_has_one_order() -> None:
    cluster = cluster_of(4, 2)
    (order,) = device_orders(cluster)
    assert order.cluster == cluster and order.devices == tuple(range(8))
