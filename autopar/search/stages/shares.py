"""How to split a global batch over replicas of unlike speed: exact, by giving one unit at a time.

A unit is whatever is dealt out whole: a sample, or a microbatch.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from autopar.core.errors import InfeasibleError, InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """Time and room of one replica: ``fixed_s + unit_s x units``.

    Attributes:
        fixed_s: Seconds whatever its share; negative when the first unit costs less.
        unit_s: Seconds per unit.
        most: Units that fit in its memory, ``None`` for no limit.
        least: Units it must have; 1 keeps a replica that is synchronised with others at work.

    Raises:
        InputError: A figure is negative, or no share is allowed.
    """

    fixed_s: float
    unit_s: float
    most: int | None = None
    least: int = 1

    def __post_init__(self) -> None:
        if not (self.unit_s >= 0 and self.least >= 0):
            raise InputError(
                f"a replica has unit_s {self.unit_s} and least {self.least}",
                hint="neither may be negative",
            )
        if self.most is not None and self.most < self.least:
            raise InputError(
                f"a replica has room for {self.most} units and must have {self.least}",
                hint="use a smaller microbatch or leave the replica out",
            )

    def seconds(self, units: int) -> float:
        """Time for a share."""
        return self.fixed_s + self.unit_s * units


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """A split of a batch.

    Attributes:
        units: Per replica, in the order given; they sum to the batch.
        slowest_s: Time of the slowest replica.
    """

    units: tuple[int, ...]
    slowest_s: float


def split_batch(total: int, replicas: Sequence[Replica]) -> Shares:
    """The split whose slowest replica is fastest.

    Every replica gets its least share; then each further unit goes to the replica that would be
    done first with it. No split is better. If the slowest time ``T`` is that of a least share,
    every split has it. Otherwise let ``T`` be reached when replica ``r`` got its ``n``-th unit.
    At that moment every other replica with room would have needed at least ``T`` for one more
    unit. A split faster than ``T`` therefore gives ``r`` at most ``n - 1`` units and any other
    replica at most what it had at that moment: in all, fewer units than had been dealt out by
    then, so it does not deal out the batch.

    Args:
        total: Units to deal out.
        replicas: Who takes them.

    Raises:
        InfeasibleError: The least shares exceed the batch, or the batch exceeds the room.
    """
    units = [replica.least for replica in replicas]
    left = total - sum(units)
    if left < 0:
        raise InfeasibleError(
            f"{len(replicas)} replicas need at least {sum(units)} units, the batch has {total}",
            hint="use fewer replicas or a larger batch",
        )
    heap = [
        (replica.seconds(replica.least + 1), index)
        for index, replica in enumerate(replicas)
        if replica.most is None or replica.least < replica.most
    ]
    heapq.heapify(heap)
    for dealt in range(left):
        if not heap:
            raise InfeasibleError(
                f"{total} units are to be dealt out, the replicas have room for "
                f"{total - left + dealt}",
                hint="use more replicas, a smaller batch or devices with more memory",
            )
        _, index = heap[0]
        units[index] += 1
        replica = replicas[index]
        if replica.most is not None and units[index] >= replica.most:
            heapq.heappop(heap)
        else:
            heapq.heapreplace(heap, (replica.seconds(units[index] + 1), index))
    times = [replica.seconds(n) for replica, n in zip(replicas, units, strict=True)]
    return Shares(units=tuple(units), slowest_s=max(times, default=0.0))
