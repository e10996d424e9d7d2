"""Every op of a traced task with its cost: gradients, batch dependence and storage by dataflow."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import Node
from torch.utils import _pytree as pytree

from autopar.graph import Amount, Op, OpEdge
from autopar.profiler.counting import flops
from autopar.profiler.counting.opcost import OpCost, OpCoster, Slot, TensorSpec
from autopar.profiler.counting.tally import NOTHING, Work, amount
from autopar.trace import TracedTask
from autopar.trace.cleanup import is_random

Progress = Callable[[str, int, int], None]
"""``progress(stage, done, total)``."""


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor in the graph.

    Attributes:
        spec: Layout.
        root: Who made its storage: ``("op", index, position)``, or ``("given", name, 0)`` for a
            parameter, buffer, constant or batch tensor.
    """

    spec: TensorSpec
    root: tuple[str, int | str, int]

    def size_bytes(self, batch: int) -> Amount:
        """Bytes of its elements, per sample when it depends on a batch of ``batch``."""
        return amount(float(self.spec.size_bytes), self.spec.scales, batch)


@dataclass(frozen=True, kw_only=True)
class CountedGraph:
    """Ops and edges with their costs, and how the counts differ from ``FlopCounterMode``.

    Attributes:
        ops: Ops in order.
        edges: Tensors between ops.
        values: Op index -> its tensor, or list of tensors.
        stock_flop: What ``FlopCounterMode`` counts for the batch, forward and backward.
        corrections: Kernel -> why our count differs.
        uncounted: Op target -> reason, for ops that compute but have no FLOP formula.
        distinct: Number of different op calls.
    """

    ops: tuple[Op, ...]
    edges: tuple[OpEdge, ...]
    values: tuple[Value | list[Value] | None, ...]
    stock_flop: float
    corrections: dict[str, str]
    uncounted: dict[str, str]
    distinct: int


def count(traced: TracedTask, progress: Progress | None = None) -> CountedGraph:
    """Price every op of a traced task.

    Args:
        traced: The task; its weights may be on ``meta``.
        progress: Called now and then with ``("count", done, total)``.
    """
    counter = _Counter(traced)
    total = len(traced.nodes)
    for index, node in enumerate(traced.nodes):
        counter.visit(index, node)
        if progress is not None and (index % 200 == 0 or index == total - 1):
            progress("count", index + 1, total)
    return counter.finish()


@dataclass
class _Draft:
    """An op under construction."""

    cost: OpCost | None
    work: tuple[Work, Work]
    saved: Amount = NOTHING
    accumulate: Amount = NOTHING
    output_bytes: Amount = NOTHING


