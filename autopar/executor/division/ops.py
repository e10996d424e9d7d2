"""What the passes need to know of an op by its name: arguments, dimensions, elementwise or not."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import Node

from autopar.executor.division.editor import value_of

_ELEMENTWISE_NAMES = """
to _to_copy type_as float half bfloat16 double contiguous clone alias detach dropout
feature_dropout alpha_dropout where masked_fill floor_divide zeros_like ones_like full_like
rand_like randn_like empty_like one_hot_like hardswish relu6 selu celu prelu mish softplus
dropout_ relu_ silu_ gelu_ clamp clip square rsub true_divide remainder
"""
_ELEMENTWISE = frozenset(_ELEMENTWISE_NAMES.split())
"""Elementwise ops without torch's own tag: it is missing on composite ops."""
_VIEW_NAMES = "view reshape _unsafe_view flatten unflatten unsqueeze squeeze view_as reshape_as"
VIEWS = frozenset(_VIEW_NAMES.split())
"""Ops that give the same elements in the same order another shape."""
SHAPED = frozenset({"view", "reshape", "_unsafe_view"})
"""Those of them whose sizes are an argument."""


def name_of(node: Node) -> str:
    """``aten.mul.Tensor`` -> ``mul``; ``getitem`` for items of tuples."""
    if node.target is operator.getitem:
        return "getitem"
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target._opname
    return getattr(node.target, "__name__", str(node.target))


def is_elementwise(node: Node) -> bool:
    """True when an element of the result depends on the same element of each operand only."""
    target = node.target
    tagged = isinstance(target, torch._ops.OpOverload) and torch.Tag.pointwise in target.tags
    return tagged or name_of(node) in _ELEMENTWISE


def argument(node: Node, name: str) -> Any:
    """An argument of an op by its name in the schema, its default where it is not given.

    Raises:
        KeyError: The op has no such argument.
    """
    assert isinstance(node.target, torch._ops.OpOverload)
    for place, item in enumerate(node.target._schema.arguments):
        if item.name == name:
            if name in node.kwargs:
                return node.kwargs[name]
            return node.args[place] if place < len(node.args) else item.default_value
    raise KeyError(name)


def has_argument(node: Node, name: str) -> bool:
    """True when an op's schema has an argument of that name."""
    target = node.target
    return isinstance(target, torch._ops.OpOverload) and any(
        item.name == name for item in target._schema.arguments
    )


def with_arguments(node: Node, **values: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of an op with some replaced, by their names in the schema."""
    assert isinstance(node.target, torch._ops.OpOverload)
    args, kwargs = list(node.args), dict(node.kwargs)
    places = {item.name: place for place, item in enumerate(node.target._schema.arguments)}
    for name, value in values.items():
        if places[name] < len(args):
            args[places[name]] = value
        else:
            kwargs[name] = value
    return tuple(args), kwargs


def written(node: Node) -> list[Node]:
    """Operands that an op changes in place."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return []
    changed = (
        argument(node, item.name)
        for item in node.target._schema.arguments
        if item.alias_info is not None and item.alias_info.is_write
    )
    return [operand for operand in changed if isinstance(operand, Node)]


def einsum_names(node: Node) -> tuple[list[str], list[Node]]:
    """Dimensions of each operand and, last, of the result of an ``einsum``; and the operands.

    Both are empty when the equation leaves some unnamed or names one twice in an operand.
    """
    equation, operands = node.args[:2]
    assert isinstance(equation, str) and isinstance(operands, list | tuple)
    inputs, arrow, result = equation.replace(" ", "").partition("->")
    names = [*inputs.split(","), result]
    if not arrow or "." in equation or any(len(set(row)) < len(row) for row in names):
        return [], []
    return names, [operand for operand in operands if isinstance(operand, Node)]


def shape_of(node: Node) -> tuple[int, ...]:
    """Shape of a node's tensor; of the first one of a tuple; ``()`` for a number."""
    value = value_of(node)
    if isinstance(value, list | tuple):
        value = value[0]
    return tuple(value.shape) if isinstance(value, torch.Tensor) else ()


def dims_of(node: Node, name: str, rank: int) -> tuple[int, ...]:
    """A dimension argument, one or several, counted from 0; all dimensions when it is ``None``."""
    given = argument(node, name)
    if given is None or given == []:
        return tuple(range(rank))
    return tuple(d % rank for d in (given if isinstance(given, list | tuple) else (given,)))
