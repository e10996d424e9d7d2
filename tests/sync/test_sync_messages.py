"""Messages of sync modes: what can be priced, who sends what, how traffic falls with a period."""

from __future__ import annotations

import pytest

from autopar.sync import COMPRESSIONS, SYNC_MODES, SyncGroup, canonical_sync, parse_sync
from autopar.sync.traffic import PULL_FRAME_BYTES, PUSH_FRAME_BYTES

P = 4_000_000.0
"""Gradient bytes: a million float32 elements."""
FOUR = SyncGroup(ranks=4, nodes=2)
FRAMES = PUSH_FRAME_BYTES + PULL_FRAME_BYTES
PAIRS = [f"{mode}+{compression}" for mode in SYNC_MODES for compression in COMPRESSIONS]


def work(text: str, size_bytes: float = P) -> tuple[float, float]:
    """Bytes a rank sends and receives per step."""
    done = parse_sync(text).work(size_bytes, FOUR)
    return done.sent_bytes, done.received_bytes


@pytest.mark.parametrize("text", PAIRS)
def test_messages_are_collectives_that_can_be_priced(text: str):
    messages = parse_sync(text).work(P, FOUR).messages
    assert messages
    for message in messages:
        assert message.kind in ("all_reduce", "reduce_scatter", "all_gather", "all_to_all")
        assert message.scope in ("all", "node")
        assert 0 < message.per_step <= 1
        if message.per_step < 1 and not text.startswith("post_local_sgd"):
            assert message.overlap == "none"


@pytest.mark.parametrize("servers", [1, 2, 3, 4])
def test_ranks_together_send_as_much_with_any_number_of_servers(servers: int):
    """Ranks without a server send P and receive P; all ranks together 2 (n-1) P."""
    sent, received = work(f"ps_sync:{servers}")
    sent -= (servers - 1) * FRAMES
    assert servers * sent + (4 - servers) * P == pytest.approx(2 * 3 * P)
    assert received == pytest.approx(sent)
    assert sent >= P


def test_a_server_sends_weights_and_receives_compressed_gradients():
    """Of 2 servers: half of the 2 MB to the other and 3/2 P out; 3/2 of 2 MB and 1/2 P in."""
    assert work("ps_async:2+bf16") == pytest.approx((1e6 + 6e6 + FRAMES, 3e6 + 2e6))


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


def test_traffic_over_all_ranks_falls_with_the_period_and_in_the_node_does_not():
    sent = [work(f"local_sgd:{period}")[0] for period in (1, 2, 16)]
    assert sent == pytest.approx([6e6, 3e6, 6e6 / 16])
    inside = [m for m in parse_sync("hierarchical:16").work(P, FOUR).messages if m.scope == "node"]
    assert [m.per_step for m in inside] == [1.0]


def test_options_left_out_have_their_usual_values():
    assert canonical_sync("local_sgd") == "local_sgd:8"
    assert canonical_sync("ps_stale") == "ps_stale:4"
    assert canonical_sync("ps_async:2") == "ps_async:2"
    assert canonical_sync("all_reduce+none") == "all_reduce"
    assert canonical_sync("all_reduce + topk : 0.010") == "all_reduce+topk:0.01"
