"""How the work inside a pipeline stage is divided over ranks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from autopar.strategies.matmul import Products


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Split:
    """Degrees of the axes that divide ops.

    Attributes:
        tp: Tensor parallel ranks.
        sequence_parallel: Ops outside tensor parallel regions divide the sequence over them
            (Korthikanti et al. 2022, arXiv 2205.05198).
        cp: Context parallel ranks.
        ep: Expert parallel ranks.
    """

    tp: int = 1
    sequence_parallel: bool = False
    cp: int = 1
    ep: int = 1


WHOLE = Split()
"""Nothing is divided."""


class Strategy(Protocol):
    """One way to divide the ops of a profile; made from its :class:`Products`."""

    def __init__(self, products: Products) -> None: ...

    def why_not(self, degree: int, /) -> str | None:
        """Why the model cannot be divided over ``degree`` ranks, or ``None``."""
        ...
