"""Cut a contiguous run of ops out of a traced graph as a module of its own."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.fx import Graph, GraphModule, Node

from autopar.core.errors import InputError
from autopar.trace.export import TracedTask


@dataclass(frozen=True, kw_only=True, eq=False)
class Fragment:
    """Ops ``[first, stop)`` as a module.

    Attributes:
        module: ``module(*batch leaves, *imports) -> tuple of exports``; shares the parameters and
            buffers of the traced module.
        first: First op.
        stop: One past the last op.
        batch_leaves: Positions of the flat batch tensors it reads.
        imports: Op indices of the values it receives from earlier fragments, in argument order.
        exports: Op indices of its values that later fragments read, in result order; the last
            fragment exports the loss.
        parameters: Model names of the parameters it reads; a tied one appears in several
            fragments under the same name.
    """

    module: GraphModule
    first: int
    stop: int
    batch_leaves: tuple[int, ...]
    imports: tuple[int, ...]
    exports: tuple[int, ...]
    parameters: tuple[str, ...]


def extract(traced: TracedTask, first: int, stop: int) -> Fragment:
    """Cut ops ``[first, stop)`` out of a traced task.

    Replicated values (masks, positions) are computed inside the fragment from batch inputs;
    everything else from earlier ops becomes an import.

    Raises:
        InputError: The range is empty, outside the graph or at a place that cannot be cut.
    """
    count = len(traced.nodes)
    for place in (first, stop):
        if place not in traced.cuts and place not in (0, count):
            raise InputError(
                f"task '{traced.task.name}' cannot be cut before op {place}: an in-place or "
                "tuple-valued op spans it",
                hint="plan again; the planner only cuts at legal positions",
            )
    if not first < stop:
        raise InputError(f"fragment [{first}, {stop}) is empty", hint="give each stage an op")
    members = _members(traced, first, stop)
    imports = sorted(
        {
            traced.index[arg]
            for i in members
            for arg in traced.nodes[i].all_input_nodes
            if arg.op == "call_function" and traced.index[arg] not in members
        }
    )
    return _assemble(traced, first, stop, sorted(members), imports)


def exports_of(traced: TracedTask, first: int, stop: int) -> tuple[int, ...]:
    """Op indices in ``[first, stop)`` whose values later, non-replicated ops read."""
    result = []
    for i in range(first, stop):
        if i in traced.replicated:
            continue
        users = (traced.index[u] for u in traced.nodes[i].users if u in traced.index)
        if any(u >= stop for u in users) or i == len(traced.nodes) - 1:
            result.append(i)
    return tuple(result)


def _members(traced: TracedTask, first: int, stop: int) -> set[int]:
    """Own ops plus the replicated ones they need, wherever those stand."""
    members = {i for i in range(first, stop) if i not in traced.replicated}
    pending = list(members)
    while pending:
        for arg in traced.nodes[pending.pop()].all_input_nodes:
            i = traced.index.get(arg)
            if i is not None and i in traced.replicated and i not in members:
                members.add(i)
                pending.append(i)
    return members


def _assemble(
    traced: TracedTask, first: int, stop: int, members: list[int], imports: list[int]
) -> Fragment:
    graph = Graph()
    mapping: dict[Node, Node] = {}
    used = {arg for i in members for arg in traced.nodes[i].all_input_nodes}
    leaves = []
    for position, name in enumerate(traced.leaves):
        node = next(n for n in used | _placeholders(traced) if n.target == name)
        if node in used:
            mapping[node] = graph.placeholder(name)
            leaves.append(position)
    for i in imports:
        source = traced.nodes[i]
        mapping[source] = graph.placeholder(f"import_{source.name}")
        mapping[source].meta = dict(source.meta)
    parameters: list[str] = []
    for i in members:
        node = traced.nodes[i]
        for arg in node.all_input_nodes:
            if arg.op == "get_attr" and arg not in mapping:
                mapping[arg] = graph.node_copy(arg)
        parameters += [p for p in traced.parameters_of(node) if p not in parameters]
        mapping[node] = graph.node_copy(node, lambda n: mapping[n])
    exports = exports_of(traced, first, stop)
    graph.output(tuple(mapping[traced.nodes[i]] for i in exports))
    module = GraphModule(traced.module, graph, class_name=f"Fragment_{first}_{stop}")
    return Fragment(
        module=module,
        first=first,
        stop=stop,
        batch_leaves=tuple(leaves),
        imports=tuple(imports),
        exports=exports,
        parameters=tuple(parameters),
    )


def _placeholders(traced: TracedTask) -> set[Node]:
    return {n for n in traced.module.graph.nodes if n.op == "placeholder"}


def value_of(traced: TracedTask, op: int) -> torch.Tensor:
    """Fake tensor with the shape, dtype and strides of an op's value.

    Raises:
        InputError: The value is not a single tensor.
    """
    value = traced.nodes[op].meta.get("val")
    if not isinstance(value, torch.Tensor):
        raise InputError(f"op {op} ({traced.nodes[op].name}) does not hold one tensor")
    return value
