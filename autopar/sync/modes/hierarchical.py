"""Gradients averaged inside nodes, weights across nodes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from autopar.sync.base import AbstractCompression, Literature, Message, Payload, SyncGroup, assumed
from autopar.sync.modes.local import LocalSgd
from autopar.sync.traffic import all_reduce


@dataclass(frozen=True)
class Hierarchical(LocalSgd):
    """``2 (m-1)/m P`` bytes in a node of ``m`` ranks per step, ``2 (n-1)/n P / H`` over all.

    Only the average over all ranks is compressed.
    """

    name: ClassVar[str] = "hierarchical"
    counts_nodes: ClassVar[bool] = True
    literature: ClassVar[Literature | None] = Literature(
        multiplier=assumed(1.0, 1.3, 3.0),
        citation="Lin et al. 2020, Don't Use Large Mini-Batches, Use Local SGD (arXiv:1808.07217),"
        " section on hierarchical local SGD",
        reading="no worse than local SGD of the same period over all ranks: its figures",
    )

    def messages(
        self, payload: Payload, group: SyncGroup, compression: AbstractCompression
    ) -> tuple[Message, ...]:
        """Gradients in the node beside backward, then the periodic average."""
        inside = all_reduce(payload.size_bytes, group.per_node, "backward")
        return (
            replace(inside, scope="node"),
            *super().messages(payload, group, compression),
        )

    def check(self, group: SyncGroup) -> str | None:
        """There must be two levels."""
        if group.nodes > 1 and group.per_node > 1 and group.ranks % group.nodes == 0:
            return None
        return (
            "hierarchical averaging needs two or more nodes with the same number of ranks, at "
            f"least two, on each; there are {group.ranks} ranks on {group.nodes} nodes"
        )
