"""Ops that compute, on a value that is divided along the sequence."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.fx import Node

from autopar.executor.division.along import Along
from autopar.executor.division.context_operands import (
    MixesError,
    Rule,
    aligned,
    only_first,
    result_along,
)
from autopar.executor.division.editor import value_of
from autopar.executor.division.ops import argument, dims_of, einsum_names, has_argument, shape_of

if TYPE_CHECKING:
    from autopar.executor.division.context import ContextPass, State

_ALONG_DIM_NAMES = """
softmax log_softmax cumprod cummax cummin logcumsumexp sort argsort topk flip roll chunk
split split_with_sizes narrow glu index_select repeat_interleave renorm
"""
"""Ops that keep all dimensions and mix only along their ``dim``."""


def _linear(context: ContextPass, node: Node, along: Along) -> State:
    first = argument(node, "input")
    only_first(context, node, first)
    if along.dim == len(shape_of(first)) - 1:
        raise MixesError
    context.emit(node, {})
    return along


def _norm(context: ContextPass, node: Node, along: Along) -> State:
    first = argument(node, "input")
    only_first(context, node, first)
    if along.dim >= len(shape_of(first)) - len(argument(node, "normalized_shape")):
        raise MixesError
    context.emit(node, {})
    return along


def _embedding(context: ContextPass, node: Node, along: Along) -> State:
    if context.state(argument(node, "weight")) is not None:
        raise MixesError
    context.emit(node, {})
    return along


def _rows(context: ContextPass, node: Node, along: Along) -> State:
    """``mm`` and ``addmm``: tokens times a whole matrix."""
    left, right = node.args[-2:]
    assert isinstance(left, Node) and isinstance(right, Node)
    if context.state(right) is not None or context.state(left) != along.at(0):
        raise MixesError
    added = [a for a in node.args[:-2] if isinstance(a, Node)]
    context.emit(node, aligned(context, node, along, added))
    return along


def _product(context: ContextPass, node: Node, along: Along) -> State:
    """``matmul``, ``bmm``, ``baddbmm``: rows, columns or independent products; or attention.

    Scores are products of a rank's queries with all keys, and results products of its scores
    with all values: the right operand is gathered. A sum over positions is a term.
    """
    left, right = node.args[-2:]
    assert isinstance(left, Node) and isinstance(right, Node)
    rank = len(shape_of(node))
    if min(len(shape_of(left)), len(shape_of(right))) < 2:
        raise MixesError
    mine, theirs = context.state(left), context.state(right)
    summed = (_behind(left, mine) == 1, _behind(right, theirs) == 2)
    added = [a for a in node.args[:-2] if isinstance(a, Node)]
    if summed == (True, True):
        return _sum_over_positions(context, node, added)
    if isinstance(mine, Along) and isinstance(theirs, Along) and _behind(left, mine) == 2:
        if _behind(right, theirs) > 2 or right in (left, *added):
            raise MixesError
        context.attended = True
        result = mine.at(rank - 2)
        context.emit(node, {right: None, **aligned(context, node, result, added)})
        return result
    if any(summed):
        raise MixesError
    places = {
        state.at(state.dim + rank - len(shape_of(source)))
        for source, state in ((left, mine), (right, theirs))
        if isinstance(state, Along)
    }
    if len(places) != 1:
        raise MixesError
    (result,) = places
    operands = [left, right] if result.dim < rank - 2 else []
    context.emit(node, aligned(context, node, result, [*operands, *added]))
    return result


def _einsum(context: ContextPass, node: Node, along: Along) -> State:
    """``einsum`` of two values, as :func:`_product`: the first sequence in the result stays."""
    names, operands = einsum_names(node)
    if not names:
        raise MixesError
    found: dict[str, int] = {}
    for source, letters in zip(operands, names, strict=False):
        here = context.state(source)
        if isinstance(here, Along):
            if here.outer > 1 or here.inner > 1:
                raise MixesError
            found.setdefault(letters[here.dim], here.length)
    kept = next((letter for letter in found if letter in names[-1]), None)
    if kept is None and len(found) > 1:
        raise MixesError
    letter = kept or next(iter(found))
    wanted: dict[Node, State] = {}
    for source, letters in zip(operands, names, strict=False):
        place = letters.find(letter)
        wanted[source] = Along(dim=place, length=found[letter]) if place >= 0 else None
        if place >= 0 and context.state(source) not in (None, wanted[source]):
            raise MixesError
    if len(wanted) < len(operands):  # a value times itself
        raise MixesError
    context.emit(node, wanted)
    if kept is None:
        context.scaled(node, context.zigzag.count)
        return "term"
    context.attended |= len(found) > 1
    return Along(dim=names[-1].index(kept), length=found[kept])


def _behind(source: Node, state: State) -> int:
    """Which dimension from the end the sequence is, 1 for the last; 0 if it is in none."""
    return len(shape_of(source)) - state.dim if isinstance(state, Along) else 0


def _sum_over_positions(context: ContextPass, node: Node, added: list[Node]) -> State:
    """Products of transposed values with others, as in linear attention."""
    left, right = node.args[-2:]
    assert isinstance(left, Node) and isinstance(right, Node)
    mine, theirs = context.state(left), context.state(right)
    assert isinstance(mine, Along) and isinstance(theirs, Along)
    if added or mine.at(0) != theirs.at(0) or not value_of(node).is_floating_point():
        raise MixesError
    context.emit(node, {})
    context.scaled(node, context.zigzag.count)
    return "term"


def _running_sum(context: ContextPass, node: Node, along: Along) -> State:
    """``cumsum``: ranks exchange the sums of their chunks."""
    source = argument(node, "self")
    if dims_of(node, "dim", len(shape_of(source))) != (along.dim,):
        return _along_dim(context, node, along)
    if along.outer > 1:
        raise MixesError
    dtype = argument(node, "dtype")
    local = context.read(source, along)
    if dtype is not None:
        local = context.editor.emit(torch.ops.aten.to.dtype, (local, dtype))
    context.editor.define(
        node, context.editor.emit(context.zigzag.running_sum, (local, along.dim))
    )
    return along


def _along_dim(context: ContextPass, node: Node, along: Along) -> State:
    first = node.args[0]
    assert isinstance(first, Node)
    name = "dims" if has_argument(node, "dims") else "dim"
    rank = len(shape_of(first))
    if along.dim in dims_of(node, name, rank):
        raise MixesError
    if any(isinstance(context.state(s), Along) for s in node.all_input_nodes if s is not first):
        raise MixesError
    context.emit(node, {})
    return along


def _gather(context: ContextPass, node: Node, along: Along) -> State:
    """Along another dimension, or a rank's own entries of a whole value."""
    source, index = argument(node, "self"), argument(node, "index")
    own = along.dim in dims_of(node, "dim", len(shape_of(source)))
    sizes = {shape_of(operand)[along.dim] for operand in (source, index)}
    if (own and context.state(source) is not None) or (not own and len(sizes) > 1):
        raise MixesError
    wanted = {} if own else aligned(context, node, along, [source, index])
    context.emit(node, wanted)
    return along


def elementwise(context: ContextPass, node: Node, along: Along) -> State:
    """Ops of which an element reads the same element of each operand."""
    result = result_along(context, node, along)
    context.emit(node, aligned(context, node, result, node.all_input_nodes))
    return result


MATH: dict[str, Rule] = {
    **dict.fromkeys(_ALONG_DIM_NAMES.split(), _along_dim),
    "cumsum": _running_sum,
    "gather": _gather,
    "broadcast_tensors": elementwise,
    "linear": _linear,
    "layer_norm": _norm,
    "rms_norm": _norm,
    "embedding": _embedding,
    "mm": _rows,
    "addmm": _rows,
    "matmul": _product,
    "bmm": _product,
    "baddbmm": _product,
    "einsum": _einsum,
}
"""Op name -> rule."""
