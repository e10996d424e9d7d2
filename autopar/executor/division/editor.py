"""Copy a traced graph op by op, changing some on the way."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

from autopar.executor.holding import Cut
from autopar.trace import TracedTask, retrace


@dataclass(frozen=True, kw_only=True)
class Divided:
    """A traced graph rewritten for one rank.

    Attributes:
        traced: The graph with local shapes; it has more ops than the plan counts.
        places: Op of the plan -> position of its first node here; one more entry for the end.
        cuts: Model name of a parameter or buffer -> the cuts that make this rank's part, in the
            order they were made.
        partial: Mesh axis -> parameters whose gradient on a rank is a part of a sum over the axis
            (weights used on a part of the sequence).
    """

    traced: TracedTask
    places: tuple[int, ...]
    cuts: dict[str, tuple[Cut, ...]]
    partial: dict[str, frozenset[str]]

    def span(self, first_op: int, stop_op: int) -> tuple[int, int]:
        """A range of the plan's ops as a range of nodes here."""
        return self.places[first_op], self.places[stop_op]


def whole(traced: TracedTask) -> Divided:
    """The graph as it is: what one rank of a plan that divides no op runs."""
    return Divided(traced=traced, places=tuple(range(len(traced.nodes) + 1)), cuts={}, partial={})


class Editor:
    """Builds the graph of one rank from the graph of the whole.

    A pass walks the ops in order and for each calls :meth:`emit` once or several times; what it
    emits belongs to that op. Values are fake tensors with local shapes; shape errors show here,
    before anything runs.

    Args:
        divided: The graph so far.
        axis: Mesh axis of the pass.
        count: Ranks of the axis.
    """

    def __init__(self, divided: Divided, axis: str, count: int) -> None:
        self.traced = divided.traced
        self._divided = divided
        self.axis = axis
        self.count = count
        self.graph = Graph()
        self._mapping: dict[Node, Node] = {}
        self._starts: list[int] = []
        self._emitted: list[Node] = []
        self._cuts = dict(divided.cuts)
        self._partial: set[str] = set()
        self._mode = _fake_mode(self.traced)
        self._attributes: dict[str, Cut] = {}
        self._local_shapes: dict[str, tuple[int, ...]] = {}
        for node in self.traced.module.graph.nodes:
            if node.op == "get_attr" and node.meta.get("local"):
                self._local_shapes[str(node.target)] = tuple(node.meta["val"].shape)
            if node.op == "placeholder":
                copied = self.graph.node_copy(node)
                copied.meta = dict(node.meta)
                self._mapping[node] = copied

    def hold(self, attribute: str, cut: Cut) -> None:
        """Hold a part of a parameter or buffer; call it before the first op that reads it.

        Args:
            attribute: Graph attribute, the target of a ``get_attr`` node.
            cut: The part.
        """
        known = self._attributes.setdefault(attribute, cut)
        assert known == cut, f"{attribute} is cut as {known} and as {cut}"

    def mark_partial(self, parameter: str) -> None:
        """Note that a parameter's gradient (model name) must be summed over the axis."""
        self._partial.add(parameter)

    def begin(self, index: int) -> None:
        """Start op ``index``: what is emitted from here on belongs to it."""
        assert index == len(self._starts)
        self._starts.append(len(self._emitted))

    def local(self, tree: Any) -> Any:
        """Nodes of the whole graph in some arguments replaced by this rank's."""
        return map_arg(tree, self._of)

    def _of(self, node: Node) -> Node:
        if node not in self._mapping:
            assert node.op == "get_attr", f"{node} is read before it is emitted"
            self._mapping[node] = self._attribute(node)
        return self._mapping[node]

    def _attribute(self, node: Node) -> Node:
        name = str(node.target)
        copied = self.graph.get_attr(name)
        copied.meta = dict(node.meta)
        value = operator.attrgetter(name)(self.traced.module)
        # the module's own tensors stay whole until all passes are done
        shape = list(self._local_shapes.get(name, value.shape))
        cut = self._attributes.get(name)
        if cut is not None:
            assert shape[cut.dim] == sum(cut.sections), (name, shape, cut)
            shape[cut.dim] = cut.part_size(self.count)
            model_name = self.model_name(name)
            self._cuts[model_name] = (*self._divided.cuts.get(model_name, ()), cut)
        copied.meta["val"] = self.fake(tuple(shape), value.dtype, value.requires_grad)
        return copied

    def model_name(self, attribute: str) -> str:
        """The model's own name of a graph attribute."""
        return self.traced.parameter_names.get(attribute, attribute.removeprefix("model."))

    def fake(
        self, shape: Sequence[int], dtype: torch.dtype, requires_grad: bool = False
    ) -> torch.Tensor:
        """A value without data."""
        with self._mode:
            return torch.empty(tuple(shape), dtype=dtype, requires_grad=requires_grad)

    def emit(
        self,
        target: Callable[..., Any],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        *,
        value: Any = None,
        name: str | None = None,
    ) -> Node:
        """Add a call to this rank's graph.

        Args:
            target: What is called.
            args: Arguments; nodes in them are this rank's.
            kwargs: Keyword arguments.
            value: Fake result, for calls that cannot run on fake tensors (collectives).
            name: Name of the node.
        """
        node = self.graph.call_function(target, args, kwargs or {})
        if name is not None:
            node.name = name
        node.meta["val"] = self._run(node) if value is None else value
        self._emitted.append(node)
        return node

    def _run(self, node: Node) -> Any:
        args = map_arg(node.args, value_of)
        kwargs = map_arg(node.kwargs, value_of)
        with self._mode, torch.no_grad():
            return node.target(*args, **kwargs)  # type: ignore[operator]

    def copy(self, node: Node) -> Node:
        """Emit an op of the whole graph unchanged, with this rank's arguments."""
        copied = self.emit(node.target, self.local(node.args), self.local(node.kwargs))  # type: ignore[arg-type]
        copied.meta = {**node.meta, "val": copied.meta["val"]}
        self.define(node, copied)
        return copied

    def define(self, node: Node, local: Node) -> None:
        """From here on, ``local`` stands for ``node`` of the whole graph."""
        self._mapping[node] = local

    def finish(self) -> Divided:
        """The rewritten graph."""
        for node in self.graph.nodes:
            if node.op == "get_attr":
                node.meta["local"] = True
        last = self._mapping[self.traced.nodes[-1]]
        self.graph.output((last,))
        module = GraphModule(self.traced.module, self.graph)
        starts = [*self._starts, len(self._emitted)]
        places = tuple(starts[place] for place in self._divided.places)
        partial = {**self._divided.partial}
        if self._partial:
            partial[self.axis] = partial.get(self.axis, frozenset()) | self._partial
        return Divided(
            traced=retrace(
                self.traced,
                module,
                tuple(self._emitted),
                cuts=frozenset(starts[cut] for cut in self.traced.cuts),
            ),
            places=places,
            cuts=self._cuts,
            partial=partial,
        )


def value_of(node: Node) -> Any:
    """The fake value of a node."""
    return node.meta["val"]


def _fake_mode(traced: TracedTask) -> FakeTensorMode:
    """The mode that made the graph's values."""
    for node in traced.module.graph.nodes:
        value = node.meta.get("val")
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, FakeTensor):
                return item.fake_mode
    return FakeTensorMode(allow_non_fake_inputs=True)
