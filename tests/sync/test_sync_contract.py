"""What every sync mode and compression keeps to, and their bytes by hand for small cases."""

from __future__ import annotations

import math

import pytest

from autopar.core.errors import InputError
from autopar.core.estimate import Estimate
from autopar.sync import (
    COMPRESSIONS,
    SYNC_MODES,
    Message,
    Sync,
    SyncContext,
    SyncGroup,
    canonical_sync,
    parse_sync,
)

P = 4_000_000.0
"""Gradient bytes: a million float32 elements."""
FOUR = SyncGroup(ranks=4, nodes=2)
ALL = [
    mode if compression == "none" else f"{mode}+{compression}"
    for mode in SYNC_MODES
    for compression in COMPRESSIONS
]


def work(text: str, size_bytes: float = P, group: SyncGroup = FOUR) -> tuple[float, float]:
    """Bytes sent and received per step."""
    done = parse_sync(text).work(size_bytes, group)
    return done.sent_bytes, done.received_bytes


@pytest.mark.parametrize("text", ALL)
def test_the_canonical_name_reads_back_as_the_same(text: str):
    sync = parse_sync(text)
    assert parse_sync(sync.name) == sync
    assert canonical_sync(sync.name) == sync.name
    assert canonical_sync(f" {text} ") == sync.name


@pytest.mark.parametrize("text", ALL)
def test_more_gradients_are_never_fewer_bytes(text: str):
    sizes = [4.0, 400.0, 4e4, 4.1e6, 4.2e6, 4e8, 4e10]
    sync = parse_sync(text)
    done = [sync.work(size, FOUR) for size in sizes]
    for values in (
        [w.sent_bytes for w in done],
        [w.received_bytes for w in done],
        [w.streamed_bytes for w in done],
        [sync.memory_bytes(size, FOUR) for size in sizes],
    ):
        assert values == sorted(values)
        assert all(math.isfinite(value) and value >= 0 for value in values)


@pytest.mark.parametrize("text", ALL)
def test_one_rank_or_no_gradients_need_nothing(text: str):
    sync = parse_sync(text)
    for size, group in ((P, SyncGroup(ranks=1)), (0.0, FOUR)):
        done = sync.work(size, group)
        assert done.sent_bytes == done.received_bytes == done.streamed_bytes == 0
        assert sync.memory_bytes(size, group) == 0
    assert sync.check(SyncGroup(ranks=1)) is not None
    assert sync.check(FOUR) is None


@pytest.mark.parametrize("text", ALL)
def test_messages_are_collectives_that_can_be_priced(text: str):
    messages = parse_sync(text).work(P, FOUR).messages
    assert messages
    for message in messages:
        assert message.kind in ("all_reduce", "reduce_scatter", "all_gather", "all_to_all")
        assert message.scope in ("all", "node")
        assert 0 < message.per_step <= 1
        if message.per_step < 1 and message.scope == "all" and "post" not in text:
            assert message.overlap == "none"


@pytest.mark.parametrize("text", ALL)
def test_steps_multiplier_is_one_for_exact_modes_and_a_cited_range_for_others(text: str):
    sync = parse_sync(text)
    found = sync.steps_multiplier(SyncContext(group=FOUR))
    if sync.exact:
        assert (found.low, found.value, found.high) == (1.0, 1.0, 1.0)
        assert not sync.literature
        return
    assert found.source == "assumed"
    assert found.low <= found.value <= found.high
    assert found.low < found.high
    assert sync.literature
    for item in sync.literature:
        assert "arXiv" in item.citation or "NIPS" in item.citation
        assert len(item.reading) > 40


def test_exact_are_the_all_reduce_and_the_server_that_waits():
    exact = [text for text in ALL if parse_sync(text).exact]
    assert exact == ["all_reduce", "ps_sync"]
    shardable = [text for text in ALL if parse_sync(text).shardable]
    assert shardable == ["all_reduce"]
    assert parse_sync("all_reduce+bf16").semantics == "lossy"
    assert parse_sync("ps_stale").semantics == "stale"
    assert parse_sync("diloco+int8").semantics == "periodic"


def test_a_measured_multiplier_has_precedence():
    measured = Estimate(value=1.07, low=1.02, high=1.12, source="measured")
    context = SyncContext(group=FOUR, measured={"local_sgd:8": measured})
    assert parse_sync("local_sgd").steps_multiplier(context) == measured
    assert parse_sync("local_sgd:4").steps_multiplier(context).source == "assumed"


def test_multipliers_of_mode_and_compression_multiply():
    context = SyncContext(group=FOUR)
    both = parse_sync("local_sgd+topk").steps_multiplier(context)
    mode = parse_sync("local_sgd").steps_multiplier(context)
    compression = parse_sync("all_reduce+topk").steps_multiplier(context)
    assert both.value == pytest.approx(mode.value * compression.value)
    assert both.high == pytest.approx(mode.high * compression.high)


