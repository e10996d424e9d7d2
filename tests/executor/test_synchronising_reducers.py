"""What compressions do to a mean over real ranks: rounding bounds, fed-back errors, equal bits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from executor_ranks import on_ranks

from autopar.executor.measuring.traffic import Traffic
from autopar.executor.mesh_groups import Group
from autopar.executor.synchronising.averaging import REDUCERS
from autopar.executor.synchronising.reducers.base import Layout, Reducer
from autopar.executor.synchronising.reducers.int8 import decode, encode
from autopar.sync import COMPRESSIONS, Payload, parse_sync

ELEMENTS = 3000
LAYOUT = Layout(names=("a", "b"), sizes=(1000, 2000))


def reducer(compression: str, ranks: int) -> Reducer:
    declared = parse_sync(f"all_reduce+{compression}").compression
    group = Group(tuple(range(ranks)), dist.group.WORLD)
    return REDUCERS.load(declared.name)(declared, group, Traffic(), 0)


def terms(rank: int, step: int = 0, count: int = ELEMENTS) -> torch.Tensor:
    """Normal numbers, some blocks of them tiny, with spikes, the ranks partly opposed."""
    generator = torch.Generator().manual_seed(100 * step + rank)
    values = torch.randn(count, generator=generator) + (-1.0) ** rank
    values[: count // 4] *= 1e-3
    values[:: count // 7] *= 50.0
    return values


def test_every_registered_compression_has_a_reducer() -> None:
    assert list(REDUCERS) == list(COMPRESSIONS)


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("name", ["none", "fp16", "bf16", "int8"])
def test_rounding_stays_within_the_declared_bound(name: str, ranks: int) -> None:
    def body(rank: int) -> Any:
        made = reducer(name, ranks)
        return made.launch(terms(rank), LAYOUT).wait(), made.traffic.sent_bytes

    results = on_ranks(ranks, body)
    inputs = torch.stack([terms(r).double() for r in range(ranks)])
    rms = float(inputs.square().sum(1).mean().sqrt())
    compression = parse_sync(f"all_reduce+{name}").compression
    bound = compression.error_bound(ranks)
    assert bound is not None
    error = float((results[0][0].double() - inputs.mean(0)).norm())
    assert error <= (bound + 1e-6) * rms
    if name != "none":
        assert error > 1e-6 * rms
    for mean, _ in results:
        assert torch.equal(mean, results[0][0])
    declared = sum(
        m.sent_bytes for m in compression.sum_messages(Payload(size_bytes=4.0 * ELEMENTS), ranks)
    )
    assert results[0][1] == pytest.approx(declared, rel=0.02)


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("name", ["topk:0.02", "topk:1", "powersgd:1", "powersgd:4"])
def test_what_is_not_sent_is_fed_back(name: str, ranks: int) -> None:
    """Means sent so far plus the mean error are the true means so far, to rounding."""

    def body(rank: int) -> Any:
        made = reducer(name, ranks)
        sent = torch.zeros(ELEMENTS, dtype=torch.float64)
        for step in range(3):
            sent += made.launch(terms(rank, step), LAYOUT).wait().double()
        errors = made.feedback.errors
        return sent, torch.cat([errors["a"], errors["b"]])

    results = on_ranks(ranks, body)
    true = sum(terms(r, s).double() for r in range(ranks) for s in range(3)) / ranks
    kept = torch.stack([error.double() for _, error in results]).mean(0)
    assert isinstance(true, torch.Tensor)
    assert float((results[0][0] + kept - true).norm() / true.norm()) < 1e-5
    for sent, _ in results:
        assert torch.equal(sent, results[0][0])
    if name != "topk:1":
        assert float(kept.norm()) > 0.1 * float(true.norm())


def test_topk_sends_the_largest() -> None:
    def body(rank: int) -> Any:
        values = torch.zeros(100)
        values[rank], values[50] = 5.0, 1.0
        return reducer("topk:0.01", 2).launch(values, Layout(names=("a",), sizes=(100,))).wait()

    for mean in on_ranks(2, body):
        assert mean[:3].tolist() == [2.5, 2.5, 0.0]
        assert float(mean[50]) == 0.0


def test_powersgd_of_one_low_rank_matrix_is_exact_after_a_few_means() -> None:
    """Two whole squares and a rest, more than a million elements each way."""
    side, count = 1024, 2 * 1024 * 1024 + 500
    layout = Layout(names=("a",), sizes=(count,))

    def body(rank: int) -> Any:
        del rank
        generator = torch.Generator().manual_seed(1)
        squares = [
            torch.outer(
                torch.randn(side, generator=generator), torch.randn(side, generator=generator)
            ).view(-1)
            for _ in range(2)
        ]
        rest = torch.outer(torch.arange(23.0) + 1, torch.ones(23)).view(-1)[:500]
        rest[483:] = 21.0 + 1.0  # the last row ends early; the padding is zeros
        values = torch.cat([*squares, rest])
        made = reducer("powersgd:2", 2)
        for _ in range(3):
            mean = made.launch(values.clone(), layout).wait()
        error = float((mean - values).norm() / values.norm())
        return error, made.traffic.sent_bytes / 3, made.feedback.errors["a"].norm()

    for error, sent, kept in on_ranks(2, body):
        assert error < 1e-4
        assert kept < 1.0
        payload = Payload(size_bytes=4.0 * count)
        messages = parse_sync("all_reduce+powersgd:2").compression.sum_messages(payload, 2)
        assert sent == pytest.approx(sum(m.sent_bytes for m in messages), rel=0.02)


def test_powersgd_sends_what_factors_would_not_shrink() -> None:
    def body(rank: int) -> Any:
        made = reducer("powersgd:8", 2)
        values = torch.arange(60.0) + rank
        return made.launch(values, Layout(names=("a",), sizes=(60,))).wait(), made.feedback.errors

    for mean, errors in on_ranks(2, body):
        assert torch.equal(mean, torch.arange(60.0) + 0.5)
        assert not errors


def test_errors_follow_their_tensors_into_other_buckets() -> None:
    """DDP puts buckets together anew after its first step."""

    def body(rank: int) -> Any:
        made = reducer("topk:0.1", 2)
        made.launch(torch.arange(30.0), Layout(names=("a", "b"), sizes=(10, 20))).wait()
        made.launch(torch.zeros(20), Layout(names=("b",), sizes=(20,))).wait()
        mean = made.launch(torch.zeros(10), Layout(names=("a",), sizes=(10,))).wait()
        return rank, mean, made.state()

    for _, mean, state in on_ranks(2, body):
        assert mean.tolist() == [0.0] * 9 + [9.0]
        assert sorted(state) == ["error.a", "error.b"]
        # 27 to 29 went first, then the two largest of what was left of b
        assert state["error.b"].tolist() == [float(x) for x in range(10, 25)] + [0.0] * 5


@pytest.mark.parametrize("count", [1, 255, 256, 257, 1000])
def test_int8_blocks(count: int) -> None:
    rows = torch.randn(2, count, generator=torch.Generator().manual_seed(count))
    rows[0, 0] = 0.0
    encoded = encode(rows)
    assert encoded.dtype == torch.uint8
    assert encoded.shape == (2, count + 4 * -(-count // 256))
    back = decode(encoded, count)
    for start in range(0, count, 256):
        block = rows[:, start : start + 256]
        worst = (back[:, start : start + 256] - block).abs().amax(1)
        assert bool((worst <= block.abs().amax(1) / 254 * 1.0001).all())
    assert torch.equal(decode(encode(torch.zeros(1, count)), count), torch.zeros(1, count))
