"""Every rank has the mean gradient before it steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from autopar.sync.base import (
    AbstractCompression,
    AbstractSyncMode,
    Message,
    Payload,
    Semantics,
    SyncGroup,
)


@dataclass(frozen=True)
class AllReduce(AbstractSyncMode):
    """Synchronous data parallelism: ``2 (n-1)/n P`` bytes each way per step."""

    name: ClassVar[str] = "all_reduce"
    semantics: ClassVar[Semantics] = "exact"
    shardable: ClassVar[bool] = True
    axes: ClassVar[tuple[str, ...]] = ("dp_replicate", "cp", "tp", "pp", "ep")

    def messages(
        self, payload: Payload, group: SyncGroup, compression: AbstractCompression
    ) -> tuple[Message, ...]:
        """The compression's sum over all ranks."""
        return compression.sum_messages(payload, group.ranks)
