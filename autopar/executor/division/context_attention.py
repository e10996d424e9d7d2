"""Attention of a rank's queries over the keys and values of the whole sequence."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import torch
from torch.fx import Node

from autopar.executor.division.along import Along
from autopar.executor.division.context_operands import MixesError
from autopar.executor.division.editor import value_of
from autopar.executor.division.ops import (
    VIEWS,
    argument,
    dims_of,
    is_elementwise,
    name_of,
    shape_of,
    with_arguments,
)
from autopar.trace import TracedTask

if TYPE_CHECKING:
    from autopar.executor.division.context import ContextPass, State

_ATTENTION = "scaled_dot_product_attention"
_PRODUCTS = ("matmul", "bmm", "baddbmm", "einsum")
_SOFTMAX = ("softmax", "_softmax")
_LEAST_RANK = 3


def is_attention(node: Node) -> bool:
    """True for fused attention."""
    return name_of(node) == _ATTENTION and len(shape_of(node)) >= _LEAST_RANK


def lengths(traced: TracedTask) -> frozenset[int]:
    """Lengths of the queries and keys of all attention, fused or written by hand."""
    found = set()
    for node in traced.nodes:
        if is_attention(node):
            for name in ("query", "key"):
                found.add(shape_of(argument(node, name))[-2])
        elif is_scores(node):
            found.update(shape_of(node)[-2:])
    return frozenset(found)


def is_scores(node: Node) -> bool:
    """True for a product of two values whose rows go through a softmax."""
    if name_of(node) not in _PRODUCTS or len(shape_of(node)) < _LEAST_RANK:
        return False
    operands = node.args[1] if name_of(node) == "einsum" else node.args[-2:]
    assert isinstance(operands, list | tuple)
    if any(not isinstance(n, Node) or n.op == "get_attr" for n in operands):
        return False
    seen, waiting = set(), list(node.users)
    while waiting:
        user = waiting.pop()
        if user in seen:
            continue
        seen.add(user)
        if name_of(user) in _SOFTMAX:
            rank = len(shape_of(user))
            return dims_of(user, "dim", rank) == (rank - 1,)
        if shape_of(user)[-2:] == shape_of(node)[-2:] and (
            is_elementwise(user) or name_of(user) in VIEWS
        ):
            waiting += user.users
    return False


def attend(context: ContextPass, node: Node) -> State:
    """Emit an attention call; returns where its result has the sequence.

    Raises:
        MixesError: The sequence is elsewhere than on the second last dimension.
    """
    query, key, value = (argument(node, name) for name in ("query", "key", "value"))
    rank = len(shape_of(query))
    for source in (query, key, value):
        here = context.state(source)
        factor = isinstance(here, Along) and (here.outer > 1 or here.inner > 1)
        if here == "term" or factor or (isinstance(here, Along) and here.dim != rank - 2):
            raise MixesError
    along, mask = context.state(query), argument(node, "attn_mask")
    rows = _own_rows(context, mask, along) if isinstance(along, Along) else mask
    if along is None and mask is not None and context.state(mask) is not None:
        raise MixesError
    context.attended = True
    keys, values = _keys_and_values(context, key, value, rank - 2)
    local_query: Node = context.editor.local(query)
    if not isinstance(along, Along):
        _emit(
            context,
            node,
            query=local_query,
            key=keys,
            value=values,
            attn_mask=context.editor.local(mask),
        )
        return None
    if argument(node, "is_causal"):
        _causal(context, node, along, (local_query, keys, values))
    else:
        _emit(context, node, query=local_query, key=keys, value=values, attn_mask=rows)
    return along


def _keys_and_values(context: ContextPass, key: Node, value: Node, dim: int) -> tuple[Node, Node]:
    """Both whole, in the order of positions; together in one message where that is possible."""
    if context.state(key) is None or context.state(value) is None or key is value:
        return context.read(key, None), context.read(value, None)
    editor = context.editor
    whole = [editor.fake(value_of(n).shape, value_of(n).dtype) for n in (key, value)]
    both = editor.emit(
        context.zigzag.keys_and_values,
        (editor.local(key), editor.local(value), dim),
        value=tuple(whole),
    )
    first, second = (editor.emit(operator.getitem, (both, i)) for i in (0, 1))
    return first, second


def _own_rows(context: ContextPass, mask: Node | None, along: Along) -> Node | None:
    """The rows of a mask that belong to this rank's queries."""
    if mask is None:
        return None
    here, rows = context.state(mask), len(shape_of(mask)) - 2
    if here is not None and here != along.at(rows):
        raise MixesError
    if rows < 0 or shape_of(mask)[rows] == 1:
        return context.read(mask, here)
    return context.read(mask, along.at(rows))


def _causal(
    context: ContextPass, node: Node, along: Along, operands: tuple[Node, Node, Node]
) -> None:
    """Each of the rank's two chunks of queries attends to the keys up to its own end."""
    editor, aten = context.editor, torch.ops.aten
    query, keys, values = operands
    dim, before, results = along.dim, 0, []
    for start, stop in context.zigzag.chunks(along.length):
        end = min(stop, shape_of(keys)[-2])
        given: dict[str, Any] = {
            "query": editor.emit(aten.narrow.default, (query, dim, before, stop - start)),
            "key": editor.emit(aten.narrow.default, (keys, dim, 0, end)),
            "value": editor.emit(aten.narrow.default, (values, dim, 0, end)),
        }
        if start:
            given["attn_mask"] = _mask(context, (start, stop, end), value_of(query).device)
            given["is_causal"] = False
        results.append(_emit(context, node, **given))
        before += stop - start
    editor.define(node, editor.emit(aten.cat.default, (results, dim)))


def _mask(context: ContextPass, place: tuple[int, int, int], device: torch.device) -> Node:
    """Which of the first keys each query of a chunk reads; all layers of a stage share it.

    Args:
        context: The pass.
        place: First query, one past the last, number of keys.
        device: Where the graph was traced.
    """
    if place not in context.masks:
        start, stop, end = place
        ones = context.editor.emit(
            torch.ops.aten.ones.default,
            ([stop - start, end],),
            {"dtype": torch.bool, "device": device},
        )
        context.masks[place] = context.editor.emit(torch.ops.aten.tril.default, (ones, start))
    return context.masks[place]


def _emit(context: ContextPass, node: Node, **replaced: Any) -> Node:
    """The call with other operands; those given are this rank's nodes."""
    args, kwargs = with_arguments(node, **replaced)
    emitted = context.editor.emit(node.target, args, kwargs)  # type: ignore[arg-type]
    emitted.meta = {**node.meta, "val": emitted.meta["val"]}
    context.editor.define(node, emitted)
    return emitted
