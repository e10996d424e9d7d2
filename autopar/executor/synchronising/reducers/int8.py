"""Means in 8 bits with a scale per block."""

from __future__ import annotations

import math
from typing import final

import torch
import torch.distributed as dist

from autopar.executor.synchronising.reducers.base import Layout, Reducer, done
from autopar.sync.compressions.int8 import BLOCK_ELEMENTS, LEVELS


@final
class Int8(Reducer):
    """All-to-all of 8-bit numbers, sums in float32, all-gather of the sums in 8 bits.

    Every rank adds one share of the elements. All ranks, the one that added included, decode the
    same gathered bytes.
    """

    def launch(self, flat: torch.Tensor, layout: Layout) -> torch.futures.Future[torch.Tensor]:
        """Both phases."""
        ranks, count = self.group.size, flat.numel()
        share = math.ceil(count / ranks)
        rows = torch.nn.functional.pad(flat, (0, ranks * share - count)).view(ranks, share)
        given = encode(rows)
        got = torch.empty_like(given)
        dist.all_to_all_single(got, given, group=self.group.handle)
        self.traffic.all_to_all(given.numel(), ranks)
        mean = decode(got, share).sum(0).div_(ranks)
        own = encode(mean[None])
        gathered = torch.empty_like(given)
        dist.all_gather(list(gathered.unbind(0)), own[0], group=self.group.handle)
        self.traffic.all_gather(gathered.numel(), ranks)
        return done(flat.copy_(decode(gathered, share).reshape(-1)[:count]))


def encode(rows: torch.Tensor) -> torch.Tensor:
    """``[n, E]`` float32 -> ``[n, E + 4 ceil(E / 256)]`` bytes: numbers, then scales."""
    count = rows.shape[1]
    blocks = math.ceil(count / BLOCK_ELEMENTS)
    padded = torch.nn.functional.pad(rows, (0, blocks * BLOCK_ELEMENTS - count))
    cut = padded.view(rows.shape[0], blocks, BLOCK_ELEMENTS)
    scales = cut.abs().amax(2).div_(LEVELS)
    safe = torch.where(scales > 0, scales, torch.ones_like(scales))
    numbers = (cut / safe[..., None]).round_().clamp_(-LEVELS, LEVELS).to(torch.int8)
    return torch.cat(
        [
            numbers.view(rows.shape[0], -1)[:, :count].contiguous().view(torch.uint8),
            scales.view(torch.uint8),
        ],
        1,
    )


def decode(rows: torch.Tensor, count: int) -> torch.Tensor:
    """Inverse of :func:`encode`: ``[n, count]`` float32."""
    blocks = math.ceil(count / BLOCK_ELEMENTS)
    numbers = rows[:, :count].view(torch.int8).to(torch.float32)
    scales = rows[:, count:].clone(memory_format=torch.contiguous_format).view(torch.float32)
    padded = torch.nn.functional.pad(numbers, (0, blocks * BLOCK_ELEMENTS - count))
    cut = padded.view(rows.shape[0], blocks, BLOCK_ELEMENTS) * scales[..., None]
    return cut.view(rows.shape[0], -1)[:, :count]
