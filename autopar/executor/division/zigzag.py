"""Which positions of a sequence a context parallel rank has, and the calls that move them.

A sequence is cut into ``2 * cp`` chunks; rank ``i`` has chunks ``i`` and ``2 * cp - 1 - i``. A
causal query reads the keys up to its own position, so an early chunk with little to do goes with
a late one with much, and all ranks do the same (Llama 3, Grattafiori et al. 2024, arXiv
2407.21783, section 3.3.2).
"""

from __future__ import annotations

import torch

from autopar.executor.division.collectives import Collectives


class Zigzag:
    """Calls of a traced graph that divide sequences and make them whole.

    Args:
        calls: Collectives of the context parallel group.

    Attributes:
        count: Ranks.
        calls: As given.
        part: ``(tensor, dim, outer, length)``: this rank's positions of a whole tensor.
        whole: ``(tensor, dim, outer)``: all positions, in order.
        keys_and_values: ``(key, value, dim)``: both whole, in one message if they are alike.
        mean: ``(tensor)`` over the ranks.
        mean_of_counted: ``(total, target, weight, ignore_index)``: a sum of losses as a term of
            their mean.
        running_sum: ``(tensor, dim)``: ``cumsum`` over all positions, at this rank's.
    """

    def __init__(self, calls: Collectives) -> None:
        self.calls = calls
        self.count, self._position = calls.group.size, calls.group.position
        count, own = self.count, self._position
        chunks = (own, 2 * count - 1 - own)
        order = [0] * (2 * count)
        for rank in range(count):
            order[rank], order[2 * count - 1 - rank] = 2 * rank, 2 * rank + 1

        def sequence_part(tensor: torch.Tensor, dim: int, outer: int, length: int) -> torch.Tensor:
            shape = tensor.shape
            pieces = (2 * count, shape[dim] // outer // (2 * count))
            whole = tensor.reshape(*shape[:dim], outer, *pieces, *shape[dim + 1 :])
            pair = torch.cat([whole.narrow(dim + 1, chunk, 1) for chunk in chunks], dim + 1)
            return pair.flatten(dim, dim + 2)

        def sequence_whole(tensor: torch.Tensor, dim: int, outer: int = 1) -> torch.Tensor:
            if outer > 1:
                apart = torch.unflatten(tensor, dim, (outer, tensor.shape[dim] // outer))
                return sequence_whole(apart, dim + 1).flatten(dim, dim + 1)
            gathered = calls.gather(tensor, dim)
            pieces = torch.split(gathered, gathered.shape[dim] // (2 * count), dim)
            return torch.cat([pieces[place] for place in order], dim)

        def sequence_running_sum(tensor: torch.Tensor, dim: int) -> torch.Tensor:
            sums = [chunk.cumsum(dim) for chunk in tensor.chunk(2, dim)]
            ends = [own.narrow(dim, own.shape[dim] - 1, 1) for own in sums]
            totals = sequence_whole(torch.cat(ends, dim), dim)
            before = totals.cumsum(dim) - totals
            pairs = zip(sums, chunks, strict=True)
            return torch.cat([own + before.narrow(dim, place, 1) for own, place in pairs], dim)

        def keys_and_values(
            key: torch.Tensor, value: torch.Tensor, dim: int
        ) -> tuple[torch.Tensor, torch.Tensor]:
            if key.shape != value.shape or key.dtype != value.dtype:
                return sequence_whole(key, dim), sequence_whole(value, dim)
            both = sequence_whole(torch.stack([key, value]), dim + 1)
            return both[0], both[1]

        def mean_of_ranks(tensor: torch.Tensor) -> torch.Tensor:
            return calls.sum_both(tensor) / count

        def mean_of_counted(
            total: torch.Tensor,
            target: torch.Tensor,
            weight: torch.Tensor | None,
            ignore_index: int,
        ) -> torch.Tensor:
            counted = target != ignore_index
            shares = counted if weight is None else weight[target.where(counted, 0)] * counted
            share = calls.raw.sum(shares.sum(dtype=torch.float32))
            return total * (count / share)

        self.part, self.whole, self.keys_and_values = (
            sequence_part,
            sequence_whole,
            keys_and_values,
        )
        self.mean, self.mean_of_counted = mean_of_ranks, mean_of_counted
        self.running_sum = sequence_running_sum

    def chunks(self, length: int) -> tuple[tuple[int, int], ...]:
        """``(start, stop)`` of this rank's two chunks of a sequence."""
        size = length // (2 * self.count)
        places = (self._position, 2 * self.count - 1 - self._position)
        return tuple((place * size, (place + 1) * size) for place in places)

    def find(self, position: int, length: int) -> int | None:
        """Where this rank has a position of the sequence; ``None`` when another rank has it."""
        before = 0
        for start, stop in self.chunks(length):
            if start <= position < stop:
                return before + position - start
            before += stop - start
        return None
