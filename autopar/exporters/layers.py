"""Layers: which numbered layers each stage of a plan holds, read from the names of its blocks.

Frameworks of transformers cut pipelines between layers; autopar cuts between any two ops.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from autopar.plans import Plan

_LAYER = re.compile(r"^(?P<stack>.*?)\.(?P<index>\d+)(?=\.|$)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Layers:
    """The one stack of layers of a model, cut into stages.

    Attributes:
        stages: Layer numbers that begin in each stage.
        cut: Layers that a stage boundary goes through.
        strays: True when blocks outside the layers are not all in the first and last stage.
    """

    stages: tuple[tuple[int, ...], ...]
    cut: tuple[int, ...]
    strays: bool

    @property
    def count(self) -> int:
        """Layers."""
        return sum(map(len, self.stages))

    @property
    def exact(self) -> bool:
        """True when every boundary lies between two layers."""
        return not self.cut and not self.strays

    @property
    def even(self) -> bool:
        """True when all stages hold the same number of layers."""
        return len({len(stage) for stage in self.stages}) == 1

    def why_inexact(self) -> str:
        """What layer boundaries cannot say of the stages."""
        parts = []
        if self.cut:
            parts.append(
                "stages are cut inside layer"
                + ("s " if len(self.cut) > 1 else " ")
                + ", ".join(map(str, self.cut))
                + ", written as if before the next layer"
            )
        if self.strays:
            parts.append("what comes before or after the layers is spread over several stages")
        return "; ".join(parts)


def layers_of(plan: Plan) -> Layers | None:
    """The layers of each stage, or ``None`` where the block names do not tell.

    That is so for models with several stacks (encoder and decoder), with none, with a block over
    several layers, and for plans whose stages name no blocks.
    """
    seen: dict[tuple[str, int], list[int]] = {}
    outside: list[tuple[bool, int]] = []
    for number, stage in enumerate(plan.stages):
        for name in stage.blocks:
            spans = _spans(name)
            if spans is None:
                return None
            for layer in spans:
                seen.setdefault(layer, []).append(number)
            if not spans:
                outside.append((bool(seen), number))
    indices = [index for _, index in seen]
    if not seen or len({stack for stack, _ in seen}) > 1 or indices != list(range(len(seen))):
        return None
    last = len(plan.stages) - 1
    return Layers(
        stages=tuple(
            tuple(index for (_, index), where in seen.items() if where[0] == number)
            for number in range(len(plan.stages))
        ),
        cut=tuple(index for (_, index), where in seen.items() if len(set(where)) > 1),
        strays=any(number != (last if after else 0) for after, number in outside),
    )


def _spans(name: str) -> list[tuple[str, int]] | None:
    """Layers of a block: none, one, or ``None`` where the name leaves it open.

    A run of modules is named ``FIRST … LAST`` with LAST without what both share.
    """
    first, _, rest = name.partition(" … ")
    match = _LAYER.match(first)
    if match is None:
        return []
    index = int(match["index"])
    head = rest.split(".")[0]
    if head.isdigit():  # a number that follows the layer's own, or that takes its place
        deeper = _LAYER.match(first[match.end("index") :])
        if deeper is not None or int(head) != index:
            return None
    return [(match["stack"], index)]
