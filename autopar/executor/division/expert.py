"""Expert parallelism: a rank holds some of the experts, tokens travel to theirs and back.

Expert weights are stacks ``[E, k, n]`` multiplied with tokens ``[E, C, k]`` that the model has
sorted by expert (:class:`autopar.strategies.expert.ExpertSplit` finds the same products). Each of
``ep`` ranks keeps ``E / ep`` of the stack. One all-to-all turns ``[E, C, k]`` of each rank into
``[E / ep, ep * C, k]``: all tokens of the group for the rank's experts; what stands between two
products works on that; another all-to-all brings the results home (GShard, Lepikhin et al. 2020,
arXiv 2006.16668). Nothing is dropped or moved: the model's own capacity decides what an expert
sees, so results equal those of one process.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.fx import Node
from torch.fx.node import map_arg

from autopar.core.errors import InputError
from autopar.executor.division.collectives import Collectives
from autopar.executor.division.editor import Divided, Editor, value_of
from autopar.executor.division.ops import (
    SHAPED,
    dims_of,
    is_elementwise,
    name_of,
    shape_of,
    with_arguments,
)
from autopar.executor.holding import Cut

_PRODUCTS = ("bmm", "baddbmm", "matmul")
"""Products of stacks, as ``strategies.matmul.BATCHED``."""
_ALONG_LAST = ("linear", "layer_norm", "rms_norm")
_ALONG_DIM = ("softmax", "log_softmax", "chunk", "split", "split_with_sizes", "slice", "glu")
_STACK_RANK = 3


def divide_experts(divided: Divided, calls: Collectives) -> Divided:
    """The graph of one of the ranks that share the experts out.

    Args:
        divided: The graph so far.
        calls: Collectives of the expert group.

    Raises:
        InputError: There are no experts, or not a multiple of the ranks, or another op reads
            their weights.
    """
    return _ExpertPass(divided, calls).run()


class _ExpertPass:
    """Tracks where values are.

    At home a value has all experts and the rank's own tokens; away it has the rank's experts on
    dimension 0 and all tokens of the group on dimension 1 or 2.
    """

    def __init__(self, divided: Divided, calls: Collectives) -> None:
        self._calls, self._count = calls, calls.group.size
        self._editor = Editor(divided, "ep", self._count)
        self._away: dict[Node, int] = {}
        self._moved: dict[tuple[Node, int | None], Node] = {}

    def run(self) -> Divided:
        """Rewrite."""
        nodes = self._editor.traced.nodes
        self._hold_parts([node for node in nodes if _weight_place(node) is not None])
        for index, node in enumerate(nodes):
            self._editor.begin(index)
            place = self._place(node)
            self._emit(node, place)
            if place is not None:
                self._away[node] = place
        return self._editor.finish()

    def _hold_parts(self, products: list[Node]) -> None:
        task = self._editor.traced.task.name
        if not products:
            raise InputError(
                f"task '{task}' has no stack of expert weights to divide over ep={self._count}",
                hint="use ep=1",
            )
        for product in products:
            experts = shape_of(product)[0]
            for stack in _stacks(product):
                name = self._editor.model_name(str(stack.target))
                if experts % self._count:
                    raise InputError(
                        f"ep={self._count} does not divide the {experts} experts of '{name}'",
                        hint=f"use an ep that divides {experts}",
                    )
                other = next((u for u in stack.users if _weight_place(u) is None), None)
                if other is not None:
                    raise InputError(
                        f"op '{other.name}' ({other.target}) reads all experts of '{name}'",
                        hint="use ep=1, or read expert weights in batched products only",
                    )
                self._editor.hold(str(stack.target), Cut(axis="ep", dim=0, sections=(experts,)))

    def _place(self, node: Node) -> int | None:
        """Dimension of the group's tokens in an op's result, ``None`` when it stays at home."""
        weight = _weight_place(node)
        if weight is not None:
            return 1 if weight == len(node.args) - 1 else 2
        places = {self._away[s] for s in node.all_input_nodes if s in self._away}
        if len(places) != 1:
            return None
        (place,) = places
        return place if self._passes(node, place) else None

    def _passes(self, node: Node, place: int) -> bool:
        """True when an op can work on a rank's experts and the group's tokens."""
        name = name_of(node)
        away = next(s for s in node.all_input_nodes if s in self._away)
        before, after = shape_of(away), shape_of(node)
        if name == "getitem":
            return True
        if name in SHAPED:
            return place == 1 and after[:2] == before[:2]
        if name in _ALONG_DIM:
            return not {0, place} & set(dims_of(node, "dim", len(before)))
        if name in _ALONG_LAST:
            return place == 1 and not any(s in self._away for s in node.all_input_nodes[1:])
        same = len(after) >= _STACK_RANK and after[: place + 1] == before[: place + 1]
        operands = (s in self._away or _fits(s, after, place) for s in node.all_input_nodes)
        return same and is_elementwise(node) and all(operands)

    def _emit(self, node: Node, place: int | None) -> None:
        """Emit an op whose operands are all at home, or all where its result is."""
        args, kwargs = node.args, node.kwargs
        if place is not None and name_of(node) in SHAPED:
            shape = self._shape(shape_of(node), place)
            args, kwargs = with_arguments(
                node, **{"shape" if name_of(node) == "reshape" else "size": shape}
            )

        def local(source: Node) -> Node:
            return self._operand(node, source, place)

        emitted = self._editor.emit(
            node.target,  # type: ignore[arg-type]
            map_arg(args, local),
            map_arg(kwargs, local),
        )
        emitted.meta = {**node.meta, "val": emitted.meta["val"]}
        self._editor.define(node, emitted)

    def _operand(self, node: Node, source: Node, place: int | None) -> Node:
        if place is None or source in self._away:
            return self._at(source, place)
        if not _is_parameter(source):
            if _weight_place(node) is not None and shape_of(source)[:1] == shape_of(node)[:1]:
                return self._at(source, place)
        elif _weight_place(node) is None and _spans_experts(source, shape_of(node)):
            return self._own_experts(source)
        result: Node = self._editor.local(source)
        return result

    def _at(self, source: Node, place: int | None) -> Node:
        """A value at home or away; products that read the same tokens share their trip."""
        here = self._away.get(source)
        if here == place:
            result: Node = self._editor.local(source)
            return result
        if (source, place) not in self._moved:
            whole = tuple(value_of(source).shape)
            if place is None:
                assert here is not None
                start, dims, shape = self._editor.local(source), (here, 0), whole
            else:
                start, dims = self._at(source, None), (0, place)
                shape = self._shape(whole, place)
            value = self._editor.fake(shape, value_of(source).dtype)
            self._moved[source, place] = self._editor.emit(
                self._calls.exchange, (start, *dims), value=value
            )
        return self._moved[source, place]

    def _shape(self, whole: tuple[int, ...], place: int) -> tuple[int, ...]:
        shape = list(whole)
        shape[0] //= self._count
        shape[place] *= self._count
        return tuple(shape)

    def _own_experts(self, source: Node) -> Node:
        """This rank's rows of a parameter that all ranks hold (a bias added after a product)."""
        step = shape_of(source)[0] // self._count
        return self._editor.emit(
            torch.ops.aten.narrow.default,
            (self._editor.local(source), 0, self._calls.group.position * step, step),
        )


