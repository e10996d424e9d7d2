"""The garbage collector stays out of steps and comes back afterwards."""

from __future__ import annotations

import gc

from autopar.executor.collector import INTERVAL, quiet_collector, tidy


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
