"""Mean gradients on every rank, every step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import torch

from autopar.executor.division.keeping import average_over_data
from autopar.executor.mesh_groups import Group
from autopar.executor.synchronising.base import Synchroniser


@final
class AllReduce(Synchroniser):
    """Averages gradients over the data ranks."""

    @property
    def ddp_group(self) -> Group | None:
        """All data ranks."""
        return self.context.groups.data

    def reduce(
        self, parameters: Mapping[str, torch.nn.Parameter], *, ragged: bool = False
    ) -> None:
        """Bucket by bucket after backward."""
        context = self.context
        average_over_data(
            parameters,
            self._lowering.cuts,
            context.groups,
            bucket_bytes=context.plan.bucket_bytes,
            traffic=context.traffic,
        )
