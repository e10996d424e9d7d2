"""Which value travels from which stage to which, known before the first step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from autopar.executor.precision import FLOAT32, Precision
from autopar.trace import Fragment, TracedTask
from autopar.trace.fragment import value_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One op's value on its way from the stage that makes it to one stage that reads it.

    Attributes:
        number: Position among all routes, the base of message tags.
        op: Index of the op.
        producer: Virtual stage that makes the value.
        consumer: Virtual stage that reads it.
        shape: Shape for one microbatch.
        dtype: Element type in the traced graph.
        travels: Element type between ranks.
        gradient: True when a gradient of the same shape flows back.
    """

    number: int
    op: int
    producer: int
    consumer: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    travels: torch.dtype
    gradient: bool


class Routes:
    """All routes of a cut graph.

    Args:
        traced: The graph.
        fragments: The fragment of every virtual stage, in order.
        precision: Says how values travel.
    """

    def __init__(
        self, traced: TracedTask, fragments: Sequence[Fragment], precision: Precision = FLOAT32
    ) -> None:
        maker = {op: s for s, fragment in enumerate(fragments) for op in fragment.exports}
        routes: list[Route] = []
        for consumer, fragment in enumerate(fragments):
            for op in fragment.imports:
                value = value_of(traced, op)
                routes.append(
                    Route(
                        number=len(routes),
                        op=op,
                        producer=maker[op],
                        consumer=consumer,
                        shape=tuple(int(n) for n in value.shape),
                        dtype=value.dtype,
                        travels=precision.between_stages(value.dtype),
                        gradient=op in traced.needs_gradient,
                    )
                )
        self.all = tuple(routes)

    def into(self, stage: int) -> tuple[Route, ...]:
        """Routes that end at a stage."""
        return tuple(r for r in self.all if r.consumer == stage)

    def out_of(self, stage: int) -> tuple[Route, ...]:
        """Routes that start at a stage."""
        return tuple(r for r in self.all if r.producer == stage)
