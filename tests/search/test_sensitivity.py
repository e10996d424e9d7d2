"""What a step hangs on, and how sure the order of two plans is."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from autopar.cluster import Cluster, NodeGroup
from autopar.cluster.catalog import load_machine
from autopar.cost import CostModel, price
from autopar.cost.computation.roofline import held_clock
from autopar.graph import BlockCurve, GraphProfile, Measurement
from autopar.results import RankedPlan
from autopar.search import SearchOptions, plan_for
from autopar.search.explain.change import changed_cluster, scaled_cluster
from autopar.search.explain.parts import strategy_name
from autopar.search.questions.pairs import PLAN_SPREAD, compare_pair
from autopar.search.questions.sensitivity import STEP, Repricer

from .builders import chain_profile, cluster_of

OPTIONS = SearchOptions(global_batch=16)
HEAVY = chain_profile([2e12] * 6, parameter_bytes=[4_000_000] * 6)
CHATTY = chain_profile([2e11] * 6, parameter_bytes=[400_000_000] * 6)
CLUSTER = cluster_of(4, 1)


def plan(profile: GraphProfile, spec: str) -> RankedPlan:
    return plan_for(profile, CLUSTER, spec, OPTIONS)


def elasticities(profile: GraphProfile, item: RankedPlan) -> dict[str, float]:
    repricer = Repricer(profile, CLUSTER)
    return dict(repricer.elasticities(item.plan, item.price.step_time_s.value))


def test_elasticity_is_the_share_that_shrinks_with_a_resource():
    item = plan(CHATTY, "dp=4,m=1")
    found = elasticities(CHATTY, item)
    faster = scaled_cluster(CLUSTER, "inter_node_bandwidth", STEP)
    then = price(item.plan, CHATTY, faster, CostModel(CHATTY, faster)).step_time_s.value
    share = math.log(item.price.step_time_s.value / then) / math.log(STEP)
    assert found["inter_node_bandwidth"] == pytest.approx(share)
    assert found["inter_node_bandwidth"] > 0.5 > found["compute"] > 0.1


def test_shares_of_all_resources_are_no_more_than_the_step():
    for profile, spec in ((HEAVY, "dp=4,m=1"), (CHATTY, "pp=4,m=16"), (CHATTY, "dp=2,pp=2,m=8")):
        shares = elasticities(profile, plan(profile, spec))
        assert all(share > -1e-6 for share in shares.values())
        assert sum(shares.values()) < 1.02


def test_a_higher_peak_is_a_higher_rate_and_not_a_lower_clock():
    """At the same power the clock would fall with the root of the peak, half of the gain."""
    h100 = Cluster(name="h", groups=(NodeGroup(machine=load_machine("h100-sxm"), nodes=1),))
    item = plan_for(HEAVY, h100, "dp=1,pp=1,m=1", SearchOptions(global_batch=16))
    shares = dict(Repricer(HEAVY, h100).elasticities(item.plan, item.price.step_time_s.value))
    assert sum(shares.values()) > 0.95
    doubled = changed_cluster(h100, "peak=x2")
    assert held_clock(doubled.device(0)) == held_clock(h100.device(0)) < 1


def test_one_device_hangs_on_no_link():
    shares = elasticities(HEAVY, plan(HEAVY, "dp=1,pp=1,m=16"))
    assert set(shares) == {"compute", "memory_bandwidth", "launch"}
    assert shares["compute"] > 0.9


def test_what_slows_both_plans_alike_cancels():
    one, two = plan(HEAVY, "dp=4,m=1"), plan(HEAVY, "dp=4,m=2")
    repricer = Repricer(HEAVY, CLUSTER)
    pair = compare_pair(one, two, repricer)
    alone = repricer.uncertainty("compute")
    assert pair.sd < alone  # each plan's own time is less certain than their order
    assert pair.sd == pytest.approx(math.sqrt(2) * PLAN_SPREAD, rel=0.1)


def test_a_plan_against_itself_is_a_coin_toss_and_a_far_slower_one_is_not():
    one = plan(HEAVY, "dp=4,m=1")
    repricer = Repricer(HEAVY, CLUSTER)
    same = compare_pair(one, one, repricer)
    assert (same.margin, same.odds, same.close) == (0.0, 0.5, True)
    alone = compare_pair(one, plan(HEAVY, "dp=1,pp=1,m=16"), repricer)
    assert alone.margin > 2
    assert not alone.close


def test_the_constant_that_could_turn_the_order_is_named_with_its_factor():
    quick, steady = plan(CHATTY, "dp=4,m=1"), plan(CHATTY, "pp=4,m=16")
    if quick.price.step_time_s.value > steady.price.step_time_s.value:
        quick, steady = steady, quick
    repricer = Repricer(CHATTY, CLUSTER)
    pair = compare_pair(quick, steady, repricer)
    factors = dict(pair.drivers)
    assert pair.odds < 0.5
    assert "inter_node_bandwidth" in factors
    turned = scaled_cluster(CLUSTER, "inter_node_bandwidth", factors["inter_node_bandwidth"])
    model = CostModel(CHATTY, turned)
    times = [price(p.plan, CHATTY, turned, model).step_time_s.value for p in (quick, steady)]
    before = steady.price.step_time_s.value / quick.price.step_time_s.value
    assert abs(math.log(times[1] / times[0])) < 0.5 * math.log(before)  # first order in the log


def test_measured_figures_are_surer_than_assumed_ones():
    assumed = Repricer(CHATTY, CLUSTER)
    curves = Repricer(CHATTY, replace(CLUSTER, curves=("any",)))  # type: ignore[arg-type]
    assert curves.uncertainty("inter_node_bandwidth") < assumed.uncertainty("inter_node_bandwidth")


def test_strategies_leave_out_schedules_and_microbatches():
    specs = ("pp=2,dp=2,m=8", "pp=2,dp=2,m=4", "pp=2,dp=2,schedule=gpipe,m=8,rc=full")
    names = {strategy_name(plan(HEAVY, spec).plan) for spec in specs}
    assert names == {"dp2·pp2"}
    assert strategy_name(plan(HEAVY, "dp=1,pp=1,m=16").plan) == "single"
    assert strategy_name(plan(HEAVY, "dp=4,m=1").plan) == "dp4"


def test_tiny_kernels_hang_on_their_launches():
    tiny = chain_profile([1e6] * 6, parameter_bytes=[4_000] * 6, activation_bytes=1e3)
    shares = elasticities(tiny, plan(tiny, "dp=1,pp=1,m=16"))
    assert max(shares, key=lambda name: shares[name]) == "launch"
    assert shares["launch"] > 0.5
    assert elasticities(HEAVY, plan(HEAVY, "dp=1,m=16"))["launch"] < 0.1


def test_measured_times_count_as_compute():
    curves = {f"s{i}": BlockCurve(points=((1.0, 0.01, 0.02), (16.0, 0.1, 0.2))) for i in range(6)}
    timed = Measurement(
        device="gpu",
        busy_ranks=1,
        threads=1,
        curves=curves,
        composition=(),
        optimizer_s=0.01,
        optimizer_s_per_byte=1e-11,
        zero_grad_s=1e-3,
        resident_bytes=1e9,
        spread=0.05,
    )
    profile = replace(HEAVY, measurement=timed)
    cluster = replace(cluster_of(1, 1), measured=True)
    item = plan_for(profile, cluster, "dp=1,pp=1,m=4", OPTIONS)
    repricer = Repricer(profile, cluster)
    shares = repricer.elasticities(item.plan, item.price.step_time_s.value)
    assert shares == {"compute": pytest.approx(1.0)}
    assert repricer.uncertainty("compute") < Repricer(HEAVY, CLUSTER).uncertainty("compute")
