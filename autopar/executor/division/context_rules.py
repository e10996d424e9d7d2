"""What each kind of op does with a value that is divided along the sequence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch.fx import Node

from autopar.executor.division.along import Along
from autopar.executor.division.editor import value_of
from autopar.executor.division.ops import (
    VIEWS,
    argument,
    dims_of,
    has_argument,
    is_elementwise,
    name_of,
    shape_of,
)

if TYPE_CHECKING:
    from autopar.executor.division.context import ContextPass, State

Rule = Callable[["ContextPass", Node, Along], "State | None"]

_LINEAR = frozenset(
    {"add", "add_", "sub", "sub_", "neg", "mul", "div", "sum", "mean", "to", "clone"}
)
_LINEAR |= {"contiguous", "alias", "view", "reshape", "unsqueeze", "squeeze", "flatten"}
"""Ops whose result is a term when one operand is: the mean over ranks commutes with them."""
_PRODUCTS = frozenset({"mul", "div"})
_ALONG_DIM_NAMES = """
softmax log_softmax cumsum cumprod cummax cummin logcumsumexp sort argsort topk flip roll chunk
split split_with_sizes narrow glu index_select repeat_interleave gather renorm
"""
_ALONG_DIM = frozenset(_ALONG_DIM_NAMES.split())
"""Ops that keep all dimensions and mix only along their ``dim``."""
_REDUCTION_NAMES = """
mean sum amax amin max min any all argmax argmin logsumexp norm linalg_vector_norm var std prod
"""
_REDUCTIONS = frozenset(_REDUCTION_NAMES.split())
_LOSS_NAMES = """
mse_loss l1_loss smooth_l1_loss huber_loss binary_cross_entropy binary_cross_entropy_with_logits
kl_div soft_margin_loss poisson_nll_loss
"""
_LOSSES = frozenset(_LOSS_NAMES.split())
_CLASS_LOSSES = frozenset({"cross_entropy_loss", "nll_loss", "nll_loss_nd"})
_MEAN, _SUM = 1, 2
_FACTORIES = frozenset({"new_zeros", "new_ones", "new_full", "new_empty"})


def keeps_terms(node: Node, state: Callable[[Node], State]) -> bool:
    """True for a linear op of terms and whole values."""
    name = name_of(node)
    if name not in _LINEAR or any(isinstance(state(s), Along) for s in node.all_input_nodes):
        return False
    if name in _PRODUCTS:
        operands = [a for a in node.args if isinstance(a, Node)]
        terms = [i for i, a in enumerate(operands) if state(a) == "term"]
        return terms == [0] or (name == "mul" and len(terms) == 1)
    return True


def divide(context: ContextPass, node: Node) -> State:
    """Emit an op of which some operand is divided; returns what its result is.

    Raises:
        InputError: The op mixes positions.
    """
    rule = _rule(node)
    if rule is None:
        raise context.refuse(node)
    along = next(a for s in node.all_input_nodes if isinstance(a := context.state(s), Along))
    return rule(context, node, along)


def _rule(node: Node) -> Rule | None:
    name = name_of(node)
    if name in _SPECIAL:
        return _SPECIAL[name]
    for names, rule in (
        (VIEWS, _view),
        (_ALONG_DIM, _along_dim),
        (_REDUCTIONS, _reduction),
        (_CLASS_LOSSES, _class_loss),
        (_LOSSES, _loss),
        (_FACTORIES, _factory),
    ):
        if name in names:
            return rule
    return _elementwise if is_elementwise(node) else None


def _getitem(context: ContextPass, node: Node, along: Along) -> State:
    context.emit(node, {})
    return along


def _factory(context: ContextPass, node: Node, along: Along) -> State:
    """Sizes are given: only the kind of the divided operand matters."""
    context.emit(node, {})
    return None


def _view(context: ContextPass, node: Node, along: Along) -> State:
    source = node.all_input_nodes[0]
    after = shape_of(node)
    moved = along.through_view(shape_of(source), after)
    if moved is None:
        raise context.refuse(node)
    shape = moved.part(after, context.zigzag.count)
    emitted = context.editor.emit(
        torch.ops.aten.reshape.default, (context.read(source, along), shape)
    )
    emitted.meta = {**node.meta, "val": emitted.meta["val"]}
    context.editor.define(node, emitted)
    return moved


def _permute(context: ContextPass, node: Node, along: Along) -> State:
    rank, name = len(shape_of(node)), name_of(node)
    order = list(range(rank))
    if name == "permute":
        order = list(dims_of(node, "dims", rank))
    elif rank > 1:
        names = ("dim0", "dim1") if name == "transpose" else ("", "")
        first, second = (dims_of(node, n, rank)[0] if n else i for i, n in enumerate(names))
        order[first], order[second] = second, first
    context.emit(node, {})
    return along.at(order.index(along.dim))


def _aligned(
    context: ContextPass, node: Node, along: Along, operands: Iterator[Node] | list[Node]
) -> dict[Node, State]:
    """Operands that broadcast against each other, each with the sequence where the result has it.

    Args:
        context: The pass.
        node: For errors.
        along: Where the result has the sequence.
        operands: Tensors.
    """
    rank, wanted = len(shape_of(node)), {}
    for source in operands:
        shape, here = shape_of(source), context.state(source)
        dim = along.dim - rank + len(shape)
        target: State = None
        if dim >= 0 and shape and shape[dim] != 1:
            target = along.at(dim)
        if isinstance(here, Along) and here != target:
            raise context.refuse(node)
        wanted[source] = target
    return wanted


def _result(context: ContextPass, node: Node, along: Along) -> Along:
    """Where the result of an elementwise op has the sequence, from its first divided operand."""
    source = next(s for s in node.all_input_nodes if context.state(s) == along)
    return along.at(along.dim + len(shape_of(node)) - len(shape_of(source)))


def _elementwise(context: ContextPass, node: Node, along: Along) -> State:
    result = _result(context, node, along)
    context.emit(node, _aligned(context, node, result, node.all_input_nodes))
    return result


def _expand(context: ContextPass, node: Node, along: Along) -> State:
    result = _result(context, node, along)
    context.emit(node, {}, size=result.part(shape_of(node), context.zigzag.count))
    return result


def _repeat(context: ContextPass, node: Node, along: Along) -> State:
    result = _result(context, node, along)
    if argument(node, "repeats")[result.dim] != 1:
        raise context.refuse(node)
    context.emit(node, {})
    return result


def _only_first(context: ContextPass, node: Node, first: Node) -> None:
    if any(isinstance(context.state(s), Along) for s in node.all_input_nodes if s is not first):
        raise context.refuse(node)


def _linear(context: ContextPass, node: Node, along: Along) -> State:
    first = argument(node, "input")
    _only_first(context, node, first)
    if along.dim == len(shape_of(first)) - 1:
        raise context.refuse(node)
    context.emit(node, {})
    return along


def _norm(context: ContextPass, node: Node, along: Along) -> State:
    first = argument(node, "input")
    _only_first(context, node, first)
    if along.dim >= len(shape_of(first)) - len(argument(node, "normalized_shape")):
        raise context.refuse(node)
    context.emit(node, {})
    return along


def _embedding(context: ContextPass, node: Node, along: Along) -> State:
    if context.state(argument(node, "weight")) is not None:
        raise context.refuse(node)
    context.emit(node, {})
    return along


def _rows(context: ContextPass, node: Node, along: Along) -> State:
    """``mm`` and ``addmm``: tokens times a whole matrix."""
    left, right = node.args[-2:]
    assert isinstance(left, Node) and isinstance(right, Node)
    if context.state(right) is not None or context.state(left) != along.at(0):
        raise context.refuse(node)
    added = [a for a in node.args[:-2] if isinstance(a, Node)]
    context.emit(node, _aligned(context, node, along, added))
    return along


def _product(context: ContextPass, node: Node, along: Along) -> State:
    """``matmul``, ``bmm``, ``baddbmm``: along rows, columns, or independent products."""
    left, right = node.args[-2:]
    assert isinstance(left, Node) and isinstance(right, Node)
    shapes, rank = (shape_of(left), shape_of(right)), len(shape_of(node))
    if min(len(shape) for shape in shapes) < 2:
        raise context.refuse(node)
    places = set()
    for source, shape, contracted in ((left, shapes[0], -1), (right, shapes[1], -2)):
        here = context.state(source)
        if isinstance(here, Along):
            if here.dim == len(shape) + contracted:
                raise context.refuse(node)
            places.add(here.at(here.dim + rank - len(shape)))
    if len(places) != 1:
        raise context.refuse(node)
    (result,) = places
    operands = [left, right] if result.dim < rank - 2 else []
    added = [a for a in node.args[:-2] if isinstance(a, Node)]
    context.emit(node, _aligned(context, node, result, [*operands, *added]))
    return result


def _along_dim(context: ContextPass, node: Node, along: Along) -> State:
    first = node.args[0]
    assert isinstance(first, Node)
    name = "dims" if has_argument(node, "dims") else "dim"
    rank = len(shape_of(first))
    if along.dim in dims_of(node, name, rank):
        raise context.refuse(node)
    wanted: dict[Node, State] = {}
    if name_of(node) == "gather":
        wanted = _aligned(context, node, along, node.all_input_nodes)
    elif any(isinstance(context.state(s), Along) for s in node.all_input_nodes if s is not first):
        raise context.refuse(node)
    context.emit(node, wanted)
    return along


def _slice(context: ContextPass, node: Node, along: Along) -> State:
    first = argument(node, "self")
    (dim,) = dims_of(node, "dim", len(shape_of(first)))
    if dim == along.dim and shape_of(node)[dim] != shape_of(first)[dim]:
        raise context.refuse(node)
    if dim == along.dim:  # all of it; the end may be given as the whole length
        context.editor.define(node, context.editor.local(first))
    else:
        context.emit(node, {})
    return along


def _unbind(context: ContextPass, node: Node, along: Along) -> State:
    (dim,) = dims_of(node, "dim", len(shape_of(argument(node, "self"))))
    if dim == along.dim:
        raise context.refuse(node)
    context.emit(node, {})
    return along.at(along.dim - (dim < along.dim))


def _select(context: ContextPass, node: Node, along: Along) -> State:
    """One position: a term that is zero on the ranks that do not have it."""
    first = argument(node, "self")
    (dim,) = dims_of(node, "dim", len(shape_of(first)))
    if dim != along.dim:
        return _unbind(context, node, along)
    if along.outer * along.inner > 1 or not value_of(first).is_floating_point():
        raise context.refuse(node)
    place = context.zigzag.find(argument(node, "index") % along.length, along.length)
    context.emit(node, {}, index=place or 0)
    context.scaled(node, 0.0 if place is None else context.zigzag.count)
    return "term"


def _joined(context: ContextPass, node: Node, along: Along) -> State:
    """``cat`` and ``stack`` along another dimension."""
    new = name_of(node) == "stack"
    (dim,) = dims_of(node, "dim", len(shape_of(node)))
    if dim == along.dim and not new:
        raise context.refuse(node)
    wanted: dict[Node, State] = {}
    for source in node.all_input_nodes:
        if context.state(source) not in (None, along):
            raise context.refuse(node)
        wanted[source] = along
    context.emit(node, wanted)
    return along.at(along.dim + (new and dim <= along.dim))


def _pad(context: ContextPass, node: Node, along: Along) -> State:
    first, pads = argument(node, "self"), argument(node, "pad")
    behind = len(shape_of(first)) - 1 - along.dim
    if any(pads[2 * behind : 2 * behind + 2]):
        raise context.refuse(node)
    context.emit(node, {})
    return along


def _reduction(context: ContextPass, node: Node, along: Along) -> State:
    first = node.args[0]
    assert isinstance(first, Node)
    rank = len(shape_of(first))
    dims = dims_of(node, "dim", rank) if has_argument(node, "dim") else tuple(range(rank))
    name = name_of(node)
    if along.dim not in dims:
        context.emit(node, {})
        gone = sum(d < along.dim for d in dims)
        kept = has_argument(node, "keepdim") and argument(node, "keepdim")
        return along.at(along.dim - (0 if kept else gone))
    if name not in ("mean", "sum") or not value_of(node).is_floating_point():
        raise context.refuse(node)
    context.emit(node, {})
    if name == "sum":
        context.scaled(node, context.zigzag.count)
    return "term"


def _loss(context: ContextPass, node: Node, along: Along) -> State:
    """Elementwise losses: all elements count, so the ranks' means and sums are terms."""
    shapes = max((shape_of(s) for s in node.all_input_nodes), key=len)
    rank = len(shapes)
    wanted: dict[Node, State] = {}
    for source in node.all_input_nodes:
        dim = along.dim - rank + len(shape_of(source))
        own = shape_of(source)
        wanted[source] = along.at(dim) if dim >= 0 and own and own[dim] != 1 else None
        if context.state(source) not in (None, wanted[source]):
            raise context.refuse(node)
    context.emit(node, wanted)
    return _reduced(context, node, along)


