"""What a host adds: sharded units, the user's own module, collectives of several groups."""

from __future__ import annotations

from dataclasses import replace

import pytest
from search.builders import chain_profile

from autopar.api.shard_overhead import Passes, overhead_of
from autopar.cluster import HostOverhead
from autopar.cluster.cluster import Cluster
from autopar.cluster.overhead import ShardCost, ShardOverhead
from autopar.cost.computation.compute import ComputeModel
from autopar.cost.work import StageWork
from autopar.graph import BlockCurve
from autopar.search import SearchOptions, plan_for
from autopar.strategies import WHOLE, Strategies
from cost.test_parts import local, measured

SHARDS = ShardOverhead(
    visit=ShardCost(unit_s=0.1),
    gather=ShardCost(unit_s=1.0),
    scatter=ShardCost(unit_s=10.0),
    step_s_per_weight=100.0,
)
OPTIONS = SearchOptions(global_batch=8)


def with_shards(cluster: Cluster) -> Cluster:
    overhead = HostOverhead(forward_action_s=0.0, backward_action_s=0.0, step_s=0.0, shards=SHARDS)
    return replace(cluster, overhead=overhead)


def step_s(profile, cluster, spec: str) -> float:
    return plan_for(profile, cluster, spec, OPTIONS).price.step_time_s.value


@pytest.mark.parametrize(
    ("zero", "gathers", "scatters"), [(1, 1, 1), (2, 1, 2), (3, 2 * 2, 2)], ids=str
)
def test_units_pay_for_visits_gathers_and_scatters(zero, gathers, scatters):
    """Two microbatches: each block is visited four times, gathered and shared out as ZeRO says."""
    profile = measured(chain_profile([1e9] * 3))
    units = sum(bool(b.parameters) for b in profile.blocks)
    weights = sum(len(b.parameters) for b in profile.blocks)
    spec = f"dp_shard=2,zero={zero},microbatches=2"
    extra = step_s(profile, with_shards(local(2)), spec) - step_s(profile, local(2), spec)
    fixed = units * (4 * 0.1 + gathers * 1.0 + scatters * 10.0) + weights * 100.0
    assert extra == pytest.approx(fixed, rel=0.02)


def test_weights_fetched_before_a_backward_cost_what_was_found_for_it():
    profile, cluster = measured(chain_profile([1e9] * 3)), with_shards(local(2))
    cheap = replace(SHARDS, regather=ShardCost(unit_s=0.25))
    other = replace(cluster, overhead=replace(cluster.overhead, shards=cheap))
    units = sum(bool(b.parameters) for b in profile.blocks)
    for zero, fetched in ((2, 0), (3, 2)):  # once in each of two microbatches
        spec = f"dp_shard=2,zero={zero},microbatches=2"
        saved = step_s(profile, cluster, spec) - step_s(profile, other, spec)
        assert saved == pytest.approx(units * fetched * 0.75, rel=1e-6)


def test_plans_that_do_not_shard_pay_nothing_for_units():
    profile = measured(chain_profile([1e9] * 3))
    for spec in ("dp_replicate=2,microbatches=2", "pp=2,microbatches=2,schedule=1f1b"):
        plain = step_s(profile, local(2), spec)
        assert step_s(profile, with_shards(local(2)), spec) == pytest.approx(plain)


def test_costs_per_unit_and_weight_are_read_off_two_numbers_of_units():
    """Made of known costs, with 10 weights and ops that take 1 s: the costs come out again."""

    def passes(units: int, *, gathers: bool) -> Passes:
        fetch = units * 0.3 + 10 * 0.05 if gathers else 0.0
        visit = units * 0.2 + 10 * 0.01
        return Passes(
            units=units,
            forward_s=1.0 + visit + fetch,
            backward_s=2.0 + visit + fetch + units * 0.7,
            step_s=0.5,
        )

    kept = [passes(n, gathers=False) for n in (3, 12)]
    found = overhead_of(kept, [passes(n, gathers=True) for n in (3, 12)], 10, 1.0)
    assert found.visit.unit_s == pytest.approx(0.2)
    assert found.visit.weight_s == pytest.approx(0.01)
    assert found.gather.unit_s == pytest.approx(0.3)
    assert found.gather.weight_s == pytest.approx(0.05)
    assert found.scatter.unit_s == pytest.approx(0.7)
    assert found.regather is not None
    assert found.regather.unit_s == pytest.approx(0.3)
    assert found.scatter.weight_s == pytest.approx(0.0, abs=1e-9)
    assert (found.step_s_per_weight, found.step_s_per_state) == (0.5, 0.0)


def test_optimizer_steps_on_shards_cost_by_states():
    def passes(step_s: float) -> list[Passes]:
        return [Passes(units=n, forward_s=1.0, backward_s=2.0, step_s=step_s) for n in (3, 12)]

    found = overhead_of(passes(0.3), passes(0.5), 10, 1.0)
    assert found.step_s_per_weight == pytest.approx(0.3)
    assert found.step_s_per_state == pytest.approx(0.2)
    assert found.step_s(4, states=2) == pytest.approx(4 * 0.5)
    assert found.step_s(4, states=1) == found.step_s(4, states=0) == pytest.approx(4 * 0.3)


def test_noise_never_makes_a_negative_cost():
    kept = [
        Passes(units=n, forward_s=s, backward_s=s, step_s=0.1) for n, s in ((3, 2.0), (12, 1.0))
    ]
    found = overhead_of(kept, kept, 10, 0.0)
    for cost in (found.visit, found.gather, found.scatter, found.regather):
        assert cost is not None
        assert cost.unit_s >= 0 and cost.weight_s >= 0


def test_overhead_survives_the_cluster_file(tmp_path):
    cluster = with_shards(local(2))
    cluster.save(tmp_path / "c.json")
    assert Cluster.load(tmp_path / "c.json").overhead == cluster.overhead


def test_data_parallel_plans_run_the_users_module_and_pay_for_it():
    plain = measured(chain_profile([1e9] * 3))
    assert plain.measurement is not None
    slow = replace(plain, measurement=replace(plain.measurement, eager=((1.0, 3.0, 2.0),)))
    for spec, factors in (
        ("dp_replicate=2,microbatches=1", (3.0, 2.0)),
        ("dp_replicate=2,microbatches=1,recompute=full", (1.0, 1.0)),
        ("pp=2,microbatches=2,schedule=1f1b", (1.0, 1.0)),
    ):
        first, own = (
            plan_for(profile, local(2), spec, OPTIONS).price.stage_costs[0]
            for profile in (plain, slow)
        )
        assert own.forward_s == pytest.approx(first.forward_s * factors[0])
        assert own.backward_s == pytest.approx(first.backward_s * factors[1])


def test_what_an_op_costs_whatever_its_size_is_not_divided():
    """A block of 1 s + 1 s per sample: half the FLOPs of 4 samples take 3 s, not 2.5 s."""
    curve = BlockCurve(points=((1.0, 2.0, 2.0), (8.0, 9.0, 9.0)))
    assert curve.at(4 * 0.5)[0] == pytest.approx(3.0)
    profile = chain_profile([1e9] * 2)
    curves = {b.signature: curve for b in profile.blocks}
    profile = measured(profile, curves=curves, composition=())
    model = ComputeModel(profile, local(2), "float32")
    work = StageWork(strategies=Strategies(profile), split=WHOLE)
    parts = tuple(replace(w, forward_flop_share=0.5) for w in work.works)
    work.__dict__["works"] = parts  # a cached property
    forward = model.phases(work, 4, model.cluster.device(0), 2).forward_device
    assert forward[0] == pytest.approx(3.0)
