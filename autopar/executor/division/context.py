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
weighted by the number on each rank. An op that mixes positions in another way is refused.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch.fx import Node
from torch.fx.node import map_arg

from autopar.core.errors import InputError
from autopar.executor.division import context_rules as rules
from autopar.executor.division.along import Along
from autopar.executor.division.collectives import Collectives
from autopar.executor.division.context_attention import attend, is_attention, lengths
from autopar.executor.division.editor import Divided, Editor, value_of
from autopar.executor.division.ops import name_of, shape_of, with_arguments
from autopar.executor.division.zigzag import Zigzag

Term = Literal["term"]
State = Along | Term | None
"""Divided along the sequence; a term whose mean over the ranks is the value; or whole."""

_ENTRANCES = {"embedding": 1, "linear": 0}
"""Ops that read token ids or features -> position of that argument."""
_SEQUENCE_RANK = 3


def divide_sequences(divided: Divided, calls: Collectives) -> Divided:
    """The graph of one of the ranks that share sequences out.

    Args:
        divided: The graph so far.
        calls: Collectives of the context parallel group.

    Raises:
        InputError: There is no attention to divide, a length cannot be divided, or an op mixes
            positions; names it.
    """
    return ContextPass(divided, calls).run()


class ContextPass:
    """Walks the ops and tracks where each value has the sequence.

    Args:
        divided: The graph so far.
        calls: Collectives of the context parallel group.

    Attributes:
        zigzag: Calls that move positions.
        editor: The graph under construction.
        masks: Causal masks made so far: (first query, one past the last, keys) -> node.
    """

    def __init__(self, divided: Divided, calls: Collectives) -> None:
        self.zigzag = Zigzag(calls)
        self.editor = Editor(divided, "cp", self.zigzag.count)
        self.masks: dict[tuple[int, int, int], Node] = {}
        self._states: dict[Node, State] = {}
        self._read: dict[tuple[Node, State], Node] = {}
        self._lengths = lengths(self.editor.traced.nodes)

    def run(self) -> Divided:
        """Rewrite."""
        self._check_lengths()
        traced = self.editor.traced
        attended = False
        for index, node in enumerate(traced.nodes):
            self.editor.begin(index)
            states = [s for s in map(self.state, node.all_input_nodes) if s is not None]
            if "term" in states and not rules.keeps_terms(node, self.state):
                states = [s for s in states if s != "term"]
            if is_attention(node) and states:
                self._states[node] = attend(self, node)
                attended = True
            elif "term" in states:
                self._emit_terms(node)
            elif states:
                self._states[node] = rules.divide(self, node)
            else:
                self._whole(index, node)
        if not attended:
            raise InputError(
                f"no sequence of task '{traced.task.name}' reaches its attention divided over "
                f"cp={self.zigzag.count}",
                hint="put samples on dimension 0 and tokens on dimension 1, or use cp=1",
            )
        return self.editor.finish()

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

    def refuse(self, node: Node) -> InputError:
        """The error for an op that mixes positions."""
        return InputError(
            f"op '{node.name}' ({node.target}) mixes positions of the sequence, which "
            f"cp={self.zigzag.count} divides",
            hint="use cp=1",
        )

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
        assert here.outer == here.inner == 1, f"{source} has the sequence as a factor"
        return self.editor.emit(
            self.zigzag.whole,
            (local, here.dim),
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
        entrance = self._entrance(node)
        if entrance is not None:
            source, along = entrance
            self.emit(node, {source: along})
            self._states[node] = along
            return
        self.emit(node, {})
        shape = shape_of(node)
        begins = len(shape) == _SEQUENCE_RANK and shape[1] in self._lengths
        tensor = isinstance(value_of(node), torch.Tensor)
        if begins and tensor and index in self.editor.traced.needs_gradient:
            along = Along(dim=1, length=shape[1])
            local = self.editor.local(node)
            cut = self.editor.emit(self.zigzag.part, (local, 1, 1, shape[1]))
            self.editor.define(node, cut)
            self._states[node] = along

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
