"""Means of the largest elements."""

from __future__ import annotations

from typing import ClassVar, final

import torch
import torch.distributed as dist

from autopar.executor.synchronising.reducers.base import Layout, Reducer
from autopar.sync import Payload
from autopar.sync.compressions.topk import TopK as Declared


@final
class TopK(Reducer):
    """One all-gather of values and indices; the rest is fed back."""

    streams: ClassVar[bool] = True
    feeds_back: ClassVar[bool] = True

    def launch(self, flat: torch.Tensor, layout: Layout) -> torch.futures.Future[torch.Tensor]:
        """Select, gather, add up in the order of ranks."""
        declared, ranks = self.compression, self.group.size
        assert isinstance(declared, Declared)
        self.feedback.add(flat, layout)
        kept = declared.kept(Payload(size_bytes=4.0 * flat.numel()))
        indices = flat.abs().topk(kept).indices.to(torch.int32)
        values = flat[indices]
        own = torch.cat([values.view(torch.int32), indices])
        flat[indices] = 0.0
        self.feedback.keep(flat, layout)
        gathered = own.new_empty(ranks, 2 * kept)
        work = dist.all_gather(
            list(gathered.unbind(0)), own, group=self.group.handle, async_op=True
        )
        self.traffic.all_gather(gathered.numel() * gathered.element_size(), ranks)

        def add(_: torch.futures.Future[object]) -> torch.Tensor:
            flat.zero_()
            for row in gathered:
                flat.index_add_(0, row[kept:], row[:kept].view(torch.float32))
            return flat.div_(ranks)

        future: torch.futures.Future[torch.Tensor] = work.get_future().then(add)
        return future
