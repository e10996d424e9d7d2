"""Tensor parallelism of an arbitrary traced graph: which ops are divided, what is sent.

A product with a weight whose input is whole may be divided by output columns. What follows works
on the rank's part (elementwise ops, attention by heads, per-channel normalisation) until a second
product, divided by input rows, whose partial results are summed (Shoeybi et al. 2019, arXiv
1909.08053). A column whose part would reach an op that needs the whole tensor is not divided: all
ranks compute it. The output layer and the loss divide the vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Literal

from autopar.graph import Amount, GraphProfile, Op
from autopar.strategies.matmul import ATTENTION, CONVOLUTIONS, Products

Role = Literal["product", "channels", "loss", "pass", "stop"]

_PASSING_NAMES = """
getitem view _unsafe_view reshape transpose permute flatten unflatten contiguous clone to
_to_copy detach alias split split_with_sizes chunk unbind slice select unsqueeze squeeze
expand repeat_interleave relu relu_ gelu silu silu_ mish sigmoid tanh hardswish hardsigmoid
leaky_relu elu softplus dropout feature_dropout mul mul_ add add_ sub div neg cat stack where
masked_fill pow exp square sqrt rsqrt clamp maximum minimum batch_norm
_native_batch_norm_legit native_batch_norm max_pool2d max_pool2d_with_indices avg_pool2d
adaptive_avg_pool2d
"""
PASSING = frozenset(_PASSING_NAMES.split())
"""Ops that work on a rank's columns, heads or channels alone."""
OVER_HEADS = {"softmax": 4, "_softmax": 4, "bmm": 3, "matmul": 3, "baddbmm": 3}
"""Ops that do so when heads are an axis of their own, and the rank that shows it."""
LOSSES = ("cross_entropy_loss", "nll_loss", "nll_loss_forward", "nll_loss_nd")
"""Losses that work on a rank's part of the vocabulary; their result is whole."""
NORMALISERS = ("cross_entropy_loss", "_log_softmax", "log_softmax")
"""Ops among and before them that need small sums over the ranks."""
JOINS = ("cat", "stack", "where")
"""Ops whose operands must all be parts, whatever their shapes."""
LOSS_SUMS = 3
"""Sums per token of a vocabulary-parallel loss: maximum, exponentials, the target's logit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Collective:
    """A collective between the ops of a block, once per microbatch.

    Attributes:
        axis: Mesh axis whose ranks take part: ``tp``, ``cp`` or ``ep``.
        kind: ``all_reduce``, ``all_gather``, ``reduce_scatter`` or ``all_to_all``.
        phase: ``forward`` or ``backward``.
        size_bytes: The full tensor, as profiled.
        op: Index of the op it belongs to.
    """

    axis: str
    kind: str
    phase: str
    size_bytes: Amount
    op: int

    def of(self, size_bytes: Amount) -> Collective:
        """The same with another size; ``dataclasses.replace`` takes longer than dividing does."""
        return Collective(
            axis=self.axis, kind=self.kind, phase=self.phase, size_bytes=size_bytes, op=self.op
        )


@lru_cache(maxsize=1024)
def short(target: str) -> str:
    """``aten.mul.Tensor`` -> ``mul``."""
    parts = target.split(".")
    return parts[1] if parts[0] == "aten" and len(parts) > 1 else parts[-1]


class TensorSplit:
    """What tensor parallelism does to a profile, for any degree.

    Args:
        products: Products of the profile's ops.
    """

    def __init__(self, products: Products) -> None:
        self.products = products
        self.profile: GraphProfile = products.profile
        self.columns, flow = self._divisible_columns()
        self.divided, self.rows = frozenset(flow.divided), frozenset(flow.rows)
        self.vocabularies = flow.in_loss - flow.in_row

    @cached_property
    def parameters(self) -> frozenset[str]:
        """Parameters of which each rank holds a part."""
        names: set[str] = set()
        for index in self.divided | self.rows | self.embeddings:
            names.update(self._weights(self.profile.ops[index]))
        return frozenset(names)

    def _weights(self, op: Op) -> tuple[str, ...]:
        """Parameters of an op that are divided; a row product keeps its bias whole."""
        if op.index in self.rows and len(op.parameters) > 1:
            return (max(op.parameters, key=lambda name: self.profile.parameters[name][0]),)
        return op.parameters

    @cached_property
    def embeddings(self) -> frozenset[int]:
        """Token embeddings, divided by vocabulary as Megatron-LM does.

        Position tables, and tables with fewer elements than a sample takes from them (token
        types), stay whole: dividing one would send more than it spares.
        """
        if not self.columns:
            return frozenset()
        tied = {name for index in self.columns for name in self.profile.ops[index].parameters}
        return frozenset(
            op.index
            for op in self.profile.ops
            if short(op.target) == "embedding"
            and op.output_bytes.per_sample > 0
            and (
                not tied.isdisjoint(op.parameters)
                or op.output_bytes.per_sample
                < sum(self.profile.parameters[name][1] for name in op.parameters)
            )
        )

    @cached_property
    def limits(self) -> tuple[tuple[int, str], ...]:
        """Counts that the degree must divide, and what they count.

        A vocabulary is none of them: it is padded to a multiple of the degree, as in Megatron-LM
        (``--make-vocab-size-divisible-by``).
        """
        found: dict[int, str] = {}
        for index in sorted(self.divided):
            op = self.profile.ops[index]
            shape = self.products.shapes.get(index, ())
            if ATTENTION in op.target and len(shape) == 4:
                found.setdefault(shape[1], "attention heads")
                for source in self.products.inputs[index]:
                    other = self.products.shapes[source]
                    if len(other) == 4 and other[1] > 1 and source in self.divided:
                        found.setdefault(other[1], "key and value heads")
            elif index in self.columns - self.vocabularies:
                matmul = self.products.matmul(op)
                if matmul is not None:
                    found.setdefault(int(matmul.n), "columns of a product")
        for index in sorted(self.rows):
            found.setdefault(self._row_inputs(index), "inputs of a product")
        return tuple(sorted(found.items()))

    def _row_inputs(self, index: int) -> int:
        """Features or channels that a row product reads; fewer than the columns if gated."""
        shapes = [self.products.shapes[s] for s in self._facts[index].sources if s in self.divided]
        shape = max(shapes, key=len)
        convolution = self.profile.ops[index].target.startswith(CONVOLUTIONS)
        return shape[1] if convolution and len(shape) > 2 else shape[-1]

    def why_not(self, tp: int) -> str | None:
        """Why the model cannot be divided over ``tp`` ranks, or ``None``."""
        if tp == 1:
            return None
        if not self.columns:
            return "no pair of products can be divided over tensor parallel ranks"
        for count, what in self.limits:
            if count % tp:
                return f"tp={tp} does not divide {count} {what}"
        return None

    def collectives(self, sequence_parallel: bool) -> list[Collective]:
        """Sums of row results forward, of column inputs' gradients backward."""
        found: list[Collective] = []
        for index in sorted(self.rows | self.embeddings):
            size = self.profile.ops[index].output_bytes
            found += self._pair(index, size, sequence_parallel, ["reduce_scatter"], ["all_gather"])
        for source, index in self._entrances():
            size = self.products.edge_bytes(source, index)
            found += self._pair(index, size, sequence_parallel, ["all_gather"], ["reduce_scatter"])
        for op in self.profile.ops:
            if op.index in self.divided and short(op.target) in NORMALISERS:
                found.append(self._loss(op))
        return found

    def _entrances(self) -> list[tuple[int, int]]:
        """Trained whole values and the first op that works on parts of what it makes of them.

        A column reads all of its input; other ops in a region read what is the same for all
        columns or heads (the one key head of multi-query attention).
        """
        first: dict[int, int] = {}
        for index in sorted(self.divided):
            for source in self.products.trained(index):
                if source not in self.divided:
                    first.setdefault(source, index)
        return sorted(first.items(), key=lambda pair: pair[1])

    def _pair(
        self,
        op: int,
        size: Amount,
        sequence_parallel: bool,
        forward: list[str],
        backward: list[str],
    ) -> list[Collective]:
        """With sequence parallelism both directions; else the one all-reduce of the two."""
        if not sequence_parallel:
            phase = "forward" if forward == ["reduce_scatter"] else "backward"
            return [Collective(axis="tp", kind="all_reduce", phase=phase, size_bytes=size, op=op)]
        return [
            Collective(axis="tp", kind=kind, phase=phase, size_bytes=size, op=op)
            for phase, kinds in (("forward", forward), ("backward", backward))
            for kind in kinds
        ]

    def _loss(self, op: Op) -> Collective:
        """Sums of one number per token; classes are axis 1 of ``cross_entropy``'s logits."""
        source = next(s for s in self.products.inputs[op.index] if s in self.divided)
        shape = self.products.shapes[source]
        classes = shape[1] if short(op.target) in LOSSES else shape[-1]
        logits = self.products.edge_bytes(source, op.index)
        size = Amount(0.0, LOSS_SUMS * logits.per_sample / classes)
        return Collective(
            axis="tp", kind="all_reduce", phase="forward", size_bytes=size, op=op.index
        )

    @cached_property
    def _facts(self) -> list[_Fact]:
        return [self._fact(op) for op in self.profile.ops]

    def _fact(self, op: Op) -> _Fact:
        sources = tuple(self.products.inputs[op.index])
        return _Fact(
            role=self._role(op),
            sources=sources,
            whole=self._whole(op, sources),
            single_heads=self._single(op),
        )

    def _single(self, op: Op) -> tuple[int, ...]:
        """Keys and values of one head that all query heads read: it cannot be divided."""
        shape = self.products.shapes.get(op.index, ())
        if ATTENTION not in op.target or len(shape) != 4 or shape[1] == 1:
            return ()
        shapes = {s: self.products.shapes[s] for s in self.products.trained(op.index)}
        return tuple(s for s, other in shapes.items() if len(other) == 4 and other[1] == 1)

    def _role(self, op: Op) -> Role:
        """What an op does with a part."""
        matmul, name = self.products.matmul(op), short(op.target)
        rank = len(self.products.shapes.get(op.index, ()))
        if matmul is not None and matmul.weight:
            return "channels" if matmul.grouped else "product"
        if name in LOSSES:
            return "loss"
        if ATTENTION in op.target:
            return "pass"
        if name in OVER_HEADS:
            one_head = rank == 3 and self.products.shapes[op.index][0] == self.profile.batch
            return "pass" if rank >= OVER_HEADS[name] and not one_head else "stop"
        return "pass" if name in PASSING or name in NORMALISERS else "stop"

    def _whole(self, op: Op, sources: tuple[int, ...]) -> frozenset[int]:
        """Operands that must be parts if another is: not those broadcast over the divided axis."""
        ops, shapes = self.profile.ops, self.products.shapes
        own, joins = shapes.get(op.index), short(op.target) in JOINS
        found = []
        for source in sources:
            shape = shapes[source]
            matters = joins or (shape[-1:] != (1,) and own in (None, shape))
            if matters and len(shape) > 1 and not ops[source].replicated:
                found.append(source)
        return frozenset(found)

    def _divisible_columns(self) -> tuple[frozenset[int], _Flow]:
        """The largest set of columns whose parts never reach an op that needs the whole.

        Starting from all products with a weight, those that lead to a conflict, and those whose
        parts end in no second product and no loss, are taken out until none is left. Where the
        parts of the rest go comes second.
        """
        columns = {i for i, fact in enumerate(self._facts) if fact.role == "product"}
        while True:
            flow = self._follow(columns)
            wanted = (columns & flow.started & (flow.in_row | flow.in_loss)) - flow.conflicting
            if wanted == columns:
                return frozenset(columns), flow
            columns = wanted

    def _follow(self, columns: set[int]) -> _Flow:
        """Follow the parts of some columns through the graph."""
        flow = _Flow()
        origins: dict[int, frozenset[int]] = {}
        for index, fact in enumerate(self._facts):
            parts = [origins[s] for s in fact.sources if s in origins]
            if not parts:
                if index in columns:
                    flow.started.add(index)
                    flow.divided.add(index)
                    origins[index] = frozenset({index})
                continue
            mine = parts[0] if len(parts) == 1 else frozenset().union(*parts)
            for source in fact.single_heads:
                flow.conflicting |= origins.get(source, frozenset())
            if fact.role == "product":
                flow.rows.add(index)
                flow.in_row |= mine
            elif fact.role == "loss":
                flow.divided.add(index)
                flow.in_loss |= mine
            elif fact.role == "channels" or (fact.role == "pass" and fact.whole <= origins.keys()):
                flow.divided.add(index)
                origins[index] = mine
            else:
                flow.conflicting |= mine
        return flow


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fact:
    """What following parts needs to know of an op.

    Attributes:
        role: See :meth:`TensorSplit._role`.
        sources: Ops it reads.
        whole: Those of them that must be parts when another one is.
        single_heads: Those of them that must be whole.
    """

    role: Role
    sources: tuple[int, ...]
    whole: frozenset[int]
    single_heads: tuple[int, ...]


@dataclass(slots=True)
class _Flow:
    """Where parts go.

    Attributes:
        started: Columns that read whole tensors.
        divided: Ops that work on parts, columns included.
        rows: Products that end parts.
        in_row: Columns whose parts reach a row.
        in_loss: Columns whose parts reach a loss.
        conflicting: Columns whose parts reach an op that needs the whole.
    """

    started: set[int] = field(default_factory=set)
    divided: set[int] = field(default_factory=set)
    rows: set[int] = field(default_factory=set)
    in_row: frozenset[int] = frozenset()
    in_loss: frozenset[int] = frozenset()
    conflicting: frozenset[int] = frozenset()
