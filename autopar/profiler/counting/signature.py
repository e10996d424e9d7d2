"""When are two runs of ops the same work? A hash of structure, shapes and gradients."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import Node
from torch.utils import _pytree as pytree

from autopar.core.io import content_hash
from autopar.profiler.counting.dataflow import CountedGraph, Value, target_name
from autopar.trace import TracedTask
from autopar.trace.fragment import exports_of


def signature(traced: TracedTask, graph: CountedGraph, first: int, stop: int) -> str:
    """Hash of ops ``[first, stop)`` that is equal for repeated layers.

    It covers op targets, scalar arguments, who reads whose result (relative to the run), the
    layout and gradient flags of everything that enters, and which results later ops read.
    """
    writer = _Writer(traced, graph, first)
    rows = [writer.row(traced.nodes[index]) for index in range(first, stop)]
    exports = [index - first for index in exports_of(traced, first, stop)]
    return content_hash({"rows": rows, "exports": exports})


class _Writer:
    """Rows of plain JSON values in which names are replaced by order of first use."""

    def __init__(self, traced: TracedTask, graph: CountedGraph, first: int) -> None:
        self._traced = traced
        self._graph = graph
        self._first = first
        self._outside: dict[Node, int] = {}

    def row(self, node: Node) -> list[Any]:
        """One op."""
        arguments = pytree.tree_map(
            self._argument,
            (list(node.args), dict(node.kwargs)),
            is_leaf=lambda leaf: isinstance(leaf, Node | slice),
        )
        return [target_name(node), *arguments]

    def _argument(self, leaf: Any) -> Any:
        if isinstance(leaf, Node):
            return self._reference(leaf)
        if isinstance(leaf, slice):
            return [str(leaf.start), str(leaf.stop), str(leaf.step)]
        return leaf if isinstance(leaf, bool | int | str | None) else str(leaf)

    def _reference(self, node: Node) -> list[Any]:
        index = self._traced.index.get(node)
        if index is not None and index >= self._first:
            return ["op", index - self._first]
        place = self._outside.setdefault(node, len(self._outside))
        if node.op == "get_attr":
            tensor = operator.attrgetter(str(node.target))(self._traced.module)
            kind = "parameter" if isinstance(tensor, torch.nn.Parameter) else "buffer"
            return [kind, place, list(tensor.shape), str(tensor.dtype), tensor.requires_grad]
        if index is None:
            value = node.meta["val"]
            return ["batch", place, list(value.shape), str(value.dtype)]
        kind = "mask" if index in self._traced.replicated else "import"
        return [kind, place, _layout(self._graph.values[index])]


def _layout(value: Value | list[Value] | None) -> list[Any]:
    if isinstance(value, list):
        return [_layout(v) for v in value]
    if not isinstance(value, Value):
        return []
    spec = value.spec
    return [list(spec.shape), list(spec.stride), str(spec.dtype), spec.requires_grad]
