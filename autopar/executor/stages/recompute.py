"""Running a graph a second time instead of keeping what backward needs of it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch.fx import GraphModule
from torch.utils.checkpoint import checkpoint

from autopar.executor.dropout import DropoutOff
from autopar.executor.measuring.clock import Recorder
from autopar.executor.precision import Precision
from autopar.executor.random_state import RandomState
from autopar.plans import Stage
from autopar.profiler.counting.selective import contexts
from autopar.trace.cleanup import is_random, mutated_attributes

Mode = Literal["none", "selective", "full"]
"""What of a segment is computed again: nothing, all but its products, or all."""


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Segment:
    """What running a graph again has to know of it.

    Attributes:
        random: It draws random numbers.
        written: Buffers it writes.
    """

    random: bool
    written: tuple[str, ...]


class Recompute:
    """Runs segments of one stage.

    The second run draws the same random numbers and leaves buffers (BatchNorm statistics) alone.

    Args:
        stage: Virtual stage number, for the record.
        device: Where it runs.
        recorder: Takes the time of second runs.
        precision: What both runs compute in.
    """

    def __init__(
        self, stage: int, device: torch.device, recorder: Recorder, precision: Precision
    ) -> None:
        self._precision = precision
        self._stage = stage
        self._device = device
        self._recorder = recorder
        self._dropout = True
        self._seen: dict[GraphModule, _Segment] = {}

    def _look_at(self, module: GraphModule) -> _Segment:
        """Facts of a segment, found once: walking its graph takes longer than running it."""
        if module not in self._seen:
            self._seen[module] = _Segment(
                random=any(is_random(node) for node in module.graph.nodes),
                written=tuple(sorted(mutated_attributes(module))),
            )
        return self._seen[module]

    @contextmanager
    def without_dropout(self) -> Iterator[None]:
        """Within it dropout is off, second runs included.

        Backward calls them outside of any function mode, so they enter their own.
        """
        self._dropout = False
        try:
            with DropoutOff():
                yield
        finally:
            self._dropout = True

    def run(
        self, module: GraphModule, mode: Mode, microbatch: int, arguments: Sequence[torch.Tensor]
    ) -> Any:
        """Results of a segment; autograd runs it again where the mode says so."""
        with self._precision.autocast(self._device):
            if mode == "none":
                return module(*arguments)
            return checkpoint(
                module,
                *arguments,
                use_reentrant=False,
                preserve_rng_state=self._look_at(module).random,
                context_fn=lambda: self._contexts(module, mode, microbatch),
            )

    def forget(
        self, module: GraphModule, mode: Mode, microbatch: int, arguments: Sequence[torch.Tensor]
    ) -> tuple[Any, Callable[[], Any]]:
        """Results of a segment without what backward needs; and a call that makes them with it.

        Autograd is on the first time too, or composite ops would run other kernels.
        """
        state = RandomState(self._device) if self._look_at(module).random else None
        first, second = self._contexts(module, mode, microbatch)
        cast = self._precision.autocast(self._device)
        with cast, first, torch.autograd.graph.saved_tensors_hooks(_drop, _missing):
            results = module(*arguments)

        def again() -> Any:
            same = contextlib.nullcontext() if state is None else state.restored()
            with self._precision.autocast(self._device), second, same:
                return module(*arguments)

        return results, again

    def _contexts(
        self, module: GraphModule, mode: Mode, microbatch: int
    ) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        """What to run a segment in, the first time and again."""
        first: AbstractContextManager[Any] = contextlib.nullcontext()
        again: AbstractContextManager[Any] = contextlib.nullcontext()
        if mode == "selective":
            first, again = contexts()
        return first, self._second(module, again, microbatch)

    @contextmanager
    def _second(
        self, module: GraphModule, mode: AbstractContextManager[Any], microbatch: int
    ) -> Iterator[None]:
        start = self._recorder.mark()
        buffers = [module.get_buffer(name) for name in self._look_at(module).written]
        kept = [buffer.clone() for buffer in buffers]
        try:
            with contextlib.nullcontext() if self._dropout else DropoutOff(), mode:
                yield
        finally:
            for buffer, old in zip(buffers, kept, strict=True):
                buffer.data.copy_(old)  # .data: autograd may have saved the buffer
            self._recorder.add("recompute", start, stage=self._stage, microbatch=microbatch)


def _drop(_: torch.Tensor) -> None:
    """Keep nothing."""


def _missing(_: None) -> torch.Tensor:
    raise AssertionError("backward through a segment whose values were dropped")


def segments(stage: Stage, first: int, stop: int) -> list[tuple[int, int, Mode]]:
    """``(first, stop, mode)`` covering a part of a stage."""
    ranges: list[tuple[int, int, Mode]] = [(a, b, "full") for a, b in stage.recompute]
    ranges += [(a, b, "selective") for a, b in stage.selective]
    inside = [(max(a, first), min(b, stop), mode) for a, b, mode in ranges]
    return cover(first, stop, [row for row in inside if row[0] < row[1]], "none")


def cover(
    first: int, stop: int, ranges: Iterable[tuple[int, int, T]], between: T
) -> list[tuple[int, int, T]]:
    """Disjoint ranges with their marks, and the gaps between them, in order."""
    result = []
    place = first
    for start, end, mark in sorted(ranges, key=lambda row: row[0]):
        if place < start:
            result.append((place, start, between))
        if start < end:
            result.append((start, end, mark))
        place = end
    if place < stop:
        result.append((place, stop, between))
    return result
