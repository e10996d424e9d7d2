"""Compute, collectives, gradients, memory and money against hand calculation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from search.builders import chain_profile, cluster_of, gpu

from autopar.calibration.kernels import gemm_seconds, phase_seconds
from autopar.calibration.memory import MemoryConstants
from autopar.cluster import Cluster, CollectiveCurve, Device, NodeGroup
from autopar.core.errors import InputError
from autopar.cost import CostModel, price
from autopar.cost.communication.collectives import CommunicationModel
from autopar.cost.communication.gradients import bucketed_seconds, overlapped_seconds
from autopar.cost.computation.compute import ComputeModel, interpolate
from autopar.cost.states import ParameterBytes
from autopar.graph import BlockCurve, GraphProfile, Measurement
from autopar.search import SearchOptions, plan_for


def measured(profile: GraphProfile, **changes: object) -> GraphProfile:
    curves = {
        b.signature: BlockCurve(points=((1, 0.1, 0.2), (4, 0.4, 0.8))) for b in profile.blocks
    }
    measurement = Measurement(
        device="cpu",
        busy_ranks=2,
        threads=1,
        curves=curves,
        composition=((1, 1.5), (4, 1.0)),
        optimizer_s=0.01,
        optimizer_s_per_byte=1e-9,
        zero_grad_s=0.0,
        resident_bytes=3e8,
        spread=0.02,
    )
    return replace(profile, measurement=replace(measurement, **changes))  # type: ignore[arg-type]


def local(ranks: int) -> Cluster:
    device = Device(
        name="host",
        kind="cpu",
        peak_flop_per_s={},
        memory_bytes=16e9,
        memory_bytes_per_s=1e10,
        launch_s=1e-6,
    )
    base = cluster_of(1, ranks, device=device)
    curves = tuple(
        CollectiveCurve(
            collective=name, ranks=n, points=((1e3, 1e-3 * n), (1e6, 1e-2 * n)),
            alpha_s=1e-3, bytes_per_s=1e8,
        )
        for name in ("all_reduce", "send_recv")
        for n in (2, 4)
    )  # fmt: skip
    return replace(
        base, measured=True, busy_slowdown={1: 1.0, 2: 1.2, 4: 2.4}, curves=curves, backend="gloo"
    )


def test_measured_times_scale_with_composition_and_busy_ranks():
    model = ComputeModel(measured(chain_profile([1e9] * 3)), local(4), "float32")
    device = model.cluster.device(0)
    forward, backward = model.block_seconds(1, device, 4)
    assert forward[0] == pytest.approx(0.1 * 1.5 * 2.4 / 1.2)
    assert backward[0] == pytest.approx(0.2 * 1.5 * 2.4 / 1.2)
    assert model.block_seconds(4, device, 2)[0][0] == pytest.approx(0.4)


def test_slowdown_is_interpolated_and_extended():
    table = {1: 1.0, 2: 1.2, 4: 2.4}
    assert interpolate(table, 3) == pytest.approx(1.8)
    assert interpolate(table, 8) == pytest.approx(4.8)
    assert interpolate({}, 3) == 1.0


def test_roofline_joins_products_streams_and_launches():
    profile = chain_profile([1e12, 0.0, 1.0], activation_bytes=1e9)
    model = ComputeModel(profile, cluster_of(1, 1), "float32")
    c = model.constants(gpu())
    forward, backward = model.block_seconds(1, gpu(), 1)
    side = np.array([(1e12 / 2) ** (1 / 3)])
    product = gemm_seconds(
        c, side, side, side, item_bytes=4.0, peak_flop_per_s=1e14,
        memory_bytes_per_s=2e12 * c.memory_efficiency, multiprocessors=1.0,
    )  # fmt: skip
    host = c.launch_s
    assert forward[0] == pytest.approx(float(phase_seconds(c, product, np.array([host]))[0]))
    stream = (1e9 + 4e6) * c.stream_bytes / (2e12 * c.memory_efficiency)
    assert forward[1] == pytest.approx(
        (stream**c.phase_norm + host**c.phase_norm) ** (1 / c.phase_norm)
    )
    assert backward[0] > 1.9 * float(product[0])
    small = ComputeModel(
        chain_profile([1.0] * 3, activation_bytes=1.0), cluster_of(1, 1), "float32"
    )
    assert small.block_seconds(1, gpu(), 1)[0][0] == pytest.approx(host, rel=0.1)


def test_a_dtype_without_peak_is_refused_never_replaced():
    with pytest.raises(InputError, match="no peak for bfloat16"):
        plan_for(
            chain_profile([1e9] * 3), cluster_of(1, 1), "dp=1", SearchOptions(precision="bfloat16")
        )
    with pytest.raises(InputError, match="unknown precision"):
        ComputeModel(chain_profile([1e9] * 3), cluster_of(1, 1), "float33")


def test_measured_profile_has_no_times_for_another_dtype():
    model = ComputeModel(measured(chain_profile([1e9] * 3)), local(1), "bfloat16")
    assert "no measured time" in (model.why_not(model.cluster.device(0)) or "")


def test_all_reduce_inside_and_across_nodes():
    cluster = cluster_of(2, 4)
    comm = CommunicationModel(cluster, range(8))
    inside = comm.group_seconds("all_reduce", 1e9, (0, 1, 2, 3))
    assert inside == pytest.approx(2 * 3 / 4 * 1e9 / 240e9, rel=0.05)
    across = comm.group_seconds("all_reduce", 1e9, (0, 4))
    # Four devices of a node share its link, so one pair gets a quarter.
    assert across == pytest.approx(1e9 / (20e9 / 4), rel=0.01)
    both = comm.group_seconds("all_reduce", 1e9, tuple(range(8)))
    assert both == pytest.approx(inside + (1e9 / 4) / (20e9 / 4), rel=0.01)
    alone = CommunicationModel(cluster, (0, 4)).group_seconds("all_reduce", 1e9, (0, 4))
    assert alone == pytest.approx(1e9 / 20e9, rel=0.01)


@pytest.mark.parametrize("collective", ["reduce_scatter", "all_gather", "broadcast"])
def test_half_collectives_cost_less_than_all_reduce(collective: str):
    comm = CommunicationModel(cluster_of(1, 8), range(8))
    group = tuple(range(8))
    assert (
        0
        < comm.group_seconds(collective, 1e9, group)
        < comm.group_seconds("all_reduce", 1e9, group)
    )


def test_measured_curves_win_and_are_extended_in_ranks():
    comm = CommunicationModel(local(8), range(8))
    assert comm.group_seconds("all_reduce", 1e6, (0, 1)) == pytest.approx(2e-2)
    assert comm.group_seconds("all_reduce", 1e6, (0, 1, 2)) == pytest.approx(3e-2)
    assert comm.group_seconds("all_reduce", 1e6, tuple(range(7))) == pytest.approx(4e-2 * 6 / 3)
    assert comm.message_seconds(1e6, 0, 1) == pytest.approx(2e-2)
    assert comm.message_seconds(1e6, 3, 3) == 0.0


def test_buckets_overlap_with_backward():
    full, exposed = overlapped_seconds([1.0, 1.0], [8e6, 8e6], 8e6, lambda s: s * 1e-7, 0.0)
    assert full == pytest.approx(1.6)
    # The last megabytes are ready when backward ends; what came before is hidden.
    assert 0.5 < exposed < 0.9
    _, slowed = overlapped_seconds([1.0, 1.0], [8e6, 8e6], 8e6, lambda s: s * 1e-7, 0.5)
    assert slowed == pytest.approx(exposed + 0.5 * (full - exposed))
    assert bucketed_seconds(2.5e6, 1e6, lambda s: s) == pytest.approx(2.5e6)


def test_memory_by_hand_for_1f1b():
    profile = chain_profile([1e11] * 4, activation_bytes=1e6, saved_bytes=4e6, state_ratio=2.0)
    item = plan_for(profile, cluster_of(1, 4), "pp=4,m=8", SearchOptions(global_batch=8))
    first, last = item.price.memory[0], item.price.memory[3]
    c = MemoryConstants.shipped().unseen()
    kept = c.activation_factor
    assert first.parameters_bytes == 4e6
    assert (first.gradients_bytes, first.optimizer_bytes) == (4e6, 8e6)
    # Four in flight, each with what it sent on; the batch.
    assert first.activations_bytes == pytest.approx(kept * 4 * (4e6 + 1e6) + 8 * 1000)
    # One, with what it received.
    assert last.activations_bytes == pytest.approx(kept * (4e6 + 1e6) + 8 * 1000)
    # Its device states no multiprocessors; groups: the pipeline, and all ranks.
    assert first.framework_bytes == pytest.approx(c.framework_bytes + 2 * c.communicator_bytes)
    served = first.total_bytes - first.framework_bytes - first.allocator_bytes
    assert first.allocator_bytes == pytest.approx((c.allocator_margin - 1) * served)
    peak = item.price.peak_memory_bytes
    assert peak.high == pytest.approx(peak.value * c.high_factor)
    assert peak.low == pytest.approx(peak.value * c.low_factor)
    assert peak.source == "calibrated"


def test_recompute_keeps_boundaries_and_one_block():
    profile = chain_profile([1e11] * 4, activation_bytes=1e6, saved_bytes=40e6)
    options = SearchOptions(global_batch=8)
    plain = plan_for(profile, cluster_of(1, 2), "pp=2,m=8", options).price.memory[0]
    again = plan_for(profile, cluster_of(1, 2), "pp=2,m=8,rc=full", options).price.memory[0]
    c = MemoryConstants.shipped()
    # Two in flight; two blocks and the output that was sent on. The first block has no input.
    assert plain.activations_bytes - 8000 == pytest.approx(
        c.activation_factor * 2 * (2 * 40e6 + 1e6)
    )
    assert again.activations_bytes - 8000 == pytest.approx(c.activation_factor * 2 * (1e6 + 1e6))
    # Gradients of the widest op and of the input, a block again; a share of Adam's temporaries
    # (two blocks of 1e6 elements) adds where activations are larger.
    gradients, update = 2e6, 2 * 4e6
    assert plain.transient_bytes == pytest.approx(
        c.transient_factor * gradients + c.update_share * update
    )
    working = c.transient_factor * (gradients + 40e6)
    assert again.transient_bytes == pytest.approx(working + c.update_share * update)


def test_tied_parameters_exist_on_each_rank_but_once_in_a_stage():
    profile = chain_profile([1e11] * 4, tied=[(0, 3)])
    options = SearchOptions(global_batch=8)
    single = plan_for(profile, cluster_of(1, 1), "dp=1", options).price
    assert single.memory[0].parameters_bytes == profile.parameter_bytes
    split = plan_for(profile, cluster_of(1, 2), "pp=2", options).price
    total = sum(m.parameters_bytes for m in split.memory)
    assert total == profile.parameter_bytes + 2_000_000
    assert split.tied_syncs[0].ranks == (0, 1)
    assert split.tied_syncs[0].seconds > 0


def test_mfu_energy_and_money():
    profile = chain_profile([1e12] * 4, batch=1)
    item = plan_for(profile, cluster_of(1, 2), "dp=2", SearchOptions(global_batch=8)).price
    step = item.step_time_s.value
    assert item.mfu == pytest.approx(3 * 4e12 * 8 / (step * 2e14))
    assert item.energy_joule is not None
    assert 2 * 60 * step < item.energy_joule.value <= 2 * 400 * step
    assert item.cost_usd is not None
    assert item.cost_usd.value == pytest.approx(2 * 2.0 * step / 3600)
    assert item.step_time_s.source == "analytic"


def test_unknown_power_and_price_give_none_and_measured_is_said():
    profile = measured(chain_profile([1e9] * 3))
    item = plan_for(profile, local(2), "dp=2", SearchOptions(global_batch=2))
    assert item.price.energy_joule is None
    assert item.price.cost_usd is None
    assert item.price.mfu is None
    assert item.price.step_time_s.source == "measured"
    assert item.plan.threads == 1
    assert item.price.memory[0].framework_bytes == 3e8


def test_a_plan_for_another_graph_or_cluster_is_refused():
    profile = chain_profile([1e9] * 3)
    item = plan_for(profile, cluster_of(1, 2), "dp=2", SearchOptions(global_batch=2))
    with pytest.raises(InputError, match="the plan is for graph"):
        price(item.plan, replace(profile, fingerprint="other"), cluster_of(1, 2))
    with pytest.raises(InputError, match="device 1"):
        price(item.plan, profile, cluster_of(1, 1))


def test_mixed_devices_pace_a_stage_by_the_slowest():
    profile = chain_profile([1e12] * 4)
    fast, slow = cluster_of(1, 1), cluster_of(1, 1, device=gpu("slow", peak=2.5e13))
    mixed = Cluster(
        name="mixed",
        groups=(NodeGroup(machine=fast.groups[0].machine, nodes=1),
                NodeGroup(machine=slow.groups[0].machine, nodes=1)),
    )  # fmt: skip
    options = SearchOptions(global_batch=8)
    both = plan_for(profile, mixed, "dp=2", options).price
    alone = plan_for(profile, slow, "dp=1", SearchOptions(global_batch=4)).price
    assert both.stage_costs[0].forward_s == pytest.approx(alone.stage_costs[0].forward_s)
    pipe = plan_for(profile, mixed, "pp=2,m=8", options)
    sizes = [len(stage.blocks) for stage in pipe.plan.stages]
    assert sizes == [3, 1]


def test_half_precision_keeps_float32_gradients_and_master_weights():
    half = CostModel(chain_profile([1e9] * 3), cluster_of(1, 1), "float16")
    assert half.compute.activation_scale == 0.5
    assert (half.sizes.weight, half.sizes.gradient, half.sizes.state) == (2, 4, 12)
    full = CostModel(chain_profile([1e9] * 3), cluster_of(1, 1), "float32")
    assert (full.sizes.weight, full.sizes.gradient, full.sizes.state) == (4, 4, 8)


def test_sharing_divides_states_then_gradients_then_weights():
    sizes = ParameterBytes.of("bfloat16", 2.0)
    assert sizes.held(0, 8, offload=False) == (2, 4, 12)
    assert sizes.held(1, 4, offload=False) == (2, 4, 3)
    assert sizes.held(2, 4, offload=False) == (2, 1, 3)
    assert sizes.held(3, 4, offload=False) == (0.5, 1, 3)
    assert sizes.held(3, 4, offload=True) == (0.5, 1, 1), "the float32 master copy stays"
