"""Replicas that train on their own and average their weights now and then."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from autopar.sync.base import (
    AbstractCompression,
    AbstractSyncMode,
    Literature,
    Message,
    Option,
    Payload,
    Semantics,
    SyncGroup,
    assumed,
)
from autopar.sync.traffic import periodic

PERIOD = Option(name="period", low=1)
STICH = (
    "Stich 2019, Local SGD Converges Fast and Communicates Little (arXiv:1805.09767); "
    "Lin et al. 2020, Don't Use Large Mini-Batches, Use Local SGD (arXiv:1808.07217)"
)


@dataclass(frozen=True)
class LocalSgd(AbstractSyncMode):
    """Weights are averaged every ``period`` steps: ``2 (n-1)/n P / H`` bytes each way."""

    period: int = 8

    name: ClassVar[str] = "local_sgd"
    semantics: ClassVar[Semantics] = "periodic"
    axes: ClassVar[tuple[str, ...]] = ("dp_replicate", "tp", "pp")
    options: ClassVar[tuple[Option, ...]] = (PERIOD,)
    literature: ClassVar[Literature | None] = Literature(
        multiplier=assumed(1.0, 1.3, 3.0),
        citation=STICH,
        reading="the rate of minibatch SGD as long as the period is small beside the square root "
        "of the steps; value and upper end are guesses, as constants depend on noise and data",
    )

    def messages(
        self, payload: Payload, group: SyncGroup, compression: AbstractCompression
    ) -> tuple[Message, ...]:
        """The sum of weights (compressed: of their change) after every ``period``-th step."""
        return periodic(compression.sum_messages(payload, group.ranks), 1.0 / self.period)

    def streamed_bytes(
        self, payload: Payload, group: SyncGroup, compression: AbstractCompression
    ) -> float:
        """Weights divided by the ranks; with compression, their change formed and applied."""
        own = 2.0 if compression.exact else 6.0
        encode = compression.streamed_bytes(payload, group.ranks)
        return (own * payload.size_bytes + encode) / self.period

    def memory_bytes(
        self, payload: Payload, group: SyncGroup, compression: AbstractCompression
    ) -> float:
        """Compressed: the weights of the last average, and the compression's error."""
        anchor = 0.0 if compression.exact else payload.size_bytes
        return anchor + compression.memory_bytes(payload, group.ranks)


@dataclass(frozen=True)
class PostLocalSgd(LocalSgd):
    """All-reduce for the first ``start`` of the steps, then local SGD."""

    period: int = 8
    start: float = 0.5

    name: ClassVar[str] = "post_local_sgd"
    divides_run: ClassVar[bool] = True
    options: ClassVar[tuple[Option, ...]] = (
        PERIOD,
        Option(name="start", low=0.0, high=1.0, whole=False),
    )
    literature: ClassVar[Literature | None] = Literature(
        multiplier=assumed(1.0, 1.1, 2.0),
        citation="Lin et al. 2020, Don't Use Large Mini-Batches, Use Local SGD (arXiv:1808.07217)",
        reading="time to accuracy and scaling of minibatch SGD, generalisation better, when "
        "averaging becomes rare at the first learning-rate decay; value and upper end are guesses",
    )

    def messages(
        self, payload: Payload, group: SyncGroup, compression: AbstractCompression
    ) -> tuple[Message, ...]:
        """Both phases, weighted by their share of the steps."""
        local = super().messages(payload, group, compression)
        exact = compression.sum_messages(payload, group.ranks)
        return (
            *(replace(m, per_step=m.per_step * self.start) for m in exact),
            *(replace(m, per_step=m.per_step * (1.0 - self.start)) for m in local),
        )

    def streamed_bytes(
        self, payload: Payload, group: SyncGroup, compression: AbstractCompression
    ) -> float:
        """Both phases, weighted by their share of the steps."""
        local = super().streamed_bytes(payload, group, compression)
        exact = compression.streamed_bytes(payload, group.ranks)
        return self.start * exact + (1.0 - self.start) * local
