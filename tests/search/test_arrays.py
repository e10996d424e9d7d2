"""What is looked up for many groups, sizes or blocks at once equals one lookup after another."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from autopar.calibration.peak import communicator_count
from autopar.cost import CostModel
from autopar.cost.bounds.step import Bounds
from autopar.search import SearchOptions, search
from autopar.search.bounds.quick import QuickBounds
from autopar.search.bounds.row import fullest_rank
from autopar.search.space.build import PointGroup, build_space
from autopar.search.space.columns import Columns, alike
from autopar.search.stages.goals import goal_for
from autopar.search.stages.mixed import Known
from autopar.search.stages.partition import PartitionSearch

from .test_sharpen import CASES, case


def test_values_are_numbered_in_the_order_they_first_occur():
    firsts, number = alike(np.array([7, 3, 7, 9, 3]))
    assert firsts == [0, 1, 3]
    assert number.tolist() == [0, 1, 0, 2, 1]


@pytest.mark.parametrize("last", [1, 1 << 62, -1, 0.5])
@pytest.mark.parametrize("times", [1, 200])
def test_combined_columns_are_equal_where_all_of_them_are(times: int, last: float):
    few = [np.array([1, 1, 2, 2, 1]), np.array([5, 6, 5, 5, 5]), np.array([0, 0, 0, last, 0])]
    columns = [np.tile(column, times) for column in few]
    firsts, found = alike(*columns)
    rows = list(zip(*(c.tolist() for c in columns), strict=True))
    assert [rows[i] for i in firsts] == list(dict.fromkeys(rows))
    for a, b in itertools.combinations(range(5), 2):
        assert (found[a] == found[b]) == (rows[a] == rows[b])


def groups_of(name: str, **options: object) -> tuple[tuple[PointGroup, ...], QuickBounds]:
    profile, cluster, asked = case(name)
    asked = SearchOptions(global_batch=asked.global_batch, **options).resolved(cluster)  # type: ignore[arg-type]
    model = CostModel(profile, cluster, asked.precision)
    space = build_space(profile, cluster, asked)
    return space.groups, QuickBounds(model, asked)


@pytest.mark.parametrize("name", CASES)
def test_columns_hold_the_fields_of_the_groups(name: str):
    groups, _ = groups_of(name)
    columns = Columns.of(groups)
    assert columns.world.tolist() == [g.world for g in groups]
    assert columns.cp.tolist() == [g.cp for g in groups]
    assert [columns.splits[i] for i in columns.split] == [g.split for g in groups]
    assert [columns.sets[i] for i in columns.set] == [g.variants for g in groups]


def least_held(group: PointGroup, quick: QuickBounds) -> float:
    """Average bytes of weights, gradients and states, of the variant with the least."""
    model, variants = quick.model, group.variants.variants
    zero = max(v.zero for v in variants)
    shards = group.dp_shard * group.cp if zero else 1
    each = min(sum(model.sizes.held(zero, shards, v.offload == "on")) for v in variants)
    inputs = model.profile.input_bytes * group.microbatch_size * group.microbatches
    served = quick.rows.elements(group.split) * each / group.pp + inputs
    context, communicator = quick.rows.world(group.world).process_bytes
    degrees = (group.dp_replicate * group.dp_shard, group.tp, group.pp, group.cp, group.ep)
    framework = context + communicator * communicator_count(degrees, group.world)
    return (model.memory.allocator_margin * served + framework) * model.memory.high_factor


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("memory", [None, 60e6])
def test_groups_are_bounded_together_as_alone(name: str, memory: float | None):
    groups, quick = groups_of(name, max_memory_bytes=memory)
    bounds, reasons = quick.groups(Columns.of(groups))
    for group, bound, reason in zip(groups, bounds.tolist(), reasons, strict=True):
        world = quick.rows.world(group.world)
        held = least_held(group, quick)
        rows, _ = quick.rows.by_rank(group)
        kept = min(sum(level.tolist()) for level in rows[0].kept)
        assert (reason == "memory") == (held + kept / group.pp > world.memory_limit)
        if reason is None and len(rows) == 1:
            fullest = float(fullest_rank(rows[0].work, group.pp))
            assert bound == pytest.approx(group.microbatches * fullest, rel=1e-11)


def test_no_groups_have_no_bounds():
    _, quick = groups_of("launches")
    bounds, reasons = quick.groups(Columns.of(()))
    assert bounds.size == 0 and reasons == []


@pytest.mark.parametrize("name", ["tied", "mixed, uneven"])
def test_a_specification_that_meets_nothing_leaves_the_space_as_it_is(name: str):
    profile, cluster, options = case(name)
    plain = build_space(profile, cluster, options)
    forbidden = SearchOptions(global_batch=8, forbid=("microbatches=7",)).resolved(cluster)
    same = build_space(profile, cluster, forbidden)
    assert (plain.size, plain.rejected) == (same.size, same.rejected)
    for one, other in zip(plain.groups, same.groups, strict=True):
        assert (one.split, one.world, one.pp) == (other.split, other.world, other.pp)
        assert (one.variants.valid == other.variants.valid).all()


@pytest.mark.parametrize("name", ["uneven", "mixed, uneven"])
def test_ranks_synchronise_together_as_alone(name: str):
    groups, quick = groups_of(name)
    sizes = np.array([0.0, 1.0, 1e5, 6553600.0, 6553601.0, 3e8])
    for group, zero in itertools.product(groups[:: len(groups) // 12], (0, 1, 2, 3)):
        some = [v for v in group.variants.variants if v.zero == zero and v.chunks == 1]
        if not some:
            continue
        layout = goal_for(group.point(some[0]), quick.model, quick.options).layout
        for sync in layout.syncs:
            for dense, experts in ((sizes, 0 * sizes), (0 * sizes, sizes), (sizes, sizes[::-1])):
                pairs = zip(dense.tolist(), experts.tolist(), strict=True)
                assert sync.many(dense, experts).tolist() == [sync.seconds(*p) for p in pairs]


def test_points_with_equal_blocks_share_their_runs():
    groups, quick = groups_of("mixed, uneven")
    known = Known()
    tried = 0
    for group in groups:
        for variant in group.variants.variants:
            if variant.recompute != "mixed" or group.pp < 2 or tried == 60:
                continue
            tried += 1
            point = group.point(variant)
            shared = goal_for(point, quick.model, quick.options, known)
            alone = goal_for(point, quick.model, quick.options)
            assert isinstance(shared.bounds, Bounds)
            for stage in range(point.stages):
                assert (shared.stage_table(stage) == alone.stage_table(stage)).all()
    assert 0 < len(known.bytes) <= len(known.runs) < tried


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("objective", ["time", "memory"])
def test_bounds_of_some_variants_are_those_of_all(name: str, objective: str):
    groups, quick = groups_of(name, objective=objective)
    for _, batch in quick.by_depth(groups):
        every = batch.bounds(batch.possible)
        some = batch.possible & (np.arange(len(batch.possible)) % 3 == 0)
        assert some.any()
        found = batch.bounds(some)
        assert np.array_equal(found[:, some], every[:, some])
        assert np.isinf(found[:, ~some]).all()


@pytest.mark.parametrize("name", CASES)
def test_what_waits_is_tried_where_what_includes_it_does_not_fit(
    name: str, monkeypatch: pytest.MonkeyPatch
):
    profile, cluster, options = case(name)
    bound = PartitionSearch.lower_bound
    monkeypatch.setattr(
        PartitionSearch,
        "lower_bound",
        lambda self: math.inf if self.goal.open_levels else bound(self),
    )
    found = search(profile, cluster, options).best
    wanted = search(profile, cluster, replace(options, forbid=("recompute=mixed",))).best
    assert found.price.step_time_s.value == pytest.approx(wanted.price.step_time_s.value)
