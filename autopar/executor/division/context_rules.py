"""What each kind of op does with a value that is divided along the sequence."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch.fx import Node

from autopar.executor.division.along import Along
from autopar.executor.division.context_losses import LOSSES
from autopar.executor.division.context_math import MATH, elementwise
from autopar.executor.division.context_operands import MixesError, Rule
from autopar.executor.division.context_shapes import SHAPES
from autopar.executor.division.ops import is_elementwise, name_of

if TYPE_CHECKING:
    from autopar.executor.division.context import ContextPass, State

_LINEAR_NAMES = """
add add_ sub sub_ neg mul div sum mean to clone contiguous alias view reshape unsqueeze squeeze
flatten
"""
_LINEAR = frozenset(_LINEAR_NAMES.split())
"""Ops whose result is a term when one operand is: the mean over ranks commutes with them."""
_PRODUCTS = frozenset({"mul", "div"})
_RULES: dict[str, Rule] = {**SHAPES, **MATH, **LOSSES}


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
        MixesError: The op mixes positions, or is not known.
    """
    rule = _RULES.get(name_of(node), elementwise if is_elementwise(node) else None)
    if rule is None:
        raise MixesError
    along = next(a for s in node.all_input_nodes if isinstance(a := context.state(s), Along))
    return rule(context, node, along)
