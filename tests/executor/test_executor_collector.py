"""The garbage collector stays out of steps and comes back afterwards."""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path
from typing import Any

import executor_helpers as helpers
import executor_models as models
import pytest

from autopar.executor.launching import forks
from autopar.executor.measuring.collector import INTERVAL, quiet_collector, tidy

HEAVY = {
    "autopar.executor.division.divide",
    "autopar.executor.graph_path",
    "autopar.executor.synchronising.all_reduce",
}


class Cycle:
    alive = 0

    def __init__(self) -> None:
        self.me = self
        Cycle.alive += 1

    def __del__(self) -> None:
        Cycle.alive -= 1


def test_nothing_is_collected_until_tidy() -> None:
    assert gc.isenabled()
    with quiet_collector():
        assert not gc.isenabled()
        Cycle()
        tidy(INTERVAL - 1)
        assert Cycle.alive == 1
        tidy(INTERVAL)
        assert Cycle.alive == 0
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


def test_forked_ranks_leave_what_the_launcher_holds_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each rank would walk and copy the launcher's heap, and import the executor once more."""

    def seen(plan: Any, task: Any, options: Any, store: Any, seat: Any, *rest: Any) -> None:
        before = set(sys.modules)
        frozen = gc.get_freeze_count()
        work(plan, task, options, store, seat, *rest)
        new = sorted(name for name in set(sys.modules) - before if name in HEAVY)
        (tmp_path / f"seen-{seat.rank}").write_text(json.dumps([frozen, new]))

    work = forks.work
    monkeypatch.setattr(forks, "work", seen)
    task = models.mlp()
    helpers.run(helpers.make_plan(task, pp=2), task, tmp_path / "run", steps=1, warmup=0)
    for rank in (0, 1):
        frozen, new = json.loads((tmp_path / f"seen-{rank}").read_text())
        assert frozen > 10_000
        assert not new
