"""Stage boundaries that are tried where a rank holds several stages.

One stage per rank is cut exactly. With several, the steady state of the schedule needs stages of
equal length anyway, so the space has two partitions: equal numbers of blocks, and equal FLOPs.
Where a model has branches that do not need each other (two towers), a third one cuts between them.
"""

from __future__ import annotations

import numpy as np

from autopar.cost.layout import Cuts
from autopar.graph import GraphProfile


def equal_blocks(blocks: int, stages: int) -> Cuts:
    """Boundaries that give each stage the same number of blocks, as nearly as can be."""
    return tuple(round(blocks * s / stages) for s in range(stages + 1))


def equal_work(seconds: np.ndarray[tuple[int], np.dtype[np.float64]], stages: int) -> Cuts:
    """Boundaries nearest to equal sums, at least one block a stage."""
    n = len(seconds)
    ends = np.concatenate(([0.0], np.cumsum(seconds)))
    wanted = ends[-1] * np.arange(1, stages) / stages
    near = np.abs(ends[None, :] - wanted[:, None]).argmin(axis=1)
    cuts = [0]
    for stage, cut in enumerate(near, start=1):
        cuts.append(int(min(max(cut, cuts[-1] + 1), n - stages + stage)))
    return (*cuts, n)


def branch_cuts(profile: GraphProfile, stages: int) -> Cuts | None:
    """Boundaries where branches start and where they are joined; ``None`` without branches.

    A branch starts at a block that does not read the one before. Further boundaries go behind the
    last join, or before it if there are too few blocks, so that the first branch stays whole.
    """
    n = len(profile.blocks)
    chained = {e.consumer for e in profile.block_edges if e.producer == e.consumer - 1}
    starts = [block for block in range(1, n) if block not in chained]
    joins = [
        min((e.consumer for e in profile.block_edges if e.producer < s <= e.consumer), default=n)
        for s in starts
    ]
    marks = {*starts, *joins} - {n}
    more = stages - 1 - len(marks)
    if not starts or more < 0:
        return None
    last = max(marks)
    if n - 1 - last >= more:
        even = equal_blocks(n - last, more + 1)
        marks.update(last + cut for cut in even[1:-1])
    else:
        left = [block for block in range(n - 1, 0, -1) if block not in marks]
        marks.update(left[:more])
    return (0, *sorted(marks), n)


def chunked_cuts(profile: GraphProfile, stages: int) -> tuple[Cuts, ...]:
    """The partitions of the space for several stages per rank, found once for a profile."""
    known = profile.derived(_by_stages)
    if stages not in known:
        known[stages] = _chunked_cuts(profile, stages)
    return known[stages]


def _by_stages(profile: GraphProfile) -> dict[int, tuple[Cuts, ...]]:
    return {}


def _chunked_cuts(profile: GraphProfile, stages: int) -> tuple[Cuts, ...]:
    batch = profile.batch
    flops = np.array(
        [b.forward_flop.at(batch) + b.backward_flop.at(batch) for b in profile.blocks]
    )
    found = [equal_blocks(len(profile.blocks), stages)]
    if flops.sum() > 0:
        found.append(equal_work(flops, stages))
    branches = branch_cuts(profile, stages)
    if branches is not None:
        found.append(branches)
    return tuple(dict.fromkeys(found))
