"""Which samples each replica trains on.

Every step has one *global batch*, a sequence of ``N = microbatches x sum of shares`` samples,
where a replica's share is its samples per microbatch. The sequence depends only on the seed, the
step and ``N``: it is the same for every plan and split, so loss curves of different plans can be
laid over each other and over one process.

Where the sequence comes from:

- ``task.batch``: ``batch(N, generator)`` with the generator seeded by ``(seed, step)``.
- ``task.dataset``: samples are drawn without replacement. Epoch ``e`` visits the dataset in an
  order drawn from ``(seed, e)``; step ``s`` of the epoch takes positions ``s*N`` to ``(s+1)*N``.
  The last ``len % N`` positions of an epoch are left out.

How the sequence is split among replicas ``r``:

- ``contiguous``: the first replica takes the first samples, the next one the next.
- ``shard``: dealt out like cards, ``r, r + replicas, r + 2*replicas, ...`` with equal shares.
- ``random``: as ``contiguous`` after a permutation drawn from ``(seed, step)``.

A replica's samples are cut into microbatches in that order. Every rank of a replica makes the
same samples itself; nothing is sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils.data import default_collate

from autopar.core.errors import InputError
from autopar.tasks import Task

Microbatch = tuple[Any, Any]

_SEQUENCE, _PERMUTATION, _EPOCH = 1, 2, 3


def stream(seed: int, purpose: int, number: int) -> torch.Generator:
    """A generator for one purpose and one step or epoch, independent of all others."""
    mixed = (seed * 1_000_003 + purpose) * 1_000_003 + number
    return torch.Generator().manual_seed(mixed % (2**63))


class ReplicaData:
    """The microbatches of each replica and step.

    Args:
        task: The task.
        seed: Seed of the data order.
        split: ``random``, ``contiguous`` or ``shard``.
        shares: Samples in a microbatch of each replica.
        microbatches: Microbatches per replica and step.

    Raises:
        InputError: The dataset is smaller than one global batch.
    """

    def __init__(
        self,
        task: Task,
        *,
        seed: int,
        split: str,
        shares: Sequence[int],
        microbatches: int,
    ) -> None:
        self._task = task
        self._seed = seed
        self._split = split
        self._shares = tuple(shares)
        self._microbatches = microbatches
        self._epoch_order: tuple[int, torch.Tensor] | None = None
        if task.dataset is not None and len(task.dataset) < self.global_batch:
            raise InputError(
                f"the dataset of task '{task.name}' has {len(task.dataset)} samples, one step "
                f"needs {self.global_batch}",
                hint="use a smaller global batch",
            )

    @property
    def global_batch(self) -> int:
        """Samples per step over all replicas."""
        return self._microbatches * sum(self._shares)

    def positions(self, step: int, replica: int) -> torch.Tensor:
        """Positions in the global batch that a replica takes, in order."""
        count = self.global_batch
        if self._split == "shard":
            return self._dealt(replica)
        start = self._microbatches * sum(self._shares[:replica])
        block = slice(start, start + self._microbatches * self._shares[replica])
        if self._split == "contiguous":
            return torch.arange(count)[block]
        order = torch.randperm(count, generator=stream(self._seed, _PERMUTATION, step))
        return order[block]

    def _dealt(self, replica: int) -> torch.Tensor:
        """Positions dealt out one by one; who has the share of a microbatch sits out its rest."""
        turns = [
            (turn, owner) for owner, share in enumerate(self._shares) for turn in range(share)
        ]
        owners = torch.tensor([owner for _, owner in sorted(turns)])
        return torch.nonzero(owners.repeat(self._microbatches) == replica).flatten()

    def microbatches(
        self, step: int, replica: int, device: torch.device | str = "cpu"
    ) -> list[Microbatch]:
        """The microbatches ``(inputs, target)`` of a replica in one step, on ``device``."""
        positions = self.positions(step, replica)
        if self._task.dataset is None:
            everything = self._global_batch(step)
            chosen = pytree.tree_map_only(torch.Tensor, lambda t: t[positions], everything)
        else:
            order = self._dataset_indices(step)[positions]
            chosen = default_collate([self._task.dataset[int(i)] for i in order])
            chosen = (chosen[0], chosen[1])
        parts = []
        for k in range(self._microbatches):
            size = self._shares[replica]
            rows = slice(k * size, (k + 1) * size)
            parts.append(_rows(chosen, rows, device))
        return parts

    def _global_batch(self, step: int) -> Microbatch:
        count = self.global_batch
        made = self._task.batch(count, stream(self._seed, _SEQUENCE, step))
        for leaf in pytree.tree_leaves(made):
            if isinstance(leaf, torch.Tensor) and (leaf.dim() == 0 or leaf.shape[0] != count):
                raise InputError(
                    f"task '{self._task.name}': batch({count}, generator) returned a tensor of "
                    f"shape {list(leaf.shape)}; dimension 0 must be the {count} samples",
                    hint="put the samples on dimension 0 of every tensor",
                )
        return made

    def _dataset_indices(self, step: int) -> torch.Tensor:
        size = len(self._task.dataset)
        per_epoch = size // self.global_batch
        epoch, within = divmod(step, per_epoch)
        if self._epoch_order is None or self._epoch_order[0] != epoch:
            order = torch.randperm(size, generator=stream(self._seed, _EPOCH, epoch))
            self._epoch_order = (epoch, order)
        start = within * self.global_batch
        return self._epoch_order[1][start : start + self.global_batch]


def _rows(batch: Microbatch, rows: slice, device: torch.device | str) -> Microbatch:
    """Some samples of a batch, on a device."""
    part: Microbatch = pytree.tree_map_only(torch.Tensor, lambda t: t[rows].to(device), batch)
    return part
