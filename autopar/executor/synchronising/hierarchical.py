"""Gradients averaged inside nodes at every step, weights of all ranks now and then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, final

import torch

from autopar.executor.mesh_groups import Group
from autopar.executor.optimizing.gradients import broadcast_buffers, reduce_gradients
from autopar.executor.synchronising.nodes import node_group
from autopar.executor.synchronising.periodic import Periodic
from autopar.sync import Sync

if TYPE_CHECKING:
    from autopar.executor.lowering import Context


@final
class Hierarchical(Periodic):
    """Hierarchical local SGD (Lin et al. 2020): a node is one replica between averages.

    Raises:
        InputError: The ranks are not on several nodes with several ranks each.
    """

    def __init__(self, context: Context, sync: Sync) -> None:
        super().__init__(context, sync)
        self._node = node_group(context, sync.mode)

    @property
    def ddp_group(self) -> Group | None:
        """Ranks of this node."""
        return self._node

    def reduce(
        self, parameters: Mapping[str, torch.nn.Parameter], *, ragged: bool = False
    ) -> None:
        """Average in the node."""
        reduce_gradients(
            list(parameters.values()),
            self._node,
            divide=True,
            bucket_bytes=self.context.plan.bucket_bytes,
            traffic=self.context.traffic,
        )

    def share_buffers(self, buffers: Sequence[torch.Tensor]) -> None:
        """Those of the node's first rank."""
        broadcast_buffers(buffers, self._node, self.context.traffic)
