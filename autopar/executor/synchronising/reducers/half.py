"""Means in 16 bits."""

from __future__ import annotations

from typing import ClassVar

import torch

from autopar.executor.synchronising.reducers.base import Layout, Reducer


class _Half(Reducer):
    """Rounded after the division by the number of ranks, summed in 16 bits.

    torch's own bf16 hook refuses gloo by name, so both casts are done here.
    """

    streams: ClassVar[bool] = True
    alike: ClassVar[bool] = True
    dtype: ClassVar[torch.dtype]

    def launch(self, flat: torch.Tensor, layout: Layout) -> torch.futures.Future[torch.Tensor]:
        """Cast, all-reduce, cast back into ``flat``."""
        small = flat.div_(self.group.size).to(self.dtype)
        return self.all_reduce(small).then(lambda summed: flat.copy_(summed.value()))


class Float16(_Half):
    """IEEE half precision."""

    dtype: ClassVar[torch.dtype] = torch.float16


class BFloat16(_Half):
    """bfloat16."""

    dtype: ClassVar[torch.dtype] = torch.bfloat16
