"""What a sync mode and a compression declare; no seconds here, only bytes and mathematics."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from autopar.core.errors import InputError
from autopar.core.estimate import Estimate

Semantics = Literal["exact", "lossy", "periodic", "stale"]
"""What a step computes, beside the step of one process on the whole batch.

======== ==================================================================
exact    the same, up to the order of floating-point sums
lossy    gradients are rounded, cut or factorised on their way
periodic replicas go their own way between two averages
stale    gradients of older weights are applied
======== ==================================================================
"""

Scope = Literal["all", "node"]
"""Ranks that take part in a message: the whole data-parallel group, or its part in one node."""

Overlap = Literal["none", "backward", "step"]
"""What a message hides behind: nothing, backward (in buckets), or the next whole step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """A number in the name of a mode, ``8`` in ``local_sgd:8``.

    Attributes:
        name: Field of the mode.
        low: Smallest value.
        high: Largest value, ``None`` for no limit.
        whole: True for whole numbers.
    """

    name: str
    low: float
    high: float | None = None
    whole: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncGroup:
    """Ranks that hold the same parameters.

    Attributes:
        ranks: How many.
        nodes: Nodes they are on, the same number on each.
    """

    ranks: int
    nodes: int = 1

    @property
    def per_node(self) -> int:
        """Ranks on a node."""
        return self.ranks // self.nodes


@dataclass(frozen=True, slots=True, kw_only=True)
class Payload:
    """Gradients (or weights, or their change) of one rank.

    Attributes:
        size_bytes: All of it.
        element_bytes: One element.
    """

    size_bytes: float
    element_bytes: float = 4.0

    @property
    def elements(self) -> float:
        """Numbers in it."""
        return self.size_bytes / self.element_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One collective, or the exchange with the servers, of a sync mode.

    Attributes:
        kind: ``all_reduce``, ``reduce_scatter``, ``all_gather`` or ``all_to_all``.
        size_bytes: The full tensor, as the cost of that collective takes it.
        sent_bytes: What the busiest rank (with servers: one that has one) sends each time.
        received_bytes: What that rank receives each time.
        scope: Who takes part.
        overlap: What it hides behind.
        per_step: Times per optimizer step; below 1 for periodic modes.
    """

    kind: str
    size_bytes: float
    sent_bytes: float
    received_bytes: float
    scope: Scope = "all"
    overlap: Overlap = "none"
    per_step: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncWork:
    """What one rank does to synchronise, averaged over steps.

    Attributes:
        messages: In the order they are sent.
        streamed_bytes: Memory read and written per step to encode, decode and mix.
    """

    messages: tuple[Message, ...]
    streamed_bytes: float = 0.0

    @property
    def sent_bytes(self) -> float:
        """Bytes the busiest rank sends per step."""
        return sum(m.sent_bytes * m.per_step for m in self.messages)

    @property
    def received_bytes(self) -> float:
        """Bytes the busiest rank receives per step."""
        return sum(m.received_bytes * m.per_step for m in self.messages)


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncContext:
    """What a steps multiplier may depend on.

    Attributes:
        group: Ranks that synchronise.
        measured: Canonical sync name -> multiplier measured on this task; it has precedence.
    """

    group: SyncGroup
    measured: Mapping[str, Estimate] = field(default_factory=dict)


ONE = Estimate(value=1.0, low=1.0, high=1.0, source="analytic")
"""The multiplier of exact modes: the same mathematics takes the same steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Literature:
    """What publications say about the steps to the same loss.

    Attributes:
        multiplier: Steps over the steps of exact training, source ``assumed``.
        citation: Where it is from.
        reading: How the range was read from it.
    """

    multiplier: Estimate
    citation: str
    reading: str


def assumed(low: float, value: float, high: float) -> Estimate:
    """A multiplier that nobody measured on this task."""
    return Estimate(value=value, low=low, high=high, source="assumed")