@dataclass
class _Counter:
    traced: TracedTask
    coster: OpCoster = field(init=False)
    values: dict[Node, Any] = field(default_factory=dict)
    drafts: list[_Draft] = field(default_factory=list)
    saved_roots: set[tuple[str, int | str, int]] = field(default_factory=set)
    storage_bytes: dict[tuple[str, int | str, int], Amount] = field(default_factory=dict)
    uncounted: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.coster = OpCoster(self.traced.batch)
        for node in self.traced.module.graph.nodes:
            if node.op == "placeholder":
                self.values[node] = _given(node, node.meta["val"], False, scales=True)
            elif node.op == "get_attr":
                tensor = operator.attrgetter(str(node.target))(self.traced.module)
                self.values[node] = _given(node, tensor, tensor.requires_grad, scales=False)

    def visit(self, index: int, node: Node) -> None:
        """Price one op and note the tensors it makes."""
        if node.target is operator.getitem:
            source = self.values[node.args[0]]  # type: ignore[index]
            self.values[node] = source[node.args[1]]
            self.drafts.append(_Draft(cost=None, work=(Work(), Work())))
            return
        inputs: list[Value] = []
        skeleton = self._skeleton(node, inputs)
        try:
            assert callable(node.target)
            cost = self.coster.cost(node.target, skeleton, tuple(v.spec for v in inputs))
        except Exception as error:
            reason = str(error).strip().split("\n")[0][:120]
            self.uncounted[str(node.target)] = f"cannot be run alone: {reason}"
            self.values[node] = self._from_meta(index, node, inputs)
            self.drafts.append(_Draft(cost=None, work=(Work(), Work())))
            return
        draft = _Draft(cost=cost, work=(cost.forward, cost.backward))
        self.drafts.append(draft)
        self.values[node] = self._results(index, cost, inputs, draft)
        self._note_saved(index, cost, inputs)
        self._note_formula(node, cost)

    def _skeleton(self, node: Node, inputs: list[Value]) -> tuple[Any, dict[str, Any]]:
        places: dict[Node, int] = {}

        def convert(leaf: Any) -> Any:
            if isinstance(leaf, torch.device):
                return torch.device("cpu")
            if not isinstance(leaf, Node):
                return leaf
            value = self.values[leaf]
            if isinstance(value, list):
                return [self._slot(v, inputs) for v in value]
            if not isinstance(value, Value):
                return value
            if leaf not in places:
                places[leaf] = len(inputs)
                inputs.append(value)
            return Slot(places[leaf])

        args, kwargs = pytree.tree_map(
            convert,
            (_plain(node.args), _plain(node.kwargs)),
            is_leaf=lambda x: isinstance(x, Node),
        )
        return args, kwargs

    def _slot(self, value: Value, inputs: list[Value]) -> Slot:
        inputs.append(value)
        return Slot(len(inputs) - 1)

    def _results(self, index: int, cost: OpCost, inputs: list[Value], draft: _Draft) -> Any:
        results = []
        for position, output in enumerate(cost.outputs):
            if output.alias is not None:
                root = inputs[output.alias].root
            else:
                root = ("op", index, position)
                size = amount(output.storage_bytes, output.spec.scales, self.traced.batch)
                self.storage_bytes[root] = size
                draft.output_bytes += size
            results.append(Value(output.spec, root))
        if cost.is_tuple:
            return results
        return results[0] if results else None

    def _from_meta(self, index: int, node: Node, inputs: list[Value]) -> Any:
        scales = any(v.spec.scales for v in inputs)
        live = index in self.traced.needs_gradient
        value = node.meta.get("val")
        if isinstance(value, list | tuple):
            return [Value(_spec(v, live, scales), ("op", index, i)) for i, v in enumerate(value)]
        if isinstance(value, torch.Tensor):
            return Value(_spec(value, live, scales), ("op", index, 0))
        return value

    def _note_saved(self, index: int, cost: OpCost, inputs: list[Value]) -> None:
        for kind, position, size in cost.saved:
            if kind == "own":
                self.drafts[index].saved += size
                continue
            if kind == "input":
                root = inputs[position].root
            else:
                alias = cost.outputs[position].alias
                root = ("op", index, position) if alias is None else inputs[alias].root
            if root[0] != "op" or root in self.saved_roots or root not in self.storage_bytes:
                continue
            self.saved_roots.add(root)
            self.drafts[int(root[1])].saved += self.storage_bytes[root]

    def _note_formula(self, node: Node, cost: OpCost) -> None:
        moves_floats = any(o.spec.dtype.is_floating_point for o in cost.outputs)
        if cost.forward.kernels and cost.forward.flop == Amount() and moves_floats:
            self.uncounted.setdefault(
                str(node.target), "elementwise, reduction or copy: priced by its bytes"
            )

    def finish(self) -> CountedGraph:
        """Ops and edges, with the gradient additions of values that several ops read."""
        edges = self._edges()
        stock, corrections = self._stock()
        return CountedGraph(
            ops=tuple(self._op(i, node) for i, node in enumerate(self.traced.nodes)),
            edges=tuple(edges),
            values=tuple(self.values[node] for node in self.traced.nodes),
            stock_flop=stock,
            corrections=corrections,
            uncounted=dict(sorted(self.uncounted.items())),
            distinct=self.coster.distinct,
        )

    def _stock(self) -> tuple[float, dict[str, str]]:
        batch = self.traced.batch
        stock = sum(w.stock_flop.at(batch) for draft in self.drafts for w in draft.work)
        kernels = {k for draft in self.drafts for w in draft.work for k in w.corrected}
        return stock, {k: flops.NOTES.get(k, "own formula") for k in sorted(kernels)}

    def _edges(self) -> list[OpEdge]:
        edges = []
        order = self.traced.index
        for producer, node in enumerate(self.traced.nodes):
            readers = sorted(order[user] for user in node.users if user in order)
            value = self.values[node]
            backs = 0
            for consumer in readers:
                handed = self._handed(value, self.traced.nodes[consumer])
                for tensor in handed:
                    back = tensor.spec.requires_grad and self._flows_back(consumer)
                    backs += back and isinstance(value, Value)
                    edges.append(
                        OpEdge(
                            producer=producer,
                            consumer=consumer,
                            size_bytes=tensor.size_bytes(self.traced.batch),
                            needs_gradient=back,
                            shape=tensor.spec.shape,
                            dtype=str(tensor.spec.dtype).removeprefix("torch."),
                        )
                    )
            if isinstance(value, Value) and backs > 1:
                size = 3.0 * (backs - 1) * value.spec.size_bytes
                grown = amount(size, value.spec.scales, self.traced.batch)
                self.drafts[producer].accumulate = grown
        return edges

    def _handed(self, value: Any, consumer: Node) -> list[Value]:
        if isinstance(value, Value):
            return [value]
        if not isinstance(value, list):
            return []
        if consumer.target is operator.getitem:
            item: Value = value[consumer.args[1]]  # type: ignore[index]
            return [item]
        return value

    def _flows_back(self, consumer: int) -> bool:
        value = self.values[self.traced.nodes[consumer]]
        values = value if isinstance(value, list) else [value]
        return any(isinstance(v, Value) and v.spec.requires_grad for v in values)

    def _op(self, index: int, node: Node) -> Op:
        draft = self.drafts[index]
        forward, backward = draft.work
        return Op(
            index=index,
            name=node.name,
            target=target_name(node),
            module=module_path(node),
            forward_flop=forward.flop,
            backward_flop=backward.flop,
            forward_bytes=forward.moved_bytes,
            backward_bytes=backward.moved_bytes + draft.accumulate,
            saved_bytes=draft.saved,
            output_bytes=draft.output_bytes,
            parameters=self.traced.parameters_of(node),
            replicated=index in self.traced.replicated,
            random=is_random(node),
            kernels=forward.kernels,
        )


