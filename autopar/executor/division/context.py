"""Context parallelism: a rank works on its part of every sequence.

All ranks of a group make the same samples. Token ids and positions are cut where they enter the
model (:mod:`~autopar.executor.division.zigzag` says which positions a rank has); a sequence that
the model itself makes (patches of an image) is cut where it is whole for the first time. From
there each value has the rank's positions only. Attention gathers keys and values, backward
scatters the sums of their gradients, and queries stay.

A rank's loss counts as one term of a mean over the group, as the losses of replicas do, so the
gradients of all parameters are averaged over the data ranks, the group included. Values that
come out of all positions (a loss, a mean, one selected token) are such *terms* too: linear ops
leave them so, anything else first gets their mean. A mean over tokens that are not all counted is
weighted by the number on each rank.

An op that mixes positions in another way gets all of them: its operands are gathered, every rank
computes it whole, and its result is cut again where it has the sequence as they had it. What
makes this right for any op is that every call here has its true adjoint in backward, so that a
rank's gradients are those of the sum of all ranks' losses. It is slow, so a warning names them.
Products of a whole value with a stack of experts are shared out by rows.
"""

from __future__ import annotations

from collections import Counter
from typing import Literal

import torch
from torch.fx import Node
from torch.fx.node import map_arg

from autopar.core.errors import InputError
from autopar.executor.division import context_rules as rules
from autopar.executor.division.along import Along
from autopar.executor.division.collectives import Collectives
from autopar.executor.division.context_attention import attend, is_attention, lengths
from autopar.executor.division.context_operands import MixesError
from autopar.executor.division.editor import Divided, Editor, value_of
from autopar.executor.division.ops import name_of, shape_of, with_arguments, written
from autopar.executor.division.zigzag import Zigzag
from autopar.trace.cleanup import storage_roots

Term = Literal["term"]
State = Along | Term | None
"""Divided along the sequence; a term whose mean over the ranks is the value; or whole."""

_ENTRANCES = {"embedding": 1, "linear": 0}
"""Ops that read token ids or features -> position of that argument."""
_STACKED = ("bmm", "matmul")
_SEQUENCE_RANK = 3


def divide_sequences(divided: Divided, calls: Collectives, warnings: list[str]) -> Divided:
    """The graph of one of the ranks that share sequences out.

    Args:
        divided: The graph so far.
        calls: Collectives of the context parallel group.
        warnings: Takes what every rank computes whole.

    Raises:
        InputError: There is no attention to divide, a length cannot be divided, or an op writes
            into a value of which another rank has a part; names it.
    """
    divider = ContextPass(divided, calls)
    result = divider.run()
    if divider.mixing:
        counts = Counter(name_of(node) for node in divider.mixing)
        names = ", ".join(f"{name} ({count}x)" for name, count in sorted(counts.items()))
        warnings.append(
            "cp: ops that mix positions of the sequence are computed whole on every rank, after "
            f"gathering what they read: {names}"
        )
    return result


