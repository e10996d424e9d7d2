"""Means as they are."""

from __future__ import annotations

from typing import ClassVar, final

import torch

from autopar.executor.synchronising.reducers.base import Layout, Reducer


@final
class Plain(Reducer):
    """One all-reduce."""

    streams: ClassVar[bool] = True
    alike: ClassVar[bool] = True
    any_dtype: ClassVar[bool] = True

    def launch(self, flat: torch.Tensor, layout: Layout) -> torch.futures.Future[torch.Tensor]:
        """All-reduce in place."""
        return self.all_reduce(flat.div_(self.group.size))