def target_name(node: Node) -> str:
    """``aten.addmm.default``, ``operator.getitem``."""
    if isinstance(node.target, torch._ops.OpOverload):
        return str(node.target)
    module = getattr(node.target, "__module__", "")
    return f"{module.lstrip('_')}.{getattr(node.target, '__name__', node.target)}"


def module_path(node: Node) -> str:
    """Path of the innermost module inside the model that made the call, ``""`` for the loss."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [str(entry[0]) for entry in stack.values()]
    path = paths[-1] if paths else ""
    return path.removeprefix("model").removeprefix(".")


def module_classes(node: Node) -> dict[str, str]:
    """Module path -> class name, for the modules a call is nested in."""
    stack = node.meta.get("nn_module_stack") or {}
    return {
        str(path).removeprefix("model").removeprefix("."): str(kind).rpartition(".")[2]
        for path, kind in stack.values()
    }


def _given(node: Node, tensor: Any, requires_grad: bool, *, scales: bool) -> Value:
    return Value(_spec(tensor, requires_grad, scales), ("given", str(node.target), 0))


def _spec(tensor: torch.Tensor, requires_grad: bool, scales: bool) -> TensorSpec:
    return TensorSpec(
        shape=tuple(_size(n) for n in tensor.shape),
        stride=tuple(_size(n) for n in tensor.stride()),
        dtype=tensor.dtype,
        requires_grad=requires_grad,
        scales=scales,
    )


def _size(value: int | torch.SymInt) -> int:
    """A size; 0 for one that depends on the data."""
    if isinstance(value, int):
        return value
    known = value.node.maybe_as_int()
    return 0 if known is None else int(known)


def _plain(value: Any) -> Any:
    """The immutable lists and dicts of fx as plain ones."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    if isinstance(value, tuple):
        return tuple(_plain(v) for v in value)
    return value