class ContextPass:
    """Walks the ops and tracks where each value has the sequence.

    Args:
        divided: The graph so far.
        calls: Collectives of the context parallel group.

    Attributes:
        zigzag: Calls that move positions.
        editor: The graph under construction.
        masks: Causal masks made so far: (first query, one past the last, keys) -> node.
        attended: Some attention works on a part of the sequence.
        mixing: Ops that every rank computes whole because they mix positions.
    """

    def __init__(self, divided: Divided, calls: Collectives) -> None:
        self.zigzag = Zigzag(calls)
        self.editor = Editor(divided, "cp", self.zigzag.count)
        self.masks: dict[tuple[int, int, int], Node] = {}
        self.attended = False
        self.mixing: list[Node] = []
        self._states: dict[Node, State] = {}
        self._read: dict[tuple[Node, State], Node] = {}
        self._lengths = lengths(self.editor.traced)
        self._roots = storage_roots(self.editor.traced.module)
        self._copied: set[Node] = set()

    def run(self) -> Divided:
        """Rewrite."""
        self._check_lengths()
        traced = self.editor.traced
        for index, node in enumerate(traced.nodes):
            self.editor.begin(index)
            self._divide(index, node)
        if not self.attended:
            raise InputError(
                f"no sequence of task '{traced.task.name}' reaches its attention divided over "
                f"cp={self.zigzag.count}",
                hint="put samples on dimension 0 and tokens on dimension 1, or use cp=1",
            )
        return self.editor.finish()

    def _divide(self, index: int, node: Node) -> None:
        self._check_writing(node)
        states = [s for s in map(self.state, node.all_input_nodes) if s is not None]
        if "term" in states and not rules.keeps_terms(node, self.state):
            states = [s for s in states if s != "term"]
        if "term" in states:
            self._emit_terms(node)
        elif states:
            try:
                rule = attend if is_attention(node) else rules.divide
                self._states[node] = rule(self, node)
            except MixesError:
                self._gathered(index, node)
        else:
            self._whole(index, node)

    def _check_lengths(self) -> None:
        task, count = self.editor.traced.task.name, self.zigzag.count
        if not self._lengths:
            raise InputError(
                f"task '{task}' has no attention over a sequence to divide over cp={count}",
                hint="use cp=1",
            )
        for length in sorted(self._lengths):
            if length % (2 * count):
                raise InputError(
                    f"cp={count} needs sequences of a multiple of {2 * count}, task '{task}' has "
                    f"one of {length}",
                    hint="pad the sequence, or use cp=1",
                )

    def state(self, node: Node) -> State:
        """How a value of the whole graph is on this rank."""
        return self._states.get(node)

    def read(self, source: Node, wanted: State) -> Node:
        """A value as an op wants it: as it is, cut, or made whole.

        Args:
            source: Node of the whole graph.
            wanted: ``None`` for whole.
        """
        here = self.state(source)
        if here == wanted:
            local: Node = self.editor.local(source)
            return local
        if (source, wanted) not in self._read:
            self._read[source, wanted] = self._moved(source, here, wanted)
        return self._read[source, wanted]

    def _moved(self, source: Node, here: State, wanted: State) -> Node:
        local, value = self.editor.local(source), value_of(source)
        if isinstance(wanted, Along):
            assert here is None, f"{source} is {here}, wanted {wanted}"
            return self.editor.emit(
                self.zigzag.part, (local, wanted.dim, wanted.outer, wanted.length)
            )
        if here == "term":
            return self.editor.emit(
                self.zigzag.mean, (local,), value=self.editor.fake(value.shape, value.dtype)
            )
        assert isinstance(here, Along), f"{source} is {here}, wanted {wanted}"
        return self.editor.emit(
            self.zigzag.whole,
            (local, here.dim, here.outer),
            value=self.editor.fake(value.shape, value.dtype),
        )

    def emit(
        self, node: Node, wanted: dict[Node, State], *, terms: bool = False, **sizes: object
    ) -> Node:
        """An op of the whole graph with its operands as wanted.

        Args:
            node: The op.
            wanted: Source -> state; divided as they are if absent.
            terms: Leave terms as they are instead of reading their mean.
            sizes: Arguments by name that replace the op's own.
        """
        args, kwargs = with_arguments(node, **sizes) if sizes else (node.args, node.kwargs)

        def local(source: Node) -> Node:
            here = self.state(source)
            return self.read(
                source, wanted.get(source, None if here == "term" and not terms else here)
            )

        emitted = self.editor.emit(
            node.target,  # type: ignore[arg-type]
            map_arg(args, local),
            map_arg(kwargs, local),
        )
        emitted.meta = {**node.meta, "val": emitted.meta["val"]}
        self.editor.define(node, emitted)
        return emitted

    def scaled(self, node: Node, factor: float) -> None:
        """Multiply what stands for an op by a number."""
        local = self.editor.local(node)
        self.editor.define(node, self.editor.emit(torch.ops.aten.mul.Tensor, (local, factor)))

    def _emit_terms(self, node: Node) -> None:
        self.emit(node, {}, terms=True)
        self._states[node] = "term"

    def _whole(self, index: int, node: Node) -> None:
        """An op whose operands are whole; the sequence may begin at it."""
        entrance = self._entrance(node) or self._stacked(node)
        if entrance is not None:
            source, along = entrance
            self.emit(node, {source: along})
            self._states[node] = along
            return
        self.emit(node, {})
        self._begin(index, node)

    def _begin(self, index: int, node: Node) -> None:
        """Cut a whole result that has a sequence as dimension 1."""
        shape = shape_of(node)
        begins = len(shape) == _SEQUENCE_RANK and shape[1] in self._lengths
        tensor = isinstance(value_of(node), torch.Tensor)
        if begins and tensor and index in self.editor.traced.needs_gradient:
            self._cut(node, Along(dim=1, length=shape[1]))

    def _cut(self, node: Node, along: Along) -> None:
        """From here on a rank has its part of what it computed whole."""
        place = (along.dim, along.outer, along.length)
        local = self.editor.local(node)
        self.editor.define(node, self.editor.emit(self.zigzag.part, (local, *place)))
        self._note_copy(node)
        self._states[node] = along

    def _gathered(self, index: int, node: Node) -> None:
        """An op that mixes positions: on whole operands, its result cut as they were."""
        here = {s: a for s in node.all_input_nodes if isinstance(a := self.state(s), Along)}
        if any(source in here for source in written(node)):
            raise self._writes(node)
        if any(along.length in self._lengths for along in here.values()):
            self.mixing.append(node)
        self.emit(node, dict.fromkeys(node.all_input_nodes))
        self._note_copy(node)
        shape = shape_of(node)
        for source, along in here.items():
            alike = len(shape) == len(shape_of(source)) and shape[along.dim] == along.size
            if alike and isinstance(value_of(node), torch.Tensor):
                self._cut(node, along)
                return
        self._begin(index, node)

    def _note_copy(self, node: Node) -> None:
        """A view of another value that has storage of its own here."""
        if self._roots[node] is not node:
            self._copied.add(self._roots[node])

    def _check_writing(self, node: Node) -> None:
        """Refuse an op in place that would miss a copy which the model's view is here.

        Raises:
            InputError: Names the op.
        """
        if any(self._roots[operand] in self._copied for operand in written(node)):
            raise self._writes(node)

    def _writes(self, node: Node) -> InputError:
        return InputError(
            f"op '{node.name}' ({node.target}) writes into a value, it or a view of which mixes "
            f"positions of the sequence, which cp={self.zigzag.count} divides",
            hint="use cp=1, or make a new tensor instead",
        )

    def _stacked(self, node: Node) -> tuple[Node, Along] | None:
        """Rows ``[E, C, k]`` that a stack ``[E, k, n]`` of weights multiplies, divided."""
        if name_of(node) not in _STACKED:
            return None
        tokens, stack = node.args[-2:]
        assert isinstance(tokens, Node) and isinstance(stack, Node)
        shape = shape_of(tokens)
        held = stack.op == "get_attr" and len(shape_of(stack)) == _SEQUENCE_RANK
        if not held or len(shape) != _SEQUENCE_RANK or shape[1] % (2 * self.zigzag.count):
            return None
        return tokens, Along(dim=1, length=shape[1])

    def _entrance(self, node: Node) -> tuple[Node, Along] | None:
        """Ids, positions or features that an op reads whole, and where their sequence is."""
        place = _ENTRANCES.get(name_of(node))
        if place is None:
            return None
        source = node.args[place]
        assert isinstance(source, Node)
        shape = shape_of(source)
        least = 1 if name_of(node) == "embedding" else _SEQUENCE_RANK
        dim = min(1, len(shape) - 1)
        if len(shape) < least or shape[dim] not in self._lengths:
            return None
        return source, Along(dim=dim, length=shape[dim])
