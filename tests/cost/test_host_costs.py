"""What a host adds: recompute's fixed cost, the runner's cost per action, untimed blocks."""

from __future__ import annotations

from dataclasses import replace

import pytest
from search.builders import chain_profile

from autopar.cluster import HostOverhead
from autopar.core.errors import InputError
from autopar.cost.computation.compute import ComputeModel
from autopar.graph import GraphProfile
from autopar.search import SearchOptions, plan_for
from cost.test_parts import local, measured


def test_recomputing_costs_more_than_running_again():
    profile = measured(chain_profile([1e9] * 3), checkpoint_s=0.01, checkpoint_s_per_op=0.001)
    ops = sum(block.stop_op - block.first_op for block in profile.blocks)
    plain, again = (
        plan_for(
            profile, local(2), f"recompute={kind},microbatches=1", SearchOptions(global_batch=4)
        )
        for kind in ("none", "full")
    )
    forward_s = plain.price.stage_costs[0].forward_s
    extra_s = again.price.stage_costs[0].recompute_s - forward_s
    assert extra_s == pytest.approx((3 * 0.01 + ops * 0.001) / 1.2)


def test_selective_recompute_costs_its_own_work_per_op():
    profile = measured(chain_profile([1e9] * 3), checkpoint_s=0.01, checkpoint_s_per_op=0.001)
    dear = measured(chain_profile([1e9] * 3), selective_s=0.02, selective_s_per_op=0.005)
    ops = sum(block.stop_op - block.first_op for block in profile.blocks)
    cheap_s, dear_s = (
        plan_for(p, local(2), "recompute=selective,microbatches=1", SearchOptions(global_batch=4))
        .price.stage_costs[0]
        .recompute_s
        for p in (profile, dear)
    )
    assert dear_s - cheap_s == pytest.approx((3 * 0.02 + ops * 0.005) / 1.2)


def test_blocks_that_were_timed_again_cost_what_was_found():
    chain = chain_profile([1e9] * 3)
    signature = chain.blocks[0].signature
    timed = measured(chain, checkpoint_s=9.0, selective_s=9.0, again={signature: (0.03, 0.06)})
    assert GraphProfile.from_dict(timed.to_dict()).measurement == timed.measurement
    alike = sum(block.signature == signature for block in chain.blocks)
    plain = plan_for(
        measured(chain), local(2), "recompute=full,microbatches=1", SearchOptions(global_batch=4)
    ).price.stage_costs[0]
    found = plan_for(
        timed, local(2), "recompute=full,microbatches=1", SearchOptions(global_batch=4)
    ).price.stage_costs[0]
    extra_s = (alike * 0.03 + (len(chain.blocks) - alike) * 9.0) / 1.2
    assert found.recompute_s - plain.recompute_s == pytest.approx(extra_s)


def test_every_action_of_a_pipeline_pays_the_runner():
    profile, cluster = measured(chain_profile([1e9] * 3)), local(2)
    slow = replace(
        cluster,
        overhead=HostOverhead(forward_action_s=0.5, backward_action_s=0.25, step_s=2.0),
    )
    options = SearchOptions(global_batch=4)
    fast_plan, slow_plan = (
        plan_for(profile, where, "pp=2,schedule=1f1b,microbatches=2", options).price
        for where in (cluster, slow)
    )
    for a, b in zip(fast_plan.stage_costs, slow_plan.stage_costs, strict=True):
        assert b.forward_s - a.forward_s == pytest.approx(0.5)
        assert b.backward_s - a.backward_s == pytest.approx(0.25)
    assert slow_plan.step_time_s.value - fast_plan.step_time_s.value > 2.0 + 2 * 0.75 - 1e-9
    singles = [
        plan_for(profile, where, "pp=1,microbatches=1", options).price.stage_costs
        for where in (cluster, slow)
    ]
    assert singles[0] == singles[1]


def test_bookkeeping_is_paid_per_step_and_without_a_pipeline_per_microbatch():
    profile, cluster = measured(chain_profile([1e9] * 3)), local(2)
    overhead = HostOverhead(
        forward_action_s=0.0, backward_action_s=0.0, step_s=2.0, microbatch_s=0.5
    )
    slow, options = replace(cluster, overhead=overhead), SearchOptions(global_batch=8)
    for mesh, extra_s in (("dp_replicate=2", 2.0 + 4 * 0.5), ("pp=2,schedule=1f1b", 2.0)):
        spec = f"{mesh},microbatches=4"
        plain, found = (plan_for(profile, c, spec, options).price for c in (cluster, slow))
        assert found.step_time_s.value - plain.step_time_s.value == pytest.approx(extra_s)
        assert found.breakdown.other_s == pytest.approx(extra_s)
        assert found.breakdown.optimizer_s == pytest.approx(plain.breakdown.optimizer_s)


def test_a_block_without_a_curve_is_priced_by_the_peaks_or_refused():
    profile = measured(chain_profile([1e9, 2e9]), curves={})
    without = ComputeModel(profile, local(2), "float32")
    with pytest.raises(InputError, match="was not timed"):
        without.block_seconds(1, without.cluster.device(0), 2)
    cluster = local(2)
    (group,) = cluster.groups
    device = replace(group.machine.device, peak_flop_per_s={"float32": 1e10})
    known = replace(
        cluster, groups=(replace(group, machine=replace(group.machine, device=device)),)
    )
    forward, _ = ComputeModel(profile, known, "float32").block_seconds(1, device, 2)
    assert forward[1] > forward[0] > 0.01
    options = SearchOptions(global_batch=2)
    item = plan_for(profile, known, "pp=1,microbatches=1", options)
    assert item.price.step_time_s.source == "analytic"
    assert any("2 of 2 blocks were not timed" in text for text in item.price.assumptions)


def test_loads_are_compared_in_ranks_of_as_many_threads():
    """Two profiled ranks of one thread load a host as one measured rank of two threads does."""
    profile = measured(chain_profile([1e9]))  # 2 busy ranks of 1 thread
    alone = replace(local(2), busy_slowdown={1: 1.0})
    device = alone.device(0)
    wide = replace(alone, provenance={"measurement": {"threads_per_rank": 2}})
    narrow = replace(alone, provenance={"measurement": {"threads_per_rank": 1}})
    factors = [ComputeModel(profile, c, "float32").slowdown(device, 1) for c in (wide, narrow)]
    assert factors == [1.0, 0.5]
    crowded = measured(chain_profile([1e9]), busy_ranks=8)
    assert ComputeModel(crowded, wide, "float32").slowdown(device, 1) == pytest.approx(0.25)
