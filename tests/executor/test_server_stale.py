"""Ranks that do not wait for each other: how far apart they get, and what a loss does."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import executor_helpers as helpers
import executor_models as models
import pytest
import torch
import torch.distributed as dist

from autopar.core.errors import TrainingError
from autopar.executor.sampling.streams import Purpose, stream
from autopar.executor.server.gang import Gang
from autopar.executor.server.options import ServerOptions
from autopar.tasks import Task

STEPS = 25
FAST_S, SLOW_S = 0.004, 0.02


class Watch:
    """Sees from outside when each rank starts which step; shared by all processes."""

    def __init__(self, ranks: int) -> None:
        self.started = torch.zeros(ranks, dtype=torch.int64).share_memory_()
        self.pushed = torch.zeros(ranks, dtype=torch.int64).share_memory_()
        self.lead = torch.zeros(ranks, dtype=torch.int64).share_memory_()

    def start(self, rank: int, step: int) -> None:
        """What is pushed is noted before a server can have it: no clock there is ahead of it."""
        self.started[rank] = step
        self.lead[rank] = max(int(self.lead[rank]), step - int(self.pushed.min()))

    def notes_pushes(self, exchange: Callable[..., None]) -> Callable[..., None]:
        """``Gang.exchange``, seen."""

        def noted(gang: Gang, step: int, *rest: Any, **named: Any) -> None:
            self.pushed[dist.get_rank()] = step + 1
            exchange(gang, step, *rest, **named)

        return noted

    def let_others_ahead(self, lead: int) -> None:
        """Rank 0 goes on when another is this far ahead, however loaded the machine is."""
        limit = time.monotonic() + 20.0
        wanted = min(int(self.started[0]) + lead, STEPS - 1)
        while int(self.started[1:].max()) < wanted and time.monotonic() < limit:
            time.sleep(0.001)


def learnable(lr: float = 0.1) -> Task:
    """Targets that a model can learn."""

    def batch(n: int, generator: torch.Generator):
        x = torch.randn(n, 8, generator=generator)
        return x, torch.tanh(x.flip(1))

    return replace(models.mlp(depth=2), batch=batch, optimizer=partial(torch.optim.SGD, lr=lr))


def watched(watch: Watch, lead: int) -> Task:
    """The MLP; rank 0 takes five times as long to make its batch, and lets others get ahead."""
    base = models.mlp(lr=0.05)
    steps = {stream(0, Purpose.SEQUENCE, s).initial_seed(): s for s in range(STEPS + 1)}

    def batch(n: int, generator: torch.Generator):
        if dist.is_initialized():
            rank = dist.get_rank()
            watch.start(rank, steps.get(generator.initial_seed(), 0))
            if rank == 0 and int(watch.started[0]):  # step 0 is also drawn before training
                watch.let_others_ahead(lead)
            time.sleep(SLOW_S if rank == 0 else FAST_S)
        return base.batch(n, generator)

    return replace(base, batch=batch)


@pytest.mark.parametrize(
    ("sync", "ranks", "bound"),
    [("ps_stale:1", 2, 1), ("ps_stale:3", 2, 3), ("ps_stale:2", 4, 2), ("ps_async", 2, None)],
)
def test_the_bound_holds_under_a_slow_rank(
    sync, ranks, bound, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Watch(ranks)
    monkeypatch.setattr(Gang, "exchange", watch.notes_pushes(Gang.exchange))
    task = watched(watch, 8 if bound is None else bound)
    plan = helpers.make_plan(task, traced=helpers.traced_of(models.mlp()), dp=ranks, sync=sync)
    helpers.run(plan, task, tmp_path, steps=STEPS, warmup=0)
    lead = int(watch.lead[1:].max())
    if bound is None:
        assert lead > 5  # nothing holds them together: the watch can see it
    else:
        assert lead == bound  # rank 0 waits until they are as far ahead as they may be
        assert int(watch.lead[0]) <= bound


class Mortal(models.Mlp):
    """One rank kills itself in the middle of a step."""

    def __init__(self, rank: int, after: int) -> None:
        super().__init__(8, 2, 0.0)
        self.rank, self.after, self.calls = rank, after, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if dist.is_initialized() and not x.is_meta and self.training:
            self.calls += 1
            if self.calls > self.after and dist.get_rank() == self.rank:
                signal.raise_signal(signal.SIGKILL)
        return super().forward(x)


AFTER, LONG = 12, 240


def mortal(rank: int) -> Task:
    return replace(learnable(), name="mortal", model=lambda: Mortal(rank, AFTER))


@pytest.mark.parametrize(
    ("sync", "ranks", "victim"),
    [("ps_async", 4, 2), ("ps_async", 2, 0), ("ps_stale:2", 4, 1), ("ps_stale:1:2", 2, 1)],
)
def test_a_killed_rank_does_not_end_the_others(sync, ranks, victim, tmp_path: Path) -> None:
    task = mortal(victim)
    plan = helpers.make_plan(task, traced=helpers.traced_of(learnable()), dp=ranks, sync=sync)
    record = helpers.run(plan, task, tmp_path, steps=LONG, warmup=0)
    assert any(f"rank {victim} was lost" in text for text in record.warnings)
    assert record.peak_memory_bytes[victim] == 0.0
    assert len(record.losses) == LONG
    # the loss goes on falling after the death, so what the victim's server holds is still stepped
    assert mean(record.losses[-40:]) < 0.8 * mean(record.losses[AFTER : AFTER + 10])


def test_a_killed_rank_ends_a_synchronous_run(tmp_path: Path) -> None:
    task = mortal(1)
    plan = helpers.make_plan(task, traced=helpers.traced_of(learnable()), dp=2, sync="ps_sync")
    with pytest.raises(TrainingError, match=r"rank 1 was (killed by signal 9|lost)"):
        helpers.run(plan, task, tmp_path, steps=40)


def test_a_synchronous_run_goes_on_if_asked_to(tmp_path: Path) -> None:
    task = mortal(1)
    plan = helpers.make_plan(task, traced=helpers.traced_of(learnable()), dp=3, sync="ps_sync")
    options = ServerOptions(on_loss="continue")
    record = helpers.run(plan, task, tmp_path, steps=30, warmup=0, servers=options)
    assert any("rank 1 was lost" in text for text in record.warnings)
    assert len(record.losses) == 30


def test_a_killed_server_goes_on_in_a_run(tmp_path: Path) -> None:
    """The process beside the rank starts it again on the same port."""
    import os
    import re

    def killing(n: int, generator: torch.Generator):
        marker = tmp_path / "killed"
        here = dist.is_initialized() and dist.get_rank() == 0
        if here and generator.initial_seed() == at and not marker.exists():
            marker.touch()
            children = Path(f"/proc/{os.getppid()}/task/{os.getppid()}/children").read_text()
            (server,) = {int(pid) for pid in re.findall(r"\d+", children)} - {os.getpid()}
            os.kill(server, signal.SIGKILL)
        return base.batch(n, generator)

    if not Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").exists():
        pytest.skip("no list of child processes here")
    base = models.mlp()
    at = stream(0, Purpose.SEQUENCE, 6).initial_seed()
    task = replace(base, batch=killing)
    traced = helpers.traced_of(base)
    whole = helpers.run(
        helpers.make_plan(base, traced=traced, dp=2), base, tmp_path / "a", steps=12
    )
    plan = helpers.make_plan(task, traced=traced, dp=2, sync="ps_sync")
    options = ServerOptions(checkpoint_every=1)
    record = helpers.run(plan, task, tmp_path / "b", steps=12, servers=options)
    assert (tmp_path / "killed").exists()
    assert "went on from checkpoint" in (tmp_path / "b" / "logs" / "server-0.log").read_text()
    assert record.losses == pytest.approx(whole.losses, rel=1e-5)