# Bytes of one rank per step for P = 4 MB on n = 4 ranks, worked out by hand.
BY_HAND = {
    "all_reduce": (6e6, 6e6),  # 2 * 3/4 * P
    "ps_sync": (6e6, 6e6),  # push 3/4 P out, the shards of 3 others in; pull the other way
    "ps_sync:1": (12e6, 12e6),  # the server: 3 P each way, its own gradients stay
    "ps_stale": (6e6, 6e6),
    "ps_async:2": (2e6 + 6e6, 6e6 + 2e6),  # a server: 1/2 P to the other, 3/2 P to the ranks
    "local_sgd": (0.75e6, 0.75e6),  # 6e6 / 8
    "local_sgd:4": (1.5e6, 1.5e6),
    "post_local_sgd:8:0.25": (0.25 * 6e6 + 0.75 * 0.75e6, 0.25 * 6e6 + 0.75 * 0.75e6),
    "hierarchical": (4e6 + 0.75e6, 4e6 + 0.75e6),  # 2 * 1/2 * P in the node, then local SGD
    "diloco": (6e4, 6e4),  # 6e6 / 100
    "all_reduce+fp16": (3e6, 3e6),
    "all_reduce+bf16": (3e6, 3e6),
    # A million bytes and ceil(1e6 / 256) = 3907 scales of 4 bytes, 3/4 of it twice.
    "all_reduce+int8": (1.5 * 1_015_628, 1.5 * 1_015_628),
    # Less than one square of 1024^2: side 1000, two factors of rank 4 in float32, 1.5 of each.
    "all_reduce+powersgd": (1.5 * 2 * 4 * 4 * 1000, 1.5 * 2 * 4 * 4 * 1000),
    # 10000 pairs of 8 bytes to each of 3 others.
    "all_reduce+topk": (3 * 80_000, 3 * 80_000),
    "local_sgd:10+int8": (0.15 * 1_015_628, 0.15 * 1_015_628),
}


@pytest.mark.parametrize("text", BY_HAND)
def test_bytes_by_hand(text: str):
    assert work(text) == pytest.approx(BY_HAND[text], rel=1e-12)


@pytest.mark.parametrize("servers", [1, 2, 3, 4])
def test_ranks_together_send_as_much_with_any_number_of_servers(servers: int):
    """Ranks without a server send P and receive P; all ranks together 2 (n-1) P."""
    sent, received = work(f"ps_sync:{servers}")
    assert servers * sent + (4 - servers) * P == pytest.approx(2 * 3 * P)
    assert received == pytest.approx(sent)
    assert sent >= P


def test_powersgd_squares_and_the_rest():
    """2^20 elements are one square; 100 more add a square of side 10."""
    one = work("all_reduce+powersgd:2", 4.0 * 2**20)[0]
    more = work("all_reduce+powersgd:2", 4.0 * (2**20 + 100))[0]
    assert one == pytest.approx(1.5 * 2 * 4 * 2 * 1024)
    assert more - one == pytest.approx(1.5 * 2 * 4 * 2 * 10)


def test_compressions_send_less_than_the_gradients_themselves():
    plain = work("all_reduce")[0]
    for compression in COMPRESSIONS:
        if compression != "none":
            assert work(f"all_reduce+{compression}")[0] < plain


def test_memory_by_hand():
    held = {
        "all_reduce": 0.0,
        "ps_sync": 2 * P / 4,
        "ps_sync:1": 2 * P,
        "local_sgd": 0.0,
        "local_sgd+bf16": P,
        "diloco": 2 * P,
        "all_reduce+int8": 2 * 1_015_628,
        "all_reduce+powersgd": P + 2 * 4 * 4 * 1000,
        "all_reduce+topk": P + 4 * 80_000,
    }
    for text, size in held.items():
        assert parse_sync(text).memory_bytes(P, FOUR) == pytest.approx(size)


def test_traffic_falls_with_the_period_and_not_the_latest_step():
    sent = [work(f"local_sgd:{period}")[0] for period in (1, 2, 16)]
    assert sent == pytest.approx([6e6, 3e6, 6e6 / 16])
    inside = [m for m in parse_sync("hierarchical:16").work(P, FOUR).messages if m.scope == "node"]
    assert [m.per_step for m in inside] == [1.0]


def test_groups_that_cannot_synchronise_that_way_are_told_why():
    assert "two or more nodes" in (parse_sync("hierarchical").check(SyncGroup(ranks=4)) or "")
    assert "5 parameter servers" in (parse_sync("ps_sync:5").check(FOUR) or "")
    half = parse_sync("all_reduce+fp16")
    assert "wider" in (half.check(FOUR, element_bytes=2.0) or "")


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("all_redoce", "unknown sync mode", "all_reduce"),
        ("local_sdg:8", "unknown sync mode", "local_sgd"),
        ("all_reduce+powersdg", "unknown compression", "powersgd"),
        ("all_reduce+", "ends in '\\+'", "name a compression"),
        ("local_sgd:often", "whole number", "local_sgd:1"),
        ("local_sgd:0", "must be 1 or more", "local_sgd:1"),
        ("local_sgd:8:9", "takes 1", "local_sgd:PERIOD"),
        ("all_reduce+topk:2", "must be 1e-05 to 1", "topk"),
        ("", "unknown sync mode", "known"),
    ],
)
def test_what_does_not_parse_says_what_would(text: str, message: str, hint: str):
    with pytest.raises(InputError, match=message) as caught:
        parse_sync(text)
    assert hint in (caught.value.hint or "")


def test_options_left_out_have_their_usual_values():
    assert canonical_sync("local_sgd") == "local_sgd:8"
    assert canonical_sync("ps_stale") == "ps_stale:4"
    assert canonical_sync("ps_async:2") == "ps_async:2"
    assert canonical_sync("all_reduce+none") == "all_reduce"
    assert canonical_sync("all_reduce + topk : 0.010") == "all_reduce+topk:0.01"


def test_sync_is_a_value():
    assert parse_sync("diloco") == parse_sync("diloco:100")
    assert isinstance(parse_sync("diloco"), Sync)
    assert all(isinstance(m, Message) for m in parse_sync("diloco").work(P, FOUR).messages)
