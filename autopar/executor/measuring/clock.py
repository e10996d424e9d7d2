"""Time stamps cheap enough to take around every action of a step."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch

Phase = Literal[
    "forward",
    "backward",
    "backward_input",
    "backward_weight",
    "recompute",
    "wait",
    "sync",
    "optimizer",
]


class Clock(Protocol):
    """A source of marks; on CUDA a mark is an event on the stream, read after the step."""

    def mark(self) -> Any:
        """Stamp now."""

    def seconds(self, start: Any, end: Any) -> float:
        """Time between two marks; waits for the device when needed."""


class CpuClock:
    """``time.perf_counter``; work on the CPU is done when the call returns."""

    def mark(self) -> float:
        """Stamp now."""
        return time.perf_counter()

    def seconds(self, start: float, end: float) -> float:
        """Time between two marks."""
        return end - start


class CudaClock:
    """CUDA events on the current stream: kernels are timed where they run, nothing is stalled."""

    def mark(self) -> torch.cuda.Event:
        """Stamp now."""
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def seconds(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        """Time between two marks."""
        end.synchronize()
        return float(start.elapsed_time(end)) * 1e-3


def clock_for(device: torch.device) -> Clock:
    """The clock of a device."""
    return CudaClock() if device.type == "cuda" else CpuClock()


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """One interval on this rank.

    Attributes:
        kind: What was done.
        start_s: Seconds since the step began.
        end_s: Seconds since the step began.
        stage: Virtual stage, -1 when none.
        microbatch: Microbatch, -1 when none.
        towards: For ``wait``: the kind of the action that waited.
        peer: For ``wait``: the virtual stage that sent.
    """

    kind: Phase
    start_s: float
    end_s: float
    stage: int = -1
    microbatch: int = -1
    towards: str = ""
    peer: int = -1


_Marks = tuple[Phase, Any, Any, int, int, str, int]
"""Kind, start, end and the other fields of a :class:`Span`."""


class Recorder:
    """Collects the spans of one step after another.

    Args:
        clock: Where marks come from.

    Attributes:
        records: False when nothing is kept, so that marks need not be taken.
    """

    records = True

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._marks: list[_Marks] = []
        self._origin: Any = None
        self._end: Any = None

    def begin(self) -> None:
        """Forget the last step; now is second 0."""
        self._marks = []
        self._origin = self._clock.mark()

    def mark(self) -> Any:
        """Stamp now, for :meth:`add`."""
        return self._clock.mark()

    def add(
        self,
        kind: Phase,
        start: Any,
        *,
        stage: int = -1,
        microbatch: int = -1,
        towards: str = "",
        peer: int = -1,
    ) -> None:
        """Record a span that ends now."""
        end = self._clock.mark()
        self._marks.append((kind, start, end, stage, microbatch, towards, peer))

    def add_between(
        self, kind: Phase, start: Any, end: Any, *, stage: int = -1, microbatch: int = -1
    ) -> None:
        """Record a span between two marks."""
        self._marks.append((kind, start, end, stage, microbatch, "", -1))

    @contextmanager
    def span(self, kind: Phase) -> Iterator[None]:
        """Record the body as one span."""
        start = self._clock.mark()
        yield
        self.add(kind, start)

    def finish(self) -> float:
        """End the step; returns its seconds on this rank."""
        self._end = self._clock.mark()
        return self._clock.seconds(self._origin, self._end)

    def recording(self) -> Recording:
        """What was recorded of the step, to be read when there is time."""
        return Recording(self._clock, self._origin, self._marks)


class Recording:
    """The marks of one step.

    Args:
        clock: Where they come from.
        origin: Mark of second 0.
        marks: As :class:`Recorder` keeps them.
    """

    def __init__(self, clock: Clock, origin: Any, marks: Sequence[_Marks]) -> None:
        self._clock = clock
        self._origin = origin
        self._marks = marks

    def spans(self) -> list[Span]:
        """Spans of the step, ordered by start."""
        origin, seconds = self._origin, self._clock.seconds
        spans = [
            Span(
                kind=kind,
                start_s=seconds(origin, start),
                end_s=seconds(origin, end),
                stage=stage,
                microbatch=microbatch,
                towards=towards,
                peer=peer,
            )
            for kind, start, end, stage, microbatch, towards, peer in self._marks
        ]
        return sorted(spans, key=lambda s: s.start_s)


class Silent(Recorder):
    """Takes no times: for training that nobody asks for a timeline."""

    records = False

    def __init__(self) -> None:
        super().__init__(CpuClock())

    def begin(self) -> None:
        """Nothing."""

    def mark(self) -> Any:
        """Nothing."""

    def add(self, *_: Any, **__: Any) -> None:
        """Nothing."""

    def add_between(self, *_: Any, **__: Any) -> None:
        """Nothing."""

    @contextmanager
    def span(self, kind: Phase) -> Iterator[None]:
        """Nothing but the body."""
        yield
