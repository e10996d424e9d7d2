"""Repeated pushes, workers that go and come, servers that are killed."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import server_helpers as helpers
import torch

from autopar.core.errors import TrainingError
from autopar.executor.server.gang import Gang


def begin(own: Gang, rank: int, *, share: float = 1.0) -> None:
    if rank == 0:
        own.set_weights(helpers.weights(), 0, share, {})
    else:
        own.next_generation()


def exchange(own: Gang, rank: int, step: int, start: int) -> torch.Tensor:
    into = torch.empty(helpers.ELEMENTS)
    own.exchange(step, helpers.gradient(rank, step), set(), start=start, into=into)
    return into


def test_a_push_sent_again_is_applied_once() -> None:
    reference = helpers.Reference(helpers.sgd)
    with helpers.servers(2, "async", 1, grace_s=30.0) as made:
        own = helpers.gang(made, 0, helpers.ENTRIES)
        begin(own, 0)
        for step in range(4):
            for _ in range(3):
                found = exchange(own, 0, step, step + 1)
                for client in own._clients:  # the next try comes over a new connection
                    client.close()
            reference.step(helpers.gradient(0, step))
            torch.testing.assert_close(found, reference.flat)
        assert [row["version"] for row in own.status()] == [4, 4]


def test_a_push_sent_again_counts_once_in_a_round() -> None:
    with helpers.servers(1, "sync", 2, grace_s=30.0) as made:
        workers = [helpers.gang(made, rank, helpers.ENTRIES) for rank in range(2)]
        for rank, own in enumerate(workers):
            begin(own, rank)
        for _ in range(3):
            push = workers[0]._push_frame(0, 0, helpers.gradient(0, 0), set())
            workers[0]._clients[0].request(push)
        found = exchange(workers[1], 1, 0, 1)
        again = exchange(workers[0], 0, 0, 1)
    reference = helpers.Reference(helpers.sgd)
    reference.step((helpers.gradient(0, 0) + helpers.gradient(1, 0)) / 2)
    torch.testing.assert_close(found, reference.flat)
    assert torch.equal(found, again)


def test_members_leave_and_join() -> None:
    """A bound of one: the clock counts whom it has, a newcomer begins at the slowest clock."""
    with helpers.servers(1, "stale", 2, bound=1) as made:
        first, second = (
            helpers.gang(made, rank, helpers.ENTRIES, timeout_s=1.0) for rank in (0, 1)
        )
        begin(first, 0)
        begin(second, 1)
        exchange(first, 0, 0, 1)
        with pytest.raises(TrainingError, match="cannot reach"):
            exchange(first, 0, 1, 2)  # rank 1 has made no step
        exchange(second, 1, 0, 1)
        exchange(first, 0, 1, 2)
        second.leave()
        for step in range(2, 6):
            exchange(first, 0, step, step + 1)
        late = helpers.gang(made, 7, helpers.ENTRIES)
        late.next_generation()
        assert late.status()[0]["clocks"] == {"0": 6, "7": 6}
        exchange(late, 7, 6, 7)
        exchange(first, 0, 6, 7)


def test_a_lost_member_does_not_hold_up_the_others() -> None:
    with helpers.servers(2, "stale", 2, bound=1) as made:
        own = helpers.gang(made, 0, helpers.ENTRIES)
        begin(own, 0)

        def short_life() -> None:
            other = helpers.gang(made, 1, helpers.ENTRIES)
            begin(other, 1)
            exchange(other, 1, 0, 1)
            os.kill(os.getpid(), signal.SIGKILL)

        pid = helpers.fork(short_life)
        for step in range(5):
            exchange(own, 0, step, step + 1)
        assert helpers.join([pid]) == [-signal.SIGKILL]
        assert {tuple(row["lost"]) for row in own.status()} == {(1,)}


@pytest.mark.parametrize("on_loss", ["fail", "continue"])
def test_a_lost_member_of_a_round(on_loss: str) -> None:
    with helpers.servers(2, "sync", 2, on_loss=on_loss) as made:
        own = helpers.gang(made, 0, helpers.ENTRIES)
        begin(own, 0)

        def short_life() -> None:
            other = helpers.gang(made, 1, helpers.ENTRIES)
            begin(other, 1)
            exchange(other, 1, 0, 1)
            os.kill(os.getpid(), signal.SIGKILL)

        pid = helpers.fork(short_life)
        exchange(own, 0, 0, 1)
        helpers.join([pid])
        if on_loss == "fail":
            with pytest.raises(TrainingError, match="rank 1 was lost in step 1"):
                exchange(own, 0, 1, 2)
            return
        found = exchange(own, 0, 1, 2)
        reference = helpers.Reference(helpers.sgd)
        reference.step((helpers.gradient(0, 0) + helpers.gradient(1, 0)) / 2)
        reference.step(helpers.gradient(0, 1))
        torch.testing.assert_close(found, reference.flat)


STEPS = 60


def train(made: list[helpers.Server], rank: int, discipline: str, out: Path) -> None:
    own = helpers.gang(made, rank, helpers.ENTRIES)
    begin(own, rank)
    for step in range(STEPS):
        into = torch.empty(helpers.ELEMENTS)
        gradient = 0.1 * helpers.gradient(rank, step)
        clips = discipline == "sync" and made[0].settings.clips is not None
        own.exchange(step, gradient, set(), start=step + 1, into=into, clips=clips)
        (out / f"at-{rank}").write_text(str(step))
    torch.save(into, out / f"{rank}.pt")
    own.leave()
    own.close()


def wait_for(out: Path, step: int) -> None:
    limit = time.monotonic() + 20
    while time.monotonic() < limit:
        text = (out / "at-0").read_text() if (out / "at-0").exists() else ""
        if text and int(text) >= step:
            return
        time.sleep(0.002)
    raise AssertionError("workers do not get on")


@pytest.mark.parametrize(("discipline", "clips"), [("sync", None), ("sync", 0.3), ("async", None)])
def test_servers_go_on_from_their_checkpoint(discipline, clips, tmp_path: Path) -> None:
    """Killed three times in the middle; synchronous steps stay those of one process."""
    with helpers.servers(
        2, discipline, 2, helpers.adam, tmp_path, checkpoint_every=1, clips=clips, grace_s=5.0
    ) as made:
        pids = [helpers.fork(lambda r=r: train(made, r, discipline, tmp_path)) for r in (0, 1)]
        for number, at in enumerate((5, 20, 35)):
            wait_for(tmp_path, at)
            made[number % 2].kill()
            made[number % 2].start()
        assert helpers.join(pids) == [0, 0]
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    if discipline == "sync":
        reference = helpers.Reference(helpers.adam, clips)
        for step in range(STEPS):
            reference.step(0.05 * (helpers.gradient(0, step) + helpers.gradient(1, step)))
        for flat in found:
            torch.testing.assert_close(flat, reference.flat, rtol=1e-5, atol=1e-6)
    assert all(bool(flat.isfinite().all()) for flat in found)
