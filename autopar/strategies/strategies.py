"""Everything about dividing one profile: which splits it allows, what each leaves of blocks."""

from __future__ import annotations

from collections import defaultdict
from functools import cached_property

from autopar.graph import Amount, Block, GraphProfile, Op
from autopar.strategies.autocast import Autocast
from autopar.strategies.context import ContextSplit
from autopar.strategies.division import Division
from autopar.strategies.expert import ExpertSplit
from autopar.strategies.matmul import Products
from autopar.strategies.parts import BlockOps, Place, PlaceSums, larger
from autopar.strategies.split import Split
from autopar.strategies.tensor import Collective, TensorSplit
from autopar.strategies.work import BlockWork

CLASS_LOSSES = frozenset(
    {
        "aten.cross_entropy_loss.default",
        "aten.log_softmax.int",
        "aten._log_softmax.default",
    }
)
"""Ops of losses over classes; they make float32 copies of what they read."""
_NOTHING = Amount()
_Kind = tuple[str, Amount, tuple[tuple[bool, bool, bool, int], ...]]
"""Signature, backward bytes, and per op: works on a part, ends parts, is computed whole by context
ranks, collectives."""


class Strategies:
    """Everything about dividing the ops of one profile.

    Args:
        profile: The traced graph.
    """

    def __init__(self, profile: GraphProfile) -> None:
        self.profile = profile
        self.products = Products(profile)
        self.undivided: dict[int, BlockWork] = {}
        """Blocks that were looked at, whole, by index."""
        self._works: dict[Split, tuple[BlockWork, ...]] = {}
        self._ops: dict[int, BlockOps] = {}

    @cached_property
    def item_bytes(self) -> float:
        """Bytes of a parameter element in the profile."""
        counts = self.profile.parameter_count
        return self.profile.parameter_bytes / counts if counts else 4

    @cached_property
    def autocast(self) -> Autocast:
        """What ops move under autocast."""
        return Autocast(self.products)

    @cached_property
    def tensor(self) -> TensorSplit:
        """Tensor parallelism."""
        return TensorSplit(self.products)

    @cached_property
    def context(self) -> ContextSplit:
        """Context parallelism."""
        return ContextSplit(self.products)

    @cached_property
    def expert(self) -> ExpertSplit:
        """Expert parallelism."""
        return ExpertSplit(self.products)

    def why_not(self, split: Split) -> str | None:
        """Why the model cannot be divided so, or ``None``."""
        reason = None
        if split.tp > 1:
            reason = self.tensor.why_not(split.tp)
        if reason is None and split.sequence_parallel:
            reason = self._why_not_sequence(split)
        if reason is None and split.cp > 1:
            reason = self.context.why_not(split.cp)
        if reason is None and split.ep > 1:
            reason = self.expert.why_not(split.ep)
        return reason

    def _why_not_sequence(self, split: Split) -> str | None:
        if split.tp == 1:
            return "sequence parallelism needs tp of 2 or more"
        if not self.context.length:
            return "the model has no sequence to divide"
        if self.context.length % (split.tp * split.cp):
            own = f"the part of cp={split.cp} of " if split.cp > 1 else ""
            return f"tp={split.tp} does not divide {own}sequences of {self.context.length}"
        return None

    def elements(self, split: Split, parameter: str) -> float:
        """Elements of a parameter on one rank."""
        count = float(self.profile.parameters[parameter][0])
        if split.ep > 1 and parameter in self.expert.parameters:
            count /= split.ep
        if split.tp > 1 and parameter in self.tensor.parameters:
            count /= split.tp
        return count

    def works(self, split: Split) -> tuple[BlockWork, ...]:
        """One entry per block; blocks of equal :attr:`kinds` share theirs."""
        if split not in self._works:
            known = [Division(self, split, block).work() for block in self._first_of_kind]
            self._works[split] = tuple(known[number] for number in self._kind_numbers)
        return self._works[split]

    def block_ops(self, block: Block) -> BlockOps:
        """The ops of a block."""
        if block.index not in self._ops:
            self._ops[block.index] = self._look_at(block)
        return self._ops[block.index]

    def _look_at(self, block: Block) -> BlockOps:
        ops = tuple(self.profile.ops[block.first_op : block.stop_op])
        tensor, whole = self.tensor, self.context.whole
        places = tuple(
            Place(op.index in tensor.divided, op.index in tensor.rows, op.index in whole)
            for op in ops
        )
        at: dict[Place, list[Op]] = defaultdict(list)
        for op, place in zip(ops, places, strict=True):
            at[place].append(op)
        matmuls = [(i, self.products.matmul(op)) for i, op in enumerate(ops)]
        attention = [(i, self.products.attention(op)) for i, op in enumerate(ops)]
        return BlockOps(
            ops=ops,
            places=places,
            sums={place: self._sums(some) for place, some in at.items()},
            collectives={
                key: tuple((op, item) for op in ops for item in by_op.get(op.index, ()))
                for key, by_op in self.collectives.items()
            },
            matmuls=tuple((i, matmul) for i, matmul in matmuls if matmul is not None),
            attention=tuple((i, call) for i, call in attention if call is not None),
            weights=tuple(
                dict.fromkeys(
                    n for op in ops if op.forward_flop != _NOTHING for n in op.parameters
                )
            ),
            casts=sum(self.autocast.moved(op).casts for op in ops),
        )

    def _sums(self, ops: list[Op]) -> PlaceSums:
        streams = [op for op in ops if op.forward_flop == _NOTHING]
        products = [op for op in ops if op.forward_flop != _NOTHING]
        losses = [op for op in ops if op.target in CLASS_LOSSES]
        moved = [self.autocast.moved(op) for op in ops]
        return PlaceSums(
            forward_bytes=Amount.total([op.forward_bytes for op in streams]),
            backward_bytes=Amount.total([op.backward_bytes for op in streams]),
            autocast_forward_bytes=Amount.total([each.forward_bytes for each in moved]),
            autocast_backward_bytes=Amount.total([each.backward_bytes for each in moved]),
            saved_bytes=Amount.total([op.saved_bytes for op in ops]),
            product_bytes=Amount.total(
                [larger(op.saved_bytes, op.output_bytes) for op in products]
            ),
            loss_bytes=Amount.total([larger(op.saved_bytes, op.output_bytes) for op in losses]),
            flop=sum(op.forward_flop.at(self.profile.batch) for op in products),
        )

    @cached_property
    def _kind_numbers(self) -> tuple[int, ...]:
        """Number of every block's kind, in the order kinds first occur."""
        numbers: dict[_Kind, int] = {}
        return tuple(numbers.setdefault(kind, len(numbers)) for kind in self.kinds)

    @cached_property
    def _first_of_kind(self) -> tuple[Block, ...]:
        found: dict[int, Block] = {}
        for number, block in zip(self._kind_numbers, self.profile.blocks, strict=True):
            found.setdefault(number, block)
        return tuple(found.values())

    @cached_property
    def kinds(self) -> tuple[_Kind, ...]:
        """What decides a block's work: its signature and how it stands among other blocks.

        Repeated blocks may differ in how many later ops read their result, whose gradients
        backward adds up, and in their part in tensor parallelism: in a chain of equal layers
        columns and rows take turns.
        """
        tensor, whole = self.tensor, self.context.whole
        sums, gathers = self.collectives["tp", False], self.collectives["cp", False]
        sent = {op: len(sums.get(op, ())) + len(gathers.get(op, ())) for op in {*sums, *gathers}}
        return tuple(
            (
                block.signature,
                block.backward_bytes,
                tuple(
                    (op in tensor.divided, op in tensor.rows, op in whole, sent.get(op, 0))
                    for op in range(block.first_op, block.stop_op)
                ),
            )
            for block in self.profile.blocks
        )

    @cached_property
    def shared_parameters(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Parameters that several blocks read, and these blocks."""
        readers: dict[str, list[int]] = defaultdict(list)
        for block in self.profile.blocks:
            for name in block.parameters:
                readers[name].append(block.index)
        return tuple((name, tuple(found)) for name, found in readers.items() if len(found) > 1)

    @cached_property
    def collectives(self) -> dict[tuple[str, bool], dict[int, list[Collective]]]:
        """``(axis, sequence parallel)`` -> op -> collectives."""
        found: dict[tuple[str, bool], dict[int, list[Collective]]] = {}
        for key, items in (
            (("tp", False), self.tensor.collectives(sequence_parallel=False)),
            (("tp", True), self.tensor.collectives(sequence_parallel=True)),
            (("cp", False), self.context.collectives()),
            (("ep", False), self.expert.collectives()),
        ):
            by_op: dict[int, list[Collective]] = defaultdict(list)
            for item in items:
                by_op[item.op].append(item)
            found[key] = by_op
        return found
