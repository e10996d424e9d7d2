"""Attention of a rank's queries over the keys and values of the whole sequence."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch.fx import Node

from autopar.executor.division.along import Along
from autopar.executor.division.editor import value_of
from autopar.executor.division.ops import argument, name_of, shape_of, with_arguments

if TYPE_CHECKING:
    from autopar.executor.division.context import ContextPass, State

_ATTENTION = "scaled_dot_product_attention"
_LEAST_RANK = 3


def is_attention(node: Node) -> bool:
    """True for fused attention."""
    return name_of(node) == _ATTENTION and len(shape_of(node)) >= _LEAST_RANK


def lengths(nodes: Iterable[Node]) -> frozenset[int]:
    """Lengths of the queries and keys of all attention calls."""
    found = set()
    for node in filter(is_attention, nodes):
        for name in ("query", "key"):
            found.add(shape_of(argument(node, name))[-2])
    return frozenset(found)


def attend(context: ContextPass, node: Node) -> State:
    """Emit an attention call; returns where its result has the sequence.

    Raises:
        InputError: The sequence is elsewhere than on the second last dimension.
    """
    query, key, value = (argument(node, name) for name in ("query", "key", "value"))
    rank = len(shape_of(query))
    for source in (query, key, value):
        here = context.state(source)
        factor = isinstance(here, Along) and (here.outer > 1 or here.inner > 1)
        if here == "term" or factor or (isinstance(here, Along) and here.dim != rank - 2):
            raise context.refuse(node)
    keys, values = _keys_and_values(context, key, value, rank - 2)
    along = context.state(query)
    local_query: Node = context.editor.local(query)
    mask = argument(node, "attn_mask")
    if not isinstance(along, Along):
        _emit(context, node, query=local_query, key=keys, value=values, attn_mask=mask)
        return None
    if argument(node, "is_causal"):
        _causal(context, node, along, (local_query, keys, values))
    else:
        rows = _own_rows(context, node, mask, along)
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


def _own_rows(context: ContextPass, node: Node, mask: Node | None, along: Along) -> Node | None:
    """The rows of a mask that belong to this rank's queries."""
    if mask is None:
        return None
    here, rows = context.state(mask), len(shape_of(mask)) - 2
    if here is not None and here != along.at(rows):
        raise context.refuse(node)
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
