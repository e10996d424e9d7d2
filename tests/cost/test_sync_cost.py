"""Seconds of sync modes: what is hidden, what is exposed, what a period saves."""

from __future__ import annotations

from dataclasses import replace

import pytest

from autopar.cost.communication.sync_cost import SyncLinks, sync_memory_bytes, sync_seconds
from autopar.sync import SYNC_MODES, SyncGroup, parse_sync

RATE, SIZE = 1e9, 100e6
LINKS = SyncLinks(
    group=SyncGroup(ranks=4, nodes=2),
    seconds=lambda kind, size, scope: size / RATE * (0.1 if scope == "node" else 1.0),
    memory_bytes_per_s=1e12,
    bucket_bytes=25e6,
)


def seconds(text: str, *, backward_s: float = 0.0, compute_s: float = 0.0) -> tuple[float, float]:
    return sync_seconds(parse_sync(text), SIZE, LINKS, backward_s=backward_s, compute_s=compute_s)


def test_all_reduce_leaves_the_last_bucket_exposed():
    full, exposed = seconds("all_reduce", backward_s=1.0)
    assert full == pytest.approx(0.1)
    assert exposed == pytest.approx(0.025)
    assert seconds("all_reduce") == (pytest.approx(0.1), pytest.approx(0.1))


def test_a_stale_server_is_hidden_by_compute_until_it_takes_longer():
    server = 7 * 4 * SIZE / 4 / 1e12  # updates of the shard, one per push
    assert seconds("ps_stale:4", compute_s=1.0)[1] == pytest.approx(server)
    full, exposed = seconds("ps_stale:4", compute_s=0.15)
    assert full == pytest.approx(0.2 + server)
    assert exposed == pytest.approx(0.05 + server)


def test_the_synchronous_server_hides_the_push_only():
    exposed = seconds("ps_sync", backward_s=1.0)[1]
    adding = 3 * 3 * SIZE / 4 / 1e12
    assert exposed == pytest.approx(0.025 + 0.1 + adding)


def test_periods_divide_messages_and_are_not_hidden():
    mixing = 2 * SIZE / 1e12
    for period in (1, 8, 50):
        full, exposed = seconds(f"local_sgd:{period}", backward_s=1.0, compute_s=2.0)
        assert full == exposed == pytest.approx((0.1 + mixing) / period)


def test_post_local_sgd_weighs_two_phases_each_with_its_own_overlap():
    full, exposed = seconds("post_local_sgd:10:0.5", backward_s=1.0)
    mixing = 0.5 * 2 * SIZE / 1e12 / 10
    assert full == pytest.approx(0.5 * 0.1 + 0.5 * 0.01 + mixing)
    assert exposed == pytest.approx(0.5 * 0.025 + 0.5 * 0.01 + mixing)


def test_hierarchical_pays_the_slow_tier_per_period():
    full, _ = seconds("hierarchical:10")
    assert full == pytest.approx(0.01 + 0.01 + 2 * SIZE / 1e12 / 10)


def test_compression_pays_on_slow_links_and_not_on_fast_ones():
    slow = seconds("all_reduce+int8")[1], seconds("all_reduce")[1]
    assert slow[0] < slow[1]
    fast = replace(LINKS, seconds=lambda kind, size, scope: size / 1e13)
    plain, encoded = (
        sync_seconds(parse_sync(text), SIZE, fast, backward_s=0.0, compute_s=0.0)[1]
        for text in ("all_reduce", "all_reduce+int8")
    )
    assert encoded > plain


@pytest.mark.parametrize("name", list(SYNC_MODES))
def test_one_rank_costs_nothing_and_exposure_is_at_most_the_whole(name: str):
    sync, alone = parse_sync(name), replace(LINKS, group=SyncGroup(ranks=1))
    assert sync_seconds(sync, SIZE, alone, backward_s=1.0, compute_s=1.0) == (0.0, 0.0)
    assert sync_memory_bytes(sync, SIZE, SyncGroup(ranks=1)) == 0.0
    full, exposed = seconds(name, backward_s=0.05, compute_s=0.1)
    assert 0 < exposed <= full
