"""What holds for every zoo model and every way to divide it."""

from __future__ import annotations

import pytest

from autopar.graph import Amount, Block
from autopar.strategies import STRATEGIES, WHOLE, BlockWork, Products, Split, Strategies
from autopar.tasks import small_target
from autopar.tasks.zoo import ZOO

PRIME = 7919
"""More ranks than any small model has of anything."""
SPLITS = {
    "tp": Split(tp=2),
    "tp-sp": Split(tp=2, sequence_parallel=True),
    "cp": Split(cp=2),
    "ep": Split(ep=2),
    "all": Split(tp=2, sequence_parallel=True, cp=2, ep=2),
}


@pytest.fixture(params=list(ZOO))
def strategies(request: pytest.FixtureRequest, profiles) -> Strategies:
    return Strategies(profiles(small_target(request.param)))


def product_flop(work: BlockWork, samples: int) -> float:
    """FLOPs of the products and attention calls of a block."""
    products = sum(2 * m.m.at(samples) * m.n * m.k * m.batch.at(samples) for m in work.matmuls)
    return products + sum(call.flop.at(samples) for call in work.attention)


def bytes_of_ops(strategies: Strategies, block: Block) -> list[float]:
    """Bytes that a block's products move, forward and backward."""
    ops = [
        op
        for op in strategies.profile.ops[block.first_op : block.stop_op]
        if op.forward_flop != Amount()
    ]
    return [
        sum(op.forward_bytes.per_sample for op in ops),
        sum(op.backward_bytes.per_sample for op in ops),
    ]


@pytest.mark.parametrize("samples", [1, 3, 8])
def test_products_of_an_undivided_block_do_its_flops(strategies, samples):
    for block, work in zip(strategies.profile.blocks, strategies.works(WHOLE), strict=True):
        assert product_flop(work, samples) == pytest.approx(block.forward_flop.at(samples))


def test_every_product_has_whole_sizes(strategies):
    for op in strategies.profile.ops:
        matmul = strategies.products.matmul(op)
        if matmul is not None and strategies.products.shapes.get(op.index):
            assert matmul.k == pytest.approx(round(matmul.k))
            assert matmul.k >= 1


def test_an_undivided_block_keeps_its_own_figures(strategies):
    for block, work in zip(strategies.profile.blocks, strategies.works(WHOLE), strict=True):
        assert work.parameter_bytes + work.expert_parameter_bytes == block.parameter_bytes
        assert work.saved_bytes == block.saved_bytes
        assert work.boundary_bytes == block.boundary_bytes
        assert work.peak_transient_bytes == block.peak_transient_bytes
        assert work.kernels == block.kernels
        assert work.collectives == ()
        forward, backward = bytes_of_ops(strategies, block)
        assert work.forward_bytes.per_sample + forward == pytest.approx(
            block.forward_bytes.per_sample
        )
        assert work.backward_bytes.per_sample + backward == pytest.approx(
            block.backward_bytes.per_sample
        )


def test_selective_recompute_keeps_no_more_than_no_recompute(strategies):
    for split in (WHOLE, *SPLITS.values()):
        for work in strategies.works(split):
            assert work.selective_saved_bytes.at(8) <= work.saved_bytes.at(8) * (1 + 1e-9)


@pytest.mark.parametrize("split", SPLITS.values(), ids=SPLITS)
def test_flops_of_a_rank_are_its_share_and_ranks_do_all(strategies, split):
    ranks = split.tp * split.cp
    for block, work in zip(strategies.profile.blocks, strategies.works(split), strict=True):
        own = work.forward_flop_share * block.forward_flop.at(8)
        assert product_flop(work, 8) == pytest.approx(own)
        assert 1 / ranks <= work.forward_flop_share * (1 + 1e-9)
        assert work.forward_flop_share <= 1


@pytest.mark.parametrize("split", SPLITS.values(), ids=SPLITS)
def test_parameters_of_a_block_are_those_of_its_names(strategies, split):
    profile = strategies.profile
    for block, work in zip(profile.blocks, strategies.works(split), strict=True):
        wanted = 0.0
        for name in block.parameters:
            count, size = profile.parameters[name]
            wanted += strategies.elements(split, name) * size / count
        assert work.parameter_bytes + work.expert_parameter_bytes == pytest.approx(wanted)


@pytest.mark.parametrize("split", SPLITS.values(), ids=SPLITS)
def test_a_rank_holds_no_more_than_the_whole(strategies, split):
    for work, whole in zip(strategies.works(split), strategies.works(WHOLE), strict=True):
        assert work.saved_bytes.at(8) <= whole.saved_bytes.at(8) * (1 + 1e-9)
        assert work.forward_bytes.at(8) <= whole.forward_bytes.at(8) * (1 + 1e-9)
        assert work.boundary_bytes.at(8) <= whole.boundary_bytes.at(8) * (1 + 1e-9)


def test_collectives_run_on_divided_axes_only(strategies):
    for split in SPLITS.values():
        active = {axis for axis in STRATEGIES if getattr(split, axis) > 1}
        for work in strategies.works(split):
            assert {item.axis for item in work.collectives} <= active


def test_repeated_blocks_share_their_work_and_it_is_theirs(strategies):
    """Works are made once per kind; each must equal what the block would get alone."""
    works = strategies.works(Split(tp=2))
    assert len({id(work) for work in works}) == len(set(strategies.kinds))
    for block, work in zip(strategies.profile.blocks, works, strict=True):
        ops = range(block.first_op, block.stop_op)
        own = [
            (item.kind, item.phase, item.size_bytes)
            for op in ops
            for item in strategies.collectives["tp", False].get(op, ())
        ]
        assert [(i.kind, i.phase, i.size_bytes) for i in work.collectives] == own


@pytest.mark.parametrize("axis", list(STRATEGIES))
def test_every_strategy_allows_one_rank_and_says_why_not_many(strategies, axis):
    strategy = STRATEGIES.load(axis)(Products(strategies.profile))
    assert strategy.why_not(1) is None
    reason = strategy.why_not(PRIME)
    assert reason
    assert strategies.why_not(Split(**{axis: PRIME})) == reason
