"""Uneven batch shares: never slower than any other split, by brute force."""

from __future__ import annotations

import itertools
import random

import pytest

from autopar.core.errors import InfeasibleError, InputError
from autopar.search.stages.shares import Replica, split_batch


def brute_force(total: int, replicas: list[Replica]) -> float | None:
    """Slowest time of the best of all splits; None without any."""
    ranges = [range(r.least, (total if r.most is None else r.most) + 1) for r in replicas]
    times = [
        max(r.seconds(n) for r, n in zip(replicas, units, strict=True))
        for units in itertools.product(*ranges)
        if sum(units) == total
    ]
    return min(times, default=None)


@pytest.mark.parametrize("seed", range(300))
def test_equals_brute_force(seed: int) -> None:
    random_ = random.Random(seed)
    replicas = []
    for _ in range(random_.randint(1, 4)):
        least = random_.randint(0, 2)
        replicas.append(
            Replica(
                fixed_s=random_.choice([0.0, random_.uniform(-1, 3)]),
                unit_s=random_.choice([0.0, 1.0, random_.uniform(0, 2)]),
                least=least,
                most=random_.choice([None, least + random_.randint(0, 4)]),
            )
        )
    total = random_.randint(0, 10)
    best = brute_force(total, replicas)
    if best is None:
        with pytest.raises(InfeasibleError):
            split_batch(total, replicas)
        return
    found = split_batch(total, replicas)
    assert found.slowest_s == best
    assert sum(found.units) == total
    assert max(r.seconds(n) for r, n in zip(replicas, found.units, strict=True)) == best
    for replica, units in zip(replicas, found.units, strict=True):
        assert replica.least <= units <= (total if replica.most is None else replica.most)


def test_shares_follow_speed() -> None:
    fast, slow = Replica(fixed_s=0.0, unit_s=1.0), Replica(fixed_s=0.0, unit_s=3.0)
    found = split_batch(64, [fast, slow])
    assert found.units == (48, 16)
    assert found.slowest_s == 48.0  # an even split takes 96


def test_memory_sends_the_rest_to_the_slow_replica() -> None:
    found = split_batch(
        10, [Replica(fixed_s=0.0, unit_s=1.0, most=4), Replica(fixed_s=0.0, unit_s=5.0)]
    )
    assert found.units == (4, 6)


def test_what_cannot_be_split_says_why() -> None:
    with pytest.raises(InfeasibleError, match="room for 5"):
        split_batch(
            6, [Replica(fixed_s=0, unit_s=1, most=2), Replica(fixed_s=0, unit_s=1, most=3)]
        )
    with pytest.raises(InfeasibleError, match="at least 2"):
        split_batch(1, [Replica(fixed_s=0, unit_s=1)] * 2)
    with pytest.raises(InputError, match="unit_s -1"):
        Replica(fixed_s=1, unit_s=-1)
    with pytest.raises(InputError, match="room for 0"):
        Replica(fixed_s=0, unit_s=1, most=0)