def _reduced(context: ContextPass, node: Node, along: Along) -> State:
    reduction = argument(node, "reduction")
    if reduction == _SUM:
        context.scaled(node, context.zigzag.count)
    return "term" if reduction in (_MEAN, _SUM) else along


def _class_loss(context: ContextPass, node: Node, along: Along) -> State:
    """Cross-entropy over classes; ignored tokens and weights change a mean's divisor."""
    scores, target, weight = (argument(node, n) for n in ("self", "target", "weight"))
    classes = min(1, len(shape_of(scores)) - 1)
    if context.state(scores) != along or along.dim == classes or context.state(weight) is not None:
        raise context.refuse(node)
    likelihoods = shape_of(target) == shape_of(scores)
    own = along if likelihoods else along.at(along.dim - (along.dim > classes))
    if context.state(target) not in (None, own):
        raise context.refuse(node)
    reduction = argument(node, "reduction")
    if reduction == _MEAN and not likelihoods:
        total = context.emit(node, {target: own}, reduction=_SUM)
        value = value_of(total)
        mean = context.editor.emit(
            context.zigzag.mean_of_counted,
            (
                total,
                context.read(target, own),
                None if weight is None else context.editor.local(weight),
                argument(node, "ignore_index"),
            ),
            value=context.editor.fake(value.shape, value.dtype),
        )
        context.editor.define(node, mean)
        return "term"
    context.emit(node, {target: own})
    return _reduced(context, node, own)


_SPECIAL: dict[str, Rule] = {
    "getitem": _getitem,
    "broadcast_tensors": _elementwise,
    "transpose": _permute,
    "permute": _permute,
    "t": _permute,
    "expand": _expand,
    "repeat": _repeat,
    "linear": _linear,
    "layer_norm": _norm,
    "rms_norm": _norm,
    "embedding": _embedding,
    "mm": _rows,
    "addmm": _rows,
    "matmul": _product,
    "bmm": _product,
    "baddbmm": _product,
    "slice": _slice,
    "unbind": _unbind,
    "select": _select,
    "cat": _joined,
    "stack": _joined,
    "pad": _pad,
    "constant_pad_nd": _pad,
}
