"""Backward in two halves: gradients of a graph's inputs first, those of its weights later.

The autograd graph of a stage is a *chain* (nodes through which an input is reached) with weights
hanging off it: a weight's own small graph (a transposition, a cast, the accumulation) is entered
from one chain node, the matrix product that used it. The first half runs the chain alone and
notes the gradient that arrives at each of these chain nodes; the second half runs each of them
again for the weight's side alone, then the weights' own graphs. Autograd computes only what a call
asks for, so no product is computed twice.

``torch.distributed.pipelining._backward`` does the same by parameter, and fails where a weight is
used twice (the second use is reached through the first one: counted double), where an output was
made in place, or where an output is an input. Hence this file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

Gradients = list[torch.Tensor | None]


@dataclass(kw_only=True)
class WeightHalf:
    """What is left of a backward after its input gradients.

    Attributes:
        branches: Chain nodes that lead to weights, with the gradients that arrived there and the
            edges on the weights' side.
        known: Edges on the weights' side whose gradients are known already.
    """

    branches: list[tuple[Node, Sequence[torch.Tensor | None], list[GradientEdge]]] = field(
        default_factory=list
    )
    known: list[tuple[GradientEdge, torch.Tensor]] = field(default_factory=list)

    def run(self) -> None:
        """Add the gradients of all weights to their ``grad``."""
        found = self.known
        for node, arrived, edges in self.branches:
            live = [i for i, gradient in enumerate(arrived) if gradient is not None]
            gradients = torch.autograd.grad(
                [GradientEdge(node, i) for i in live],
                edges,
                [arrived[i] for i in live],
                allow_unused=True,
            )
            found += [(e, g) for e, g in zip(edges, gradients, strict=True) if g is not None]
        self.branches, self.known = [], []
        if found:
            torch.autograd.backward([e for e, _ in found], [g for _, g in found])


def backward_input(
    outputs: Sequence[torch.Tensor],
    gradients: Sequence[torch.Tensor],
    inputs: Sequence[torch.Tensor],
) -> tuple[Gradients, WeightHalf]:
    """The first half.

    Without inputs there is nothing to hurry for: everything is left to the second half.

    Args:
        outputs: Values that require a gradient.
        gradients: Their gradients.
        inputs: Leaves that require a gradient.

    Returns:
        Gradient of each input (``None`` where no output depends on it), and the second half.
    """
    edges = [get_gradient_edge(t) for t in outputs]
    leaves = {get_gradient_edge(t).node for t in inputs}
    order, chain = _walk([edge.node for edge in edges], leaves)
    half = WeightHalf()
    live = []
    for output, edge, gradient in zip(outputs, edges, gradients, strict=True):
        if edge.node in chain:
            live.append((output, gradient))
        else:
            half.known.append((edge, gradient))
    if not live:
        return [None] * len(inputs), half
    own, shared = _weight_edges([n for n in order if n in chain and n not in leaves], chain)
    arrived: dict[Node, tuple[Any, ...]] = {}
    handles = [node.register_prehook(_note(arrived, node)) for node in own]
    try:
        wanted: list[Any] = [*inputs, *shared]
        found = torch.autograd.grad(
            [output for output, _ in live],
            wanted,
            [gradient for _, gradient in live],
            retain_graph=True,
            allow_unused=True,
        )
    finally:
        for handle in handles:
            handle.remove()
    half.branches = [(node, arrived[node], own[node]) for node in own if node in arrived]
    early = zip(shared, found[len(inputs) :], strict=True)
    half.known += [(edge, gradient) for edge, gradient in early if gradient is not None]
    return list(found[: len(inputs)]), half


def _note(arrived: dict[Node, tuple[Any, ...]], node: Node) -> Callable[[Any], None]:
    def hook(gradients: tuple[Any, ...]) -> None:
        arrived[node] = gradients

    return hook


def _walk(roots: Sequence[Node], leaves: set[Node]) -> tuple[list[Node], set[Node]]:
    """All nodes below the roots, children first, and those through which a leaf is reached."""
    order: list[Node] = []
    chain: set[Node] = set()
    seen: set[Node] = set()
    stack: list[tuple[Node, bool]] = [(node, False) for node in roots]
    while stack:
        node, done = stack.pop()
        if done:
            order.append(node)
            if node in leaves or any(child in chain for child, _ in node.next_functions):
                chain.add(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack += [(child, False) for child, _ in node.next_functions if child is not None]
    return order, chain


def _weight_edges(
    nodes: Sequence[Node], chain: set[Node]
) -> tuple[dict[Node, list[GradientEdge]], list[GradientEdge]]:
    """Edges that leave the chain, by the node they leave; and weights for the first half.

    A gradient that comes in parts from several chain nodes cannot be had from one of them alone.
    The weights below such a place, and whatever else leads to one of these, are taken in the
    first half.
    """
    parents: dict[Node, set[Node]] = {}
    for node in nodes:
        for child, _ in node.next_functions:
            if child is not None and child not in chain:
                parents.setdefault(child, set()).add(node)
    below = {child: _ends(child) for child in parents}
    pending = [child for child, above in parents.items() if len(above) > 1]
    early: set[Node] = set()
    while pending:
        found = below.pop(pending.pop()) - early
        early |= found
        pending += [child for child, ends in below.items() if ends & found]
        pending = [child for child in dict.fromkeys(pending) if child in below]
    own: dict[Node, dict[tuple[Node, int], None]] = {}
    for node in nodes:
        for child, number in node.next_functions:
            if child in below:
                own.setdefault(node, {})[child, number] = None
    return (
        {node: [GradientEdge(*edge) for edge in edges] for node, edges in own.items()},
        [GradientEdge(node, 0) for node in early],
    )


def _ends(node: Node) -> set[Node]:
    """Leaves below a node, itself if it is one."""
    order, _ = _walk([node], set())
    return {n for n in order if not any(child for child, _ in n.next_functions)}
