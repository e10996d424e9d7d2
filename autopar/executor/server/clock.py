"""Who takes part and how far each has come: the clock of bounded staleness.

A member's clock is the number of steps it has pushed. A member may start step ``t`` while
``t - min(clocks of the others and its own) <= bound`` (stale synchronous parallel, Ho et al.
2013). A member that left, or was lost and did not come back in time, counts no more.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(kw_only=True)
class Member:
    """One worker.

    Attributes:
        clock: Steps it pushed.
        connected: It has a connection now.
        lost_at_s: When its connection broke, ``None`` while it has one or before it came.
    """

    clock: int = 0
    connected: bool = False
    lost_at_s: float | None = None


@dataclass(kw_only=True)
class Membership:
    """The members of a run as one server sees them.

    Attributes:
        members: Rank -> member; all that are expected are in it from the start.
        lost: Ranks whose connection broke for good.
        left: Ranks that said goodbye.
        max_lead: Largest ``t - slowest`` at which a step was allowed to start.
    """

    members: dict[int, Member] = field(default_factory=dict)
    lost: set[int] = field(default_factory=set)
    left: set[int] = field(default_factory=set)
    max_lead: int = 0

    def expect(self, ranks: Iterable[int], clock: int) -> None:
        """Wait for these ranks, which have done ``clock`` steps; others are kept."""
        for rank in ranks:
            if rank not in self.lost | self.left:
                self.members.setdefault(rank, Member(clock=clock))

    def restart(self, clock: int) -> None:
        """Everybody has done ``clock`` steps; those who went are expected no more."""
        for member in self.members.values():
            member.clock = clock
        self.max_lead = 0

    def join(self, rank: int) -> Member:
        """A connection of a rank; one that is new or was lost starts at the slowest clock."""
        member = self.members.get(rank)
        if member is None:
            member = self.members[rank] = Member(clock=self.slowest())
        self.lost.discard(rank)
        self.left.discard(rank)
        member.connected, member.lost_at_s = True, None
        return member

    def disconnect(self, rank: int, now_s: float) -> None:
        """The connection of a rank broke; it has a moment to come back."""
        member = self.members.get(rank)
        if member is not None:
            member.connected, member.lost_at_s = False, now_s

    def drop_lost(self, now_s: float, grace_s: float) -> list[int]:
        """Remove ranks that did not come back; returns them."""
        gone = [
            rank
            for rank, member in self.members.items()
            if member.lost_at_s is not None and now_s - member.lost_at_s >= grace_s
        ]
        for rank in gone:
            del self.members[rank]
        self.lost.update(gone)
        return gone

    def leave(self, rank: int) -> None:
        """A rank has finished."""
        if self.members.pop(rank, None) is not None:
            self.left.add(rank)

    def slowest(self) -> int:
        """Least number of pushed steps, 0 when nobody is there."""
        return min((m.clock for m in self.members.values()), default=0)

    def may_start(self, step: int, bound: int | None) -> bool:
        """True when a step may start now; without a bound always."""
        return bound is None or step - self.slowest() <= bound

    def started(self, step: int) -> None:
        """Note how far ahead of the slowest a step was allowed to start."""
        self.max_lead = max(self.max_lead, step - self.slowest())

    @property
    def finished(self) -> bool:
        """True when somebody was here and nobody is any more."""
        return not self.members and bool(self.lost or self.left)
