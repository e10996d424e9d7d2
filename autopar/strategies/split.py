"""How the work inside a pipeline stage is divided over ranks."""

from __future__ import annotations

from dataclasses import dataclass


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
