"""Ops that move elements, on a value that is divided along the sequence."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.fx import Node

from autopar.executor.division.along import Along
from autopar.executor.division.context_operands import MixesError, Rule, result_along
from autopar.executor.division.editor import value_of
from autopar.executor.division.ops import VIEWS, argument, dims_of, name_of, shape_of

if TYPE_CHECKING:
    from autopar.executor.division.context import ContextPass, State


def _view(context: ContextPass, node: Node, along: Along) -> State:
    source = node.all_input_nodes[0]
    after = shape_of(node)
    moved = along.through_view(shape_of(source), after)
    if moved is None:
        raise MixesError
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


def _expand(context: ContextPass, node: Node, along: Along) -> State:
    result = result_along(context, node, along)
    context.emit(node, {}, size=result.part(shape_of(node), context.zigzag.count))
    return result


def _repeat(context: ContextPass, node: Node, along: Along) -> State:
    result = result_along(context, node, along)
    if argument(node, "repeats")[result.dim] != 1:
        raise MixesError
    context.emit(node, {})
    return result


def _slice(context: ContextPass, node: Node, along: Along) -> State:
    first = argument(node, "self")
    (dim,) = dims_of(node, "dim", len(shape_of(first)))
    if dim == along.dim and shape_of(node)[dim] != shape_of(first)[dim]:
        raise MixesError
    if dim == along.dim:  # all of it; the end may be given as the whole length
        context.editor.define(node, context.editor.local(first))
    else:
        context.emit(node, {})
    return along


def _unbind(context: ContextPass, node: Node, along: Along) -> State:
    (dim,) = dims_of(node, "dim", len(shape_of(argument(node, "self"))))
    if dim == along.dim:
        raise MixesError
    context.emit(node, {})
    return along.at(along.dim - (dim < along.dim))


def _select(context: ContextPass, node: Node, along: Along) -> State:
    """One position: a term that is zero on the ranks that do not have it."""
    first = argument(node, "self")
    (dim,) = dims_of(node, "dim", len(shape_of(first)))
    if dim != along.dim:
        return _unbind(context, node, along)
    if along.outer * along.inner > 1 or not value_of(first).is_floating_point():
        raise MixesError
    place = context.zigzag.find(argument(node, "index") % along.length, along.length)
    context.emit(node, {}, index=place or 0)
    context.scaled(node, 0.0 if place is None else context.zigzag.count)
    return "term"


def _joined(context: ContextPass, node: Node, along: Along) -> State:
    """``cat`` and ``stack`` along another dimension."""
    new = name_of(node) == "stack"
    (dim,) = dims_of(node, "dim", len(shape_of(node)))
    if dim == along.dim and not new:
        raise MixesError
    wanted: dict[Node, State] = {}
    for source in node.all_input_nodes:
        if context.state(source) not in (None, along):
            raise MixesError
        wanted[source] = along
    context.emit(node, wanted)
    return along.at(along.dim + (new and dim <= along.dim))


def _pad(context: ContextPass, node: Node, along: Along) -> State:
    first, pads = argument(node, "self"), argument(node, "pad")
    behind = len(shape_of(first)) - 1 - along.dim
    if any(pads[2 * behind : 2 * behind + 2]):
        raise MixesError
    context.emit(node, {})
    return along


def _getitem(context: ContextPass, node: Node, along: Along) -> State:
    context.emit(node, {})
    return along


def _factory(context: ContextPass, node: Node, along: Along) -> State:
    """Sizes are given: only the kind of the divided operand matters."""
    context.emit(node, {})
    return None


SHAPES: dict[str, Rule] = {
    **dict.fromkeys(VIEWS, _view),
    **dict.fromkeys(("new_zeros", "new_ones", "new_full", "new_empty"), _factory),
    "getitem": _getitem,
    "transpose": _permute,
    "permute": _permute,
    "t": _permute,
    "expand": _expand,
    "repeat": _repeat,
    "slice": _slice,
    "unbind": _unbind,
    "select": _select,
    "cat": _joined,
    "stack": _joined,
    "pad": _pad,
    "constant_pad_nd": _pad,
}
"""Op name -> rule."""
