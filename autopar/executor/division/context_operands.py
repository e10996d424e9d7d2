"""How the operands of an op must lie so that it can work on a part of the sequence."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from torch.fx import Node

from autopar.executor.division.along import Along
from autopar.executor.division.ops import shape_of

if TYPE_CHECKING:
    from autopar.executor.division.context import ContextPass, State

Rule = Callable[["ContextPass", Node, Along], "State | None"]
"""Emits an op of which some operand is divided; returns what its result is."""


class MixesError(Exception):
    """An op reads positions that the rank does not have; nothing was emitted for it."""


def aligned(
    context: ContextPass, node: Node, along: Along, operands: Iterable[Node]
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
            raise MixesError
        wanted[source] = target
    return wanted


def result_along(context: ContextPass, node: Node, along: Along) -> Along:
    """Where the result of an elementwise op has the sequence, from its first divided operand."""
    source = next(s for s in node.all_input_nodes if context.state(s) == along)
    return along.at(along.dim + len(shape_of(node)) - len(shape_of(source)))


def only_first(context: ContextPass, node: Node, first: Node) -> None:
    """Refuse other divided operands than the first.

    Raises:
        MixesError: There is one.
    """
    if any(isinstance(context.state(s), Along) for s in node.all_input_nodes if s is not first):
        raise MixesError
