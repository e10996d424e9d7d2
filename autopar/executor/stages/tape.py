"""One microbatch of a stage, kept for a backward in two halves.

Each segment of the stage has an autograd graph of its own, from leaves that share the memory of
what it read. A recomputed segment has none after forward; its graph is made when its input
gradients are due and serves its weight gradients too, so it is computed again once.
(``torch.utils.checkpoint`` would compute it again for every call of autograd.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from autopar.executor.stages.split_backward import WeightHalf, backward_input
from autopar.trace import Fragment

Values = dict[int, torch.Tensor]


@dataclass(kw_only=True)
class Section:
    """One segment's run.

    Attributes:
        fragment: The segment.
        leaves: Op index -> what it read of the op, a leaf of its graph.
        outputs: Op index -> what it made; empty when it is computed again.
        again: Computes the outputs again, with a graph; ``None`` when they are kept.
        around: Context in which weights are there.
    """

    fragment: Fragment
    leaves: Values
    outputs: Values
    again: Callable[[], Values] | None
    around: Callable[[], AbstractContextManager[None]] = nullcontext


class Tape:
    """Backward of one microbatch of one stage.

    Args:
        sections: Runs of the segments in order.
        imports: Op indices of the imports whose gradients are sent on.

    Attributes:
        finished: Called when all gradients of the microbatch are there.
    """

    def __init__(self, sections: Sequence[Section], imports: Sequence[int]) -> None:
        self._sections = list(sections)
        self._imports = tuple(imports)
        self._halves: list[tuple[Section, WeightHalf]] = []
        self.finished: Callable[[], None] = lambda: None
        self._waiting: Mapping[int, torch.Tensor] | None = None

    def backward_input(self, gradients: Mapping[int, torch.Tensor]) -> Values:
        """Gradients of the imports; where a stage has none, all is left to the second half.

        Args:
            gradients: Op index -> gradient, for exports that got one.

        Returns:
            Op index -> gradient; an import that no export depends on is left out.
        """
        if not self._imports:
            self._waiting = gradients
            return {}
        found = self._run(gradients)
        return {op: found[op] for op in self._imports if op in found}

    def backward_weight(self) -> None:
        """Add the gradients of the stage's weights to their ``grad``."""
        if self._waiting is not None:
            self._run(self._waiting, weights=True)
        for section, half in self._halves:
            with section.around():
                half.run()
        self._halves = []
        self.finished()

    def _run(self, gradients: Mapping[int, torch.Tensor], weights: bool = False) -> Values:
        """Last segment first: each adds to the gradients of what it read."""
        known = dict(gradients)
        while self._sections:
            section = self._sections.pop()
            live = [op for op in section.fragment.exports if op in known]
            if not live:
                continue
            with section.around():
                outputs = section.outputs if section.again is None else section.again()
                live = [op for op in live if outputs[op].requires_grad]
                read = {op: leaf for op, leaf in section.leaves.items() if leaf.requires_grad}
                found, half = backward_input(
                    [outputs[op] for op in live], [known[op] for op in live], list(read.values())
                )
                if weights:
                    half.run()
                else:
                    self._halves.append((section, half))
            for op, gradient in zip(read, found, strict=True):
                if gradient is not None:
                    known[op] = known[op] + gradient if op in known else gradient
        return known