def _is_parameter(node: Node) -> bool:
    value = value_of(node)
    return node.op == "get_attr" and isinstance(value, torch.Tensor) and value.is_floating_point()


def _weight_place(node: Node) -> int | None:
    """Position of the expert weights among a product's arguments, ``None`` for other ops."""
    if name_of(node) not in _PRODUCTS or len(shape_of(node)) != _STACK_RANK:
        return None
    for place in (len(node.args) - 1, len(node.args) - 2):
        source = node.args[place]
        if isinstance(source, Node) and _is_parameter(source):
            shape = shape_of(source)
            if len(shape) == _STACK_RANK and shape[0] == shape_of(node)[0] > 1:
                return place
    return None


def _stacks(product: Node) -> Iterator[Node]:
    """Parameters of a product with one entry for each expert: weights and biases."""
    for source in product.all_input_nodes:
        shape = shape_of(source)
        stacked = len(shape) == _STACK_RANK and shape[0] == shape_of(product)[0]
        if stacked and _is_parameter(source):
            yield source


def _spans_experts(source: Node, result: tuple[int, ...]) -> bool:
    shape = shape_of(source)
    return len(shape) == len(result) and shape[0] == result[0]


def _fits(source: Node, result: tuple[int, ...], place: int) -> bool:
    """True for an operand at home with one row for all tokens, and for all experts or each."""
    shape = (1,) * (len(result) - len(shape_of(source))) + shape_of(source)
    experts = shape[0] == 1 or _is_parameter(source)
    return experts and shape[place] == 1
