"""Small graph rewrites that make an exported graph safe to cut anywhere."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import GraphModule, Node

_CHECK_PREFIXES = ("aten._assert", "aten.sym_constrain", "aten._assert_tensor_metadata")


def drop_checks(module: GraphModule) -> None:
    """Remove run-time assertions and dead pure nodes (unused values, unused parameters)."""
    for node in reversed(module.graph.nodes):
        if node.op in ("placeholder", "output") or node.users:
            continue
        is_check = str(node.target).startswith(_CHECK_PREFIXES)
        if is_check or node.op == "get_attr" or not mutates(node):
            module.graph.erase_node(node)


def mutates(node: Node) -> bool:
    """True when the call writes into one of its arguments (BatchNorm counters, ``relu_``)."""
    return (
        node.op == "call_function"
        and isinstance(node.target, torch._ops.OpOverload)
        and node.target._schema.is_mutable
    )


def is_random(node: Node) -> bool:
    """True when the call draws random numbers in training."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return bool(getattr(target, "draws_random_numbers", False))
    if target is torch.ops.aten.scaled_dot_product_attention.default:
        dropout = node.args[4] if len(node.args) > 4 else node.kwargs.get("dropout_p", 0.0)
        return bool(dropout)
    if target is torch.ops.aten.dropout.default:
        return bool(node.args[1])
    return torch.Tag.nondeterministic_seeded in target.tags


def mutated_attributes(module: GraphModule) -> set[str]:
    """Names of buffers written in the graph: explicit in-place ops and BatchNorm statistics."""
    names = set()
    for node in module.graph.nodes:
        written: list[Any] = []
        if mutates(node):
            written = list(node.args[:1])
        elif node.op == "call_function" and "batch_norm" in str(node.target):
            written = list(node.args[3:5])
        names |= {str(a.target) for a in written if isinstance(a, Node) and a.op == "get_attr"}
    return names


def stops_gradient(node: Node) -> bool:
    """True for calls whose result is cut off from autograd."""
    name = str(node.target)
    return name.startswith(("aten.detach", "aten.alias_copy")) or "set_grad_enabled" in name


def is_differentiable_value(node: Node) -> bool:
    """True when the value is, or holds, a floating-point or complex tensor."""
    value = node.meta.get("val")
    values = value if isinstance(value, list | tuple) else [value]
    return any(
        isinstance(v, torch.Tensor) and (v.is_floating_point() or v.is_complex()) for v in values
    )


def gather_getitems(module: GraphModule) -> None:
    """Move every ``getitem`` right behind the call whose tuple it reads."""
    for node in list(module.graph.nodes):
        if node.target is not operator.getitem:
            continue
        source = node.args[0]
        assert isinstance(source, Node)
        place = source
        while place.next.target is operator.getitem and place.next.args[0] is source:
            if place.next is node:
                break
            place = place.next
        if place.next is not node:
            place.append(node)


def functionalise(module: GraphModule) -> list[tuple[Node, Node]]:
    """Replace in-place calls on activations by their out-of-place form where that is exact.

    ``relu_(x)`` followed by uses of ``x`` becomes ``relu(x)`` with those uses rewired, when no
    other live value shares the storage of ``x``.

    Returns:
        Spans ``(first node of the storage, last use)`` that stay in place and must not be cut.
    """
    spans = []
    roots = storage_roots(module)
    order = {node: i for i, node in enumerate(module.graph.nodes)}
    for node in list(module.graph.nodes):
        if not mutates(node) or not isinstance(node.args[0], Node):
            continue
        target_value = node.args[0]
        if target_value.op == "get_attr" or roots[target_value].op == "get_attr":
            continue
        family = [n for n in roots if roots[n] is roots[target_value] and n is not node]
        aliased = any(
            n is not target_value
            and order[n] < order[node]
            and any(order[u] > order[node] for u in n.users)
            for n in family
        )
        functional = _out_of_place(node)
        if functional is None or aliased or roots[target_value].op == "placeholder":
            last = max([u for n in [*family, node] for u in n.users], key=order.__getitem__)
            first = roots[target_value]
            if first.op == "call_function":
                spans.append((first, last if last.op == "call_function" else node))
            continue
        node.target = functional
        for user in list(target_value.users):
            if order[user] > order[node]:
                user.replace_input_with(target_value, node)
        roots = storage_roots(module)
    return spans


def _out_of_place(node: Node) -> Any | None:
    target = node.target
    assert isinstance(target, torch._ops.OpOverload)
    namespace, name = target.namespace, target._opname
    if not name.endswith("_") or name == "copy_":
        return None
    packet = getattr(getattr(torch.ops, namespace), name[:-1], None)
    return getattr(packet, target._overloadname, None) if packet is not None else None


def storage_roots(module: GraphModule) -> dict[Node, Node]:
    """Node -> the node that created the storage its value lives in (views and in-place calls)."""
    roots: dict[Node, Node] = {}
    for node in module.graph.nodes:
        base = None
        if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload):
            schema = node.target._schema
            for argument, value in zip(schema.arguments, node.args, strict=False):
                if argument.alias_info is not None and isinstance(value, Node):
                    base = value
                    break
        elif node.target is operator.getitem:
            base = node.args[0]
        roots[node] = roots.get(base, base) if isinstance(base, Node) else node
    return roots
