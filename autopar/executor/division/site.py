"""What a rule sees of an op, and what it answers: how the op runs on parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import Node

from autopar.executor.division.ops import name_of
from autopar.executor.division.parts import FinerSectionsError, Part, Region, UndividableError

Layout = Part | None | tuple["Part | None", ...]
"""Which part of an op's value a rank holds: ``None`` is the whole; a tuple for several values."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """How an op runs on one rank.

    Attributes:
        out: The part of its value.
        needs: Operand -> the part that it reads; operands not named are read whole.
        args: Arguments if they differ; nodes in them are the whole graph's.
        kwargs: Keyword arguments if they differ.
        target: What is called if it is another function.
        kind: ``local``, or what the pass adds around it: ``column``, ``row``, ``embedding``,
            ``positions``, ``loss``, ``logits``.
    """

    out: Layout
    needs: Mapping[Node, Part] = field(default_factory=dict)
    args: tuple[Any, ...] | None = None
    kwargs: Mapping[str, Any] | None = None
    target: Callable[..., Any] | None = None
    kind: str = "local"


class Site:
    """An op and the parts that its operands are.

    Args:
        node: The op.
        layouts: Parts of the values before it.
        count: Ranks.
    """

    def __init__(self, node: Node, layouts: Mapping[Node, Layout], count: int) -> None:
        self.node = node
        self.count = count
        self.name = name_of(node)
        self._layouts = layouts
        regions = {
            part.region
            for operand in node.all_input_nodes
            for part in _parts(layouts.get(operand))
        }
        self.region: Region | None = (
            "columns" if "columns" in regions else "sequence" if regions else None
        )

    def part(self, operand: object) -> Part | None:
        """The part that an operand is; a part of the sequence is made whole for columns."""
        layout = self._layouts.get(operand) if isinstance(operand, Node) else None
        if isinstance(layout, Part) and layout.region == self.region:
            return layout
        return None

    def items(self, operand: Node) -> tuple[Part | None, ...]:
        """The parts of a tuple-valued operand."""
        layout = self._layouts.get(operand)
        return layout if isinstance(layout, tuple) else ()

    def only(self, operand: object) -> Part:
        """The part of the operand that must be the one divided.

        Raises:
            UndividableError: It is whole, so another operand is divided.
        """
        part = self.part(operand)
        if part is None:
            raise UndividableError(
                f"{self.name} works on a part of another operand than its first"
            )
        for other in self.operands():
            if other is not operand and self.part(other) is not None:
                raise UndividableError(f"{self.name} of two divided operands")
        return part

    def operands(self) -> list[Node]:
        """Operands that are one tensor."""
        tensors = torch.Tensor
        return [n for n in self.node.all_input_nodes if isinstance(n.meta.get("val"), tensors)]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole result."""
        return shape_of(self.node)

    def argument(self, place: int, keyword: str, default: Any = None) -> Any:
        """An argument given by place or by keyword."""
        if len(self.node.args) > place:
            return self.node.args[place]
        return self.node.kwargs.get(keyword, default)

    def local(self, part: Part, shape: Sequence[int]) -> list[int]:
        """A whole shape with the size of a part."""
        return part.local(shape, self.count)

    def finer(self, operand: Node, sections: Sequence[int]) -> FinerSectionsError:
        """The error that asks for more sections of an operand."""
        error = FinerSectionsError(sections)
        error.operand = operand
        return error


def shape_of(node: Node) -> tuple[int, ...]:
    """Shape of a value; ``()`` if it is no tensor."""
    value = node.meta.get("val")
    return tuple(int(n) for n in value.shape) if isinstance(value, torch.Tensor) else ()


def wrap(dim: int, rank: int) -> int:
    """A dimension counted from the front."""
    return dim + rank if dim < 0 else dim


def _parts(layout: Layout) -> list[Part]:
    row = layout if isinstance(layout, tuple) else (layout,)
    return [part for part in row if part is not None]
