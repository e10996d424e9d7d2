"""Which groups of ranks to measure together."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Equal, disjoint groups that run the same collective at the same time.

    Attributes:
        groups: Global ranks of each group; rank 0 is in the first.
        nodes: Hosts each group spans.
    """

    groups: tuple[tuple[int, ...], ...]
    nodes: int

    @property
    def size(self) -> int:
        """Ranks in a group."""
        return len(self.groups[0])

    @property
    def concurrency(self) -> int:
        """Groups that run at the same time."""
        return len(self.groups)


def sizes_up_to(limit: int) -> list[int]:
    """Powers of two from 2 below a limit, and the limit itself."""
    powers = [1 << i for i in range(1, limit.bit_length()) if 1 << i < limit]
    return [*powers, limit] if limit >= 2 else []


def layouts(nnodes: int, ranks: int) -> list[Layout]:
    """All layouts for ``nnodes`` hosts of ``ranks`` ranks (global rank = node * ranks + local).

    Inside the first host: consecutive groups of every size, one alone and as many at once as fit.
    Between hosts: one rank per host (data parallel across hosts), one group alone and all local
    ranks at once; and all ranks of several hosts.
    """
    found = []
    for size in sizes_up_to(ranks):
        groups = tuple(
            tuple(range(first, first + size)) for first in range(0, ranks - size + 1, size)
        )
        found += [Layout(groups=groups[:1], nodes=1)]
        if len(groups) > 1:
            found += [Layout(groups=groups, nodes=1)]
    for hosts in sizes_up_to(nnodes):
        across = tuple(
            tuple(host * ranks + local for host in range(hosts)) for local in range(ranks)
        )
        found += [Layout(groups=across[:1], nodes=hosts)]
        if ranks > 1:
            found += [Layout(groups=across, nodes=hosts)]
            found += [Layout(groups=(tuple(range(hosts * ranks)),), nodes=hosts)]
    return found


def curve_keys(layout: Layout) -> tuple[str, ...]:
    """Collectives to measure in a layout; point-to-point needs exactly two ranks."""
    together = ("all_reduce", "reduce_scatter", "all_gather", "all_to_all", "broadcast")
    return (*together, "send_recv") if layout.size == 2 else together
