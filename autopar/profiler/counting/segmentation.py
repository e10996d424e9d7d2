"""Where to cut the op order into blocks: repeated layers first, cheap positions elsewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate, pairwise

from autopar.core.stats import median
from autopar.graph import Op
from autopar.profiler.counting.dataflow import CountedGraph, Value
from autopar.profiler.counting.modules import ModuleTree, Segment
from autopar.trace import TracedTask


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockPolicy:
    """How fine the blocks are.

    Attributes:
        fewest: Repeated layers are halved while there are fewer blocks than this.
        most: Neighbouring blocks are joined while there are more than this.
        large_share: Modules with more of the whole work are opened.
        piece_share: Work outside repeated layers is cut into pieces of about this share.
        small_share: Neighbouring blocks below this share are joined.
        width_slack: A cut inside a gap or layer may carry this many times the bytes that cross
            at its ends.
        layer_kernels: Layers inside large layers become blocks from this many kernels on.
        flop_per_byte: Work of moving a byte, in FLOPs; only to compare ops with each other.
        flop_per_kernel: Work of a kernel launch, in FLOPs.
    """

    fewest: int = 8
    most: int = 160
    large_share: float = 0.06
    piece_share: float = 1 / 12
    small_share: float = 0.004
    width_slack: float = 1.25
    layer_kernels: int = 6
    flop_per_byte: float = 20.0
    flop_per_kernel: float = 2e5


Cuts = list[int]
Signature = Callable[[int, int], str]


def crossing_bytes(traced: TracedTask, graph: CountedGraph) -> list[float]:
    """Bytes that cross each cut position at the traced batch size; infinite where illegal."""
    count = len(traced.nodes)
    change = [0.0] * (count + 1)
    for index, node in enumerate(traced.nodes):
        if index in traced.replicated or not node.users:
            continue
        last = max((traced.index[user] for user in node.users if user in traced.index), default=0)
        value = graph.values[index]
        size = float(value.spec.size_bytes) if isinstance(value, Value) else 0.0
        if last > index:
            change[index + 1] += size
            change[last + 1] -= size
    return [
        total if position in traced.cuts or position in (0, count) else float("inf")
        for position, total in enumerate(accumulate(change))
    ]


def op_work(ops: tuple[Op, ...], batch: int, policy: BlockPolicy) -> list[float]:
    """Relative cost of every op, forward and backward, in FLOP equivalents."""
    return [
        op.forward_flop.at(batch)
        + op.backward_flop.at(batch)
        + policy.flop_per_byte * (op.forward_bytes.at(batch) + op.backward_bytes.at(batch))
        + policy.flop_per_kernel * op.kernels
        for op in ops
    ]


def choose_cuts(
    traced: TracedTask, graph: CountedGraph, signature: Signature, policy: BlockPolicy
) -> tuple[Cuts, dict[int, str]]:
    """Cut positions of a chain of blocks that covers all ops.

    Args:
        traced: The task.
        graph: Its counted ops.
        signature: Hash of a range of ops, equal for repeated layers.
        policy: How fine.

    Returns:
        Positions ``0 = c0 < c1 < ... = len(ops)``, and the names of blocks that are one module
        (by first op).
    """
    return _Cutter(traced, graph, signature, policy).run()


class _Cutter:
    def __init__(
        self, traced: TracedTask, graph: CountedGraph, signature: Signature, policy: BlockPolicy
    ) -> None:
        self._ops = graph.ops
        self._policy = policy
        self._signature = signature
        work = op_work(graph.ops, traced.batch, policy)
        self._sums = [0.0, *accumulate(work)]
        self._crossing = crossing_bytes(traced, graph)
        self._segments = ModuleTree(
            traced,
            graph.ops,
            work,
            self._crossing,
            large=policy.large_share,
            slack=policy.width_slack,
            layer_kernels=policy.layer_kernels,
        ).segments()
        self._names: dict[int, str] = {}

    def run(self) -> tuple[Cuts, dict[int, str]]:
        """Layers, then gaps between them, then refine or coarsen."""
        units = self._with_glue(self._units())
        self._names = {unit.first: unit.path for unit in units}
        cuts = {0, len(self._ops)}
        end = 0
        for unit in [*units, Segment(len(self._ops), len(self._ops), "", False)]:
            if unit.first > end:
                cuts |= {end, *self._pieces(end, unit.first)}
            cuts |= {unit.first, unit.stop}
            end = unit.stop
        chain = self._without_idle(sorted(cuts))
        chain = self._join_small(chain)
        chain = self._refine(chain)
        return self._coarsen(chain), self._names

    def _work(self, first: int, stop: int) -> float:
        return self._sums[stop] - self._sums[first]

    def _legal(self, position: int) -> bool:
        return self._crossing[position] != float("inf")

    def _units(self) -> list[Segment]:
        """Repeated layers whose ends are legal cuts."""
        return [
            s for s in self._segments if s.repeats and self._legal(s.first) and self._legal(s.stop)
        ]

    def _with_glue(self, units: list[Segment]) -> list[Segment]:
        """Give every layer of a stack the ops that follow each of them (a residual addition)."""
        result = list(units)
        for i, unit in enumerate(units[:-1]):
            gap = range(unit.stop, units[i + 1].first)
            if gap and self._stacked(unit, units[i + 1]):
                result[i] = Segment(unit.first, gap.stop, unit.path, True)
        for i, unit in enumerate(units):
            grown = result[i - 1].stop - units[i - 1].stop if i else 0
            if result[i] is unit and grown and self._stacked(units[i - 1], unit):
                after = self._targets(unit.stop, unit.stop + grown)
                limit = units[i + 1].first if i + 1 < len(units) else len(self._ops)
                same = after == self._targets(units[i - 1].stop, result[i - 1].stop)
                if same and unit.stop + grown <= limit and self._legal(unit.stop + grown):
                    result[i] = Segment(unit.first, unit.stop + grown, unit.path, True)
        return result

    def _stacked(self, a: Segment, b: Segment) -> bool:
        same_parent = a.path.rpartition(".")[0] == b.path.rpartition(".")[0]
        return same_parent and self._targets(a.first, a.stop) == self._targets(b.first, b.stop)

    def _targets(self, first: int, stop: int) -> list[str]:
        return [op.target for op in self._ops[first:stop]]

    def _pieces(self, first: int, stop: int) -> Cuts:
        """Cuts inside a gap: pieces of about equal work at positions that few bytes cross."""
        policy = self._policy
        target = policy.piece_share * self._sums[-1]
        pieces = round(self._work(first, stop) / target)
        limit = self._width_limit(first, stop)
        cuts: Cuts = []
        for i in range(1, pieces):
            goal = self._sums[first] + self._work(first, stop) * i / pieces
            half = self._work(first, stop) / pieces / 2
            place = self._cheapest(first, stop, goal, half, limit)
            if place is not None and place not in cuts:
                cuts.append(place)
        return cuts

    def _width_limit(self, first: int, stop: int) -> float:
        ends = max(self._crossing[first], self._crossing[stop])
        if ends == 0:
            inside = [c for c in self._crossing[first + 1 : stop] if c != float("inf")]
            ends = median(inside) if inside else 0.0
        return ends * self._policy.width_slack

    def _cheapest(
        self, first: int, stop: int, goal: float, half: float, limit: float
    ) -> int | None:
        """Position near a point of the work axis that the fewest bytes cross, then the nearest."""
        near = [
            p
            for p in range(first + 1, stop)
            if abs(self._sums[p] - goal) <= half and self._crossing[p] <= limit
        ]
        return min(
            near, key=lambda p: (self._crossing[p], abs(self._sums[p] - goal)), default=None
        )

    def _without_idle(self, cuts: Cuts) -> Cuts:
        """Join blocks that launch no kernel (views, parameters) to the one before."""
        kept = [cuts[0]]
        for first, stop in pairwise(cuts):
            if stop == cuts[-1] or any(op.kernels for op in self._ops[first:stop]):
                kept.append(stop)
            elif len(kept) > 1:
                kept[-1] = stop
        return kept

    def _join_small(self, cuts: Cuts) -> Cuts:
        limit = self._policy.small_share * self._sums[-1]
        kept = [cuts[0]]
        for first, stop in pairwise(cuts):
            begin = kept[-2] if len(kept) > 1 else first
            both_small = self._work(begin, first) < limit and self._work(first, stop) < limit
            if len(kept) > 1 and both_small:
                kept[-1] = stop
            else:
                kept.append(stop)
        return kept

    def _refine(self, cuts: Cuts) -> Cuts:
        """Halve the largest blocks, all equal ones alike, until there are enough."""
        stuck: set[str] = set()
        while len(cuts) - 1 < self._policy.fewest:
            spans = [(a, b, self._signature(a, b)) for a, b in pairwise(cuts)]
            open_spans = [s for s in spans if s[2] not in stuck and self._divisible(s[0], s[1])]
            if not open_spans:
                break
            first, stop, key = max(open_spans, key=lambda s: self._work(s[0], s[1]))
            middle = self._middle(first, stop)
            if middle is None:
                stuck.add(key)
                continue
            cuts = sorted({*cuts, *(a + middle for a, _, other in spans if other == key)})
        return cuts

    def _divisible(self, first: int, stop: int) -> bool:
        kernels = sum(op.kernels for op in self._ops[first:stop])
        share = self._work(first, stop) / self._sums[-1]
        return kernels >= 4 and share > self._policy.piece_share / 2

    def _middle(self, first: int, stop: int) -> int | None:
        """Offset of the best cut inside a block, ``None`` when no cut is cheap enough."""
        half = self._work(first, stop) / 2
        limit = self._width_limit(first, stop)
        goal = self._sums[first] + half
        place = self._cheapest(first, stop, goal, 0.7 * half, limit)
        return None if place is None else place - first

    def _coarsen(self, cuts: Cuts) -> Cuts:
        """Join neighbours, equal ones in equal groups, until there are few enough."""
        while len(cuts) - 1 > self._policy.most:
            keys = [self._signature(a, b) for a, b in pairwise(cuts)]
            common = Counter(keys)
            singles = [
                i for i in range(len(keys) - 1) if common[keys[i]] + common[keys[i + 1]] < 5
            ]
            if singles:
                smallest = min(singles, key=lambda i: self._work(cuts[i], cuts[i + 2]))
                cuts = [c for i, c in enumerate(cuts) if i != smallest + 1]
                continue
            kept = [cuts[0]]
            open_pair = False
            for i, stop in enumerate(cuts[1:]):
                open_pair = not open_pair and i + 1 < len(keys) and keys[i] == keys[i + 1]
                if not open_pair:
                    kept.append(stop)
            if len(kept) == len(cuts):
                break
            cuts = kept
        return cuts
