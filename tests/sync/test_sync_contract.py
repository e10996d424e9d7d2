"""The contract of every registered sync mode and compression, and their bytes by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from autopar.core.errors import InputError
from autopar.core.estimate import Estimate
from autopar.plans import Mesh
from autopar.sync import (
    COMPRESSIONS,
    SYNC_MODES,
    Sync,
    SyncContext,
    SyncGroup,
    canonical_sync,
    parse_sync,
    traffic,
)

PAIRS = [f"{mode}+{compression}" for mode in SYNC_MODES for compression in COMPRESSIONS]
GROUP = SyncGroup(ranks=8, nodes=2)
MB = 1e6


def sync_of(text: str) -> Sync:
    sync = parse_sync(text)
    assert sync.check(GROUP) is None
    return sync


@pytest.mark.parametrize("text", PAIRS)
def test_canonical_names_are_read_back(text: str):
    sync = parse_sync(text)
    assert parse_sync(sync.name) == sync
    assert canonical_sync(sync.name) == sync.name
    assert "+none" not in sync.name


@pytest.mark.parametrize("text", PAIRS)
def test_more_gradients_are_never_cheaper(text: str):
    sync = sync_of(text)
    sizes = [4.0, 1e3, 1e5, 4 * MB, 5 * MB, 100 * MB, 1e9]
    work = [sync.work(size, GROUP) for size in sizes]
    for values in (
        [w.sent_bytes for w in work],
        [w.received_bytes for w in work],
        [w.streamed_bytes for w in work],
        [sync.memory_bytes(size, GROUP) for size in sizes],
    ):
        assert values == sorted(values)
        assert all(math.isfinite(value) and value >= 0 for value in values)
    assert work[-1].sent_bytes > 0


@pytest.mark.parametrize("text", PAIRS)
def test_one_rank_has_nothing_to_do(text: str):
    sync, alone = parse_sync(text), SyncGroup(ranks=1)
    assert sync.work(MB, alone).messages == ()
    assert sync.memory_bytes(MB, alone) == 0
    assert "two or more" in str(sync.check(alone))


@pytest.mark.parametrize("text", PAIRS)
def test_only_exact_modes_have_a_sure_multiplier_and_others_cite(text: str):
    sync = parse_sync(text)
    multiplier = sync.steps_multiplier(SyncContext(group=GROUP))
    if sync.exact:
        assert (multiplier.low, multiplier.value, multiplier.high) == (1, 1, 1)
        assert not sync.literature
    else:
        assert multiplier.source == "assumed"
        assert multiplier.low <= 1.0 <= multiplier.value <= multiplier.high
        assert multiplier.high >= 1.1 * multiplier.low
        assert all("arXiv" in item.citation and item.reading for item in sync.literature)


def test_semantics():
    assert [name for name in SYNC_MODES if parse_sync(name).exact] == ["all_reduce", "ps_sync"]
    assert parse_sync("all_reduce+fp16").semantics == "lossy"
    assert parse_sync("local_sgd+fp16").semantics == "periodic"
    assert parse_sync("ps_async").semantics == "stale"
    assert parse_sync("all_reduce").shardable
    assert not parse_sync("all_reduce+fp16").shardable


def test_a_measured_multiplier_has_precedence():
    seen = Estimate(value=1.7, low=1.5, high=1.9, source="measured")
    context = SyncContext(group=GROUP, measured={"local_sgd:8": seen})
    assert parse_sync("local_sgd").steps_multiplier(context) == seen
    assert parse_sync("local_sgd:9").steps_multiplier(context).source == "assumed"


def test_the_multiplier_is_that_of_the_mode_times_that_of_the_compression():
    context = SyncContext(group=GROUP)
    mode, both = (parse_sync(s).steps_multiplier(context) for s in ("ps_async", "ps_async+int8"))
    alone = parse_sync("all_reduce+int8").steps_multiplier(context)
    assert both.value == pytest.approx(mode.value * alone.value)
    assert both.high == pytest.approx(mode.high * alone.high)


FRAMES = traffic.PUSH_FRAME_BYTES + traffic.PULL_FRAME_BYTES
"""What a push and a pull add to their tensors, per server beside another rank."""


@pytest.mark.parametrize(
    ("text", "ranks", "nodes", "sent"),
    [
        ("all_reduce", 4, 1, 12 * MB),  # 2 * 3/4 * 8 MB
        ("all_reduce", 2, 1, 8 * MB),
        ("ps_sync", 4, 1, 12 * MB + 3 * FRAMES),  # push 3/4, pull 3/4
        ("ps_sync:2", 4, 1, 4 * MB + 12 * MB + FRAMES),  # half to the other; 3/2 of weights back
        ("ps_stale:4", 4, 1, 12 * MB + 3 * FRAMES),
        ("ps_async", 2, 1, 8 * MB + FRAMES),
        ("local_sgd:8", 4, 1, 1.5 * MB),
        ("diloco:100", 4, 1, 0.12 * MB),
        ("post_local_sgd:8:0.5", 4, 1, 0.5 * 12 * MB + 0.5 * 1.5 * MB),
        ("hierarchical:4", 4, 2, 8 * MB + 3 * MB),  # 2 * 1/2 * 8 in the node, 12 / 4 over all
        ("all_reduce+fp16", 4, 1, 6 * MB),
        ("all_reduce+bf16", 4, 1, 6 * MB),
        ("all_reduce+int8", 4, 1, 1.5 * (2 * MB + 4 * 7813)),  # 2 M elements, 7812.5 blocks
        ("all_reduce+powersgd:2", 2, 1, 2 * 4 * 2 * (1024 + 976)),  # 2**20 and 951424 elements
        ("all_reduce+topk:0.01", 4, 1, 3 * 8 * 20_000),
        ("ps_sync+topk:0.01", 4, 1, 0.75 * (8 * 20_000 + 8 * MB) + 3 * FRAMES),
    ],
)
def test_bytes_by_hand(text: str, ranks: int, nodes: int, sent: float):
    work = parse_sync(text).work(8 * MB, SyncGroup(ranks=ranks, nodes=nodes))
    assert work.sent_bytes == pytest.approx(sent, rel=1e-9)


def test_bytes_of_all_ranks_do_not_depend_on_the_number_of_servers():
    """``2 (n-1) P``: a rank keeps the part of its own server, the rest crosses once each way."""
    n, size = 4, 8 * MB
    for servers in (1, 2, 4):
        push, pull = parse_sync(f"ps_sync:{servers}").work(size, SyncGroup(ranks=n)).messages
        workers_only = n - servers
        pushed = workers_only * size + servers * (servers - 1) / servers * size
        assert pushed == pytest.approx((n - 1) * size)
        assert push.received_bytes * servers == pytest.approx((n - 1) * size)
        asked = (servers - 1) * traffic.PULL_FRAME_BYTES
        assert (pull.sent_bytes - asked) * servers == pytest.approx((n - 1) * size)
        # the all-to-all that stands for the exchange moves what the busiest server moves
        assert push.size_bytes * (n - 1) / n == pytest.approx(push.received_bytes)


def test_memory_by_hand():
    group, size = SyncGroup(ranks=4), 8 * MB
    for text, expected in (
        ("all_reduce", 0.0),
        ("all_reduce+fp16", 0.0),
        ("all_reduce+topk:0.01", size + 4 * 8 * 20_000),  # error, pairs of four ranks
        ("ps_sync", 4 * MB),  # weights and gradient sum of a quarter
        ("ps_sync:2", 8 * MB),
        ("local_sgd", 0.0),
        ("local_sgd+fp16", size),  # weights of the last average
        ("diloco", 2 * size),  # and outer momentum
    ):
        assert parse_sync(text).memory_bytes(size, group) == pytest.approx(expected), text
    assert parse_sync("ps_sync:2").mode.state_share(group) == 0.5
    assert parse_sync("all_reduce").mode.state_share(group) == 1.0


@pytest.mark.parametrize(
    ("text", "words", "hint"),
    [
        ("al_reduce", "unknown sync mode", "all_reduce"),
        ("all_reduce+powersdg", "unknown compression", "powersgd"),
        ("all_reduce+", "ends in", "topk"),
        ("", "unknown sync mode", "all_reduce"),
        ("local_sgd:x", "whole number", "local_sgd:1"),
        ("local_sgd:0", "1 or more", "local_sgd:1"),
        ("local_sgd:2.5", "whole number", "local_sgd:1"),
        ("all_reduce:3", "takes 0", "all_reduce"),
        ("ps_stale:1:2:3", "3 options", "ps_stale:BOUND:SERVERS"),
        ("all_reduce+topk:2", "1e-05 to 1", "topk"),
        ("all_reduce+topk:nan", "1e-05 to 1", "topk"),
        ("post_local_sgd:8:1.5", "0 to 1", "post_local_sgd"),
    ],
)
def test_bad_names_say_what_is_wrong(text: str, words: str, hint: str):
    with pytest.raises(InputError, match=words) as caught:
        parse_sync(text)
    assert hint in (caught.value.hint or "")


def test_groups_that_cannot_synchronise_this_way():
    flat, pairs = SyncGroup(ranks=4, nodes=4), SyncGroup(ranks=4, nodes=2)
    assert "at least two" in str(parse_sync("hierarchical").check(flat))
    assert parse_sync("hierarchical").check(pairs) is None
    assert "8 parameter servers" in str(parse_sync("ps_async:8").check(pairs))
    assert "wider than 2" in str(parse_sync("all_reduce+bf16").check(pairs, element_bytes=2))


def test_the_page_states_the_multipliers_of_the_code():
    page = (Path(__file__).parents[2] / "docs" / "sync.md").read_text()
    rows = {line.split("|")[1].strip(" `+"): line for line in page.splitlines() if "|" in line}
    for name, sync in (
        *((name, parse_sync(name)) for name in SYNC_MODES),
        *((name, parse_sync(f"all_reduce+{name}")) for name in COMPRESSIONS if name != "none"),
    ):
        for item in sync.literature:
            known = item.multiplier
            assert f"{known.value:g} ({known.low:g} to {known.high:g})" in rows[name]
            assert item.citation in rows[name]


@pytest.mark.parametrize(
    ("text", "mesh", "reason"),
    [
        ("all_reduce", Mesh(dp_replicate=2, dp_shard=2, cp=2, tp=2, pp=2, ep=2), None),
        ("all_reduce+fp16", Mesh(dp_replicate=2, cp=2, tp=2, pp=2), None),
        ("all_reduce+fp16", Mesh(dp_shard=2), "dp_shard=2 shares them out"),
        ("all_reduce+topk", Mesh(dp_replicate=4, ep=2), "experts of ep=2"),
        ("local_sgd:4", Mesh(dp_replicate=2, tp=2, pp=2), None),
        ("local_sgd:4", Mesh(dp_replicate=2, dp_shard=2), "keeps whole weights"),
        ("diloco", Mesh(dp_replicate=2, cp=2), "does not work with cp=2"),
        ("hierarchical", Mesh(dp_replicate=4, ep=2), "does not work with ep=2"),
        ("ps_sync", Mesh(dp_replicate=4), None),
    ],
)
def test_meshes_that_a_mode_cannot_keep_together(text: str, mesh: Mesh, reason: str | None):
    found = parse_sync(text).check_mesh(mesh)
    assert found is None if reason is None else reason in (found or "")


@pytest.mark.parametrize("name", list(COMPRESSIONS))
def test_a_compression_has_a_bound_or_feeds_back(name: str):
    compression = parse_sync(f"all_reduce+{name}").compression
    bounds = [compression.error_bound(ranks) for ranks in (2, 64)]
    if name in ("powersgd", "topk"):
        assert bounds == [None, None]
    else:
        assert all(bound is not None and 0.0 <= bound < 1.0 for bound in bounds)
        assert (bounds[0] == 0.0) == compression.exact
