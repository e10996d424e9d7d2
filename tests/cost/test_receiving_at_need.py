"""On a crowded host a rank takes in a message when it needs it: no computation hides that."""

from __future__ import annotations

from dataclasses import replace

import pytest
from search.builders import chain_profile, cluster_of

from autopar.cluster import HostOverhead
from autopar.cluster.overhead import ShardCost, SplitOverhead
from autopar.cost.simulation.replay import simulate_plan
from autopar.results import PlanPrice, RankedPlan
from autopar.search import SearchOptions, plan_for

MICROBATCHES = 4
RECEIVE_S = 0.25


def priced(schedule: str, *, receive_s: float | None, split: SplitOverhead | None = None):
    overhead = HostOverhead(
        forward_action_s=1.0,
        backward_action_s=2.0,
        step_s=0.0,
        receive_s=receive_s,
        split=split or SplitOverhead(),
    )
    cluster = replace(cluster_of(1, 2), overhead=overhead)
    spec = f"pp=2,schedule={schedule},microbatches={MICROBATCHES}"
    return plan_for(chain_profile([1e6] * 4), cluster, spec, SearchOptions(global_batch=4))


def step_s(item: RankedPlan) -> float:
    return item.price.step_time_s.value


def test_every_message_adds_to_its_readers_action():
    """GPipe, 2 ranks: 4 forwards of 1.25 s on rank 1 after one of 1 s; backward the other way."""
    early, late = (step_s(priced("gpipe", receive_s=r)) for r in (None, RECEIVE_S))
    assert early == pytest.approx(5 * 1.0 + 5 * 2.0, rel=1e-3)
    assert late == pytest.approx(1.0 + 4 * 1.25 + 2.0 + 4 * 2.25 - 3 * 0.25 + 3 * 0.25, rel=1e-3)


def test_breakdown_and_timeline_call_it_communication():
    item = priced("gpipe", receive_s=RECEIVE_S)
    breakdown = item.price.breakdown
    assert breakdown.pipeline_communication_s >= MICROBATCHES * RECEIVE_S
    assert breakdown.total_s == pytest.approx(step_s(item), rel=1e-6)
    events = simulate_plan(item.plan, item.price).events
    waits = [e for e in events if e.kind == "wait" and e.stage >= 0]
    received = [e for e in waits if e.end_s - e.start_s == pytest.approx(RECEIVE_S, rel=1e-2)]
    assert len(received) >= MICROBATCHES
    assert max(e.end_s for e in events) == pytest.approx(step_s(item), rel=1e-3)


def test_price_survives_a_file():
    item = priced("1f1b", receive_s=RECEIVE_S)
    again = PlanPrice.from_dict(item.price.to_dict())
    assert again == item.price
    assert again.transfers[0].at_need
    assert simulate_plan(item.plan, again) == simulate_plan(item.plan, item.price)


def test_halves_cost_by_the_weights_of_their_stage():
    """Each stage has 2 weights: .1 + 2 x .2 s in the first half, 1 + 2 x .5 s in the second."""
    split = SplitOverhead(
        first=ShardCost(unit_s=0.1, weight_s=0.2), second=ShardCost(unit_s=1.0, weight_s=0.5)
    )
    plain = priced("zero_bubble", receive_s=None).price.stage_costs
    dear = priced("zero_bubble", receive_s=None, split=split).price.stage_costs
    for a, b in zip(plain, dear, strict=True):
        assert b.backward_s - a.backward_s == pytest.approx(2.5)
    assert dear[1].weight_s - plain[1].weight_s == pytest.approx(2.0)
    whole = priced("1f1b", receive_s=None, split=split).price.stage_costs
    assert whole[1].backward_s == pytest.approx(plain[1].backward_s)


def test_first_stage_has_no_input_half():
    """It sends no gradient on, so the executor leaves all of its backward to the second half."""
    first, last = priced("zero_bubble", receive_s=None).price.stage_costs
    assert first.weight_s == first.backward_s
    assert last.weight_s < last.backward_s