class Choice(ABC):
    """What can be named with options.

    Subclasses are frozen dataclasses whose fields are the options, in the order of ``options``.
    A field with default ``None`` is left out of the canonical name when it is ``None``.
    """

    name: ClassVar[str]
    options: ClassVar[tuple[Option, ...]] = ()
    literature: ClassVar[Literature | None] = None


class AbstractCompression(Choice):
    """How a payload is written before it is sent."""

    exact: ClassVar[bool] = False

    @abstractmethod
    def encoded_bytes(self, payload: Payload) -> float:
        """Bytes of a payload on its way from one rank to another."""

    @abstractmethod
    def sum_messages(self, payload: Payload, ranks: int) -> tuple[Message, ...]:
        """Messages after which every rank has the sum over ``ranks``."""

    @abstractmethod
    def streamed_bytes(self, payload: Payload, ranks: int) -> float:
        """Memory traffic of encoding, decoding and error feedback, per sum."""

    def memory_bytes(self, payload: Payload, ranks: int) -> float:
        """Bytes of the error that is fed back and of whole encoded payloads."""
        return 0.0

    def error_bound(self, ranks: int) -> float | None:
        """Largest rounding of a mean, relative to the root mean square norm of its terms.

        Holds for any terms that the encoding can represent. ``None`` when a single mean has no
        bound and what is left out is fed back instead.
        """
        return None

    def check(self, payload: Payload) -> str | None:
        """Why it cannot be used on this payload, else ``None``."""
        return None


class AbstractSyncMode(Choice):
    """When and with whom a rank exchanges gradients or weights."""

    semantics: ClassVar[Semantics]
    shardable: ClassVar[bool] = False
    """True when ZeRO may share out states, gradients or weights among the same ranks."""
    axes: ClassVar[tuple[str, ...]] = ("dp_replicate",)
    """Mesh axes it works with; ``dp_shard`` follows from :attr:`shardable`."""
    refuses: ClassVar[tuple[str, ...]] = ()
    """Compressions it cannot use."""
    divides_run: ClassVar[bool] = False
    """True when what a step does depends on how many steps the run will have."""
    steps_on_servers: ClassVar[bool] = False
    """True when weights are updated elsewhere than on the ranks."""
    counts_nodes: ClassVar[bool] = False
    """True when :meth:`check` looks at the nodes of a group."""

    @abstractmethod
    def messages(
        self, payload: Payload, group: SyncGroup, compression: AbstractCompression
    ) -> tuple[Message, ...]:
        """What is sent, in order; ``group`` has at least two ranks."""

    def streamed_bytes(
        self, payload: Payload, group: SyncGroup, compression: AbstractCompression
    ) -> float:
        """Memory traffic per step beside the optimizer's own."""
        return compression.streamed_bytes(payload, group.ranks)

    def memory_bytes(
        self, payload: Payload, group: SyncGroup, compression: AbstractCompression
    ) -> float:
        """Bytes on the busiest rank beside weights, gradients and optimizer state."""
        return compression.memory_bytes(payload, group.ranks)

    def state_share(self, group: SyncGroup) -> float:
        """Part of the optimizer state, and of the optimizer's work, on the busiest rank."""
        return 1.0

    def check(self, group: SyncGroup) -> str | None:
        """Why the group cannot synchronise this way, else ``None``."""
        return None


def check_options(kind: str, item: Choice) -> None:
    """Check the range of every option of a mode or compression.

    Raises:
        InputError: A value is outside its range.
    """
    for option in item.options:
        value = getattr(item, option.name)
        if value is None:
            continue
        high = math.inf if option.high is None else option.high
        if not option.low <= value <= high:  # not a number fails too
            limit = (
                f"{option.low:g} or more"
                if option.high is None
                else (f"{option.low:g} to {option.high:g}")
            )
            raise InputError(
                f"{option.name} of {kind} '{item.name}' is {value:g}, it must be {limit}",
                hint=f"write {item.name}:{option.low:g}",
            )
