"""Which samples each replica trains on.

Every step has one *global batch*, a sequence of ``N = microbatches x sum of shares`` samples,
where a replica's share is its samples per microbatch. The sequence depends only on the seed, the
step and ``N``: it is the same for every plan and split, so loss curves of different plans can be
laid over each other and over one process.

Where the sequence comes from:

- ``task.batch``: ``batch(N, generator)`` with the generator seeded by ``(seed, step)``.
- ``task.dataset``: the samples that the task's sampler chooses for ``(seed, step, N)``.

A split shares the sequence out over replicas and their microbatches. Samplers and splits are the
files of :mod:`autopar.executor.sampling`. Every rank of a replica makes the same samples itself;
nothing is sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils.data import default_collate

from autopar.core.errors import InputError
from autopar.executor.sampling.base import Sampler, described
from autopar.executor.sampling.registry import SAMPLERS, SPLITS
from autopar.executor.sampling.streams import Purpose, stream
from autopar.tasks import Task

Microbatch = tuple[Any, Any]


class ReplicaData:
    """The microbatches of each replica and step.

    Args:
        task: The task.
        seed: Seed of the data order.
        split: Name in :data:`SPLITS`.
        shares: Samples in a microbatch of each replica.
        microbatches: Microbatches per replica and step.

    Raises:
        InputError: The dataset is too small, or does not tell what sampler and split need.
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
        self._split = SPLITS.load(split)(seed=seed, shares=shares, microbatches=microbatches)
        self._sampler = _sampler(task, seed, self._split.count)
        self._lengths: torch.Tensor | None = None
        if self._split.needs_lengths:
            if self._sampler is None:
                raise InputError(
                    f"data split '{split}' needs lengths of samples, task '{task.name}' makes "
                    "whole batches",
                    hint="use data split random, or give the task a dataset with lengths",
                )
            self._lengths = described(task, "lengths", f"data split '{split}'")

    @property
    def global_batch(self) -> int:
        """Samples per step over all replicas."""
        return self._split.count

    @property
    def splits_any_batch(self) -> bool:
        """True when :meth:`positions` does not look at the dataset's own samples."""
        return not self._split.needs_lengths

    def positions(self, step: int, replica: int) -> torch.Tensor:
        """Positions in the global batch that a replica takes, microbatch after microbatch."""
        lengths = None
        if self._lengths is not None and self._sampler is not None:
            lengths = self._lengths[self._sampler.indices(step)]
        return self._split.positions(step, replica, lengths)

    def microbatches(
        self, step: int, replica: int, device: torch.device | str = "cpu"
    ) -> list[Microbatch]:
        """The microbatches ``(inputs, target)`` of a replica in one step, on ``device``."""
        parts = torch.split(self.positions(step, replica), self._split.shares[replica])
        if self._sampler is None:
            everything = self._made(step)
            return [_rows(everything, rows, device) for rows in parts]
        chosen = self._sampler.indices(step)
        return [self._collated(chosen[rows], device) for rows in parts]

    def _made(self, step: int) -> Microbatch:
        """The global batch of a task without a dataset."""
        count = self.global_batch
        made = self._task.batch(count, stream(self._seed, Purpose.SEQUENCE, step))
        for leaf in pytree.tree_leaves(made):
            if isinstance(leaf, torch.Tensor) and (leaf.dim() == 0 or leaf.shape[0] != count):
                raise InputError(
                    f"task '{self._task.name}': batch({count}, generator) returned a tensor of "
                    f"shape {list(leaf.shape)}; dimension 0 must be the {count} samples",
                    hint="put the samples on dimension 0 of every tensor",
                )
        return made

    def _collated(self, indices: torch.Tensor, device: torch.device | str) -> Microbatch:
        """One microbatch of some samples of the dataset."""
        collate = self._task.collate or default_collate
        samples = [self._task.dataset[i] for i in indices.tolist()]
        try:
            inputs, target = collate(samples)
        except InputError:
            raise
        except (RuntimeError, TypeError, ValueError) as error:
            raise InputError(
                f"task '{self._task.name}': samples of its dataset do not make a batch: {error}",
                hint="samples are pairs (inputs, target) of equal shapes; for different lengths "
                "set Task.collate, for example autopar.data.PadCollate()",
            ) from error
        part: Microbatch = pytree.tree_map_only(
            torch.Tensor, lambda t: t.to(device), (inputs, target)
        )
        return part


def _sampler(task: Task, seed: int, count: int) -> Sampler | None:
    """The task's sampler; ``None`` when it makes whole batches.

    Raises:
        InputError: A sampler without a dataset, or a dataset that is not map-style.
    """
    if task.dataset is None:
        if task.sampler != "shuffle":
            raise InputError(
                f"sampler '{task.sampler}' draws from a dataset, task '{task.name}' has none",
                hint="give the task a dataset, or leave the sampler out",
            )
        return None
    if not hasattr(task.dataset, "__len__") or not hasattr(task.dataset, "__getitem__"):
        raise InputError(
            f"the dataset of task '{task.name}' is {type(task.dataset).__name__}, which has no "
            "length or no items",
            hint="use a map-style dataset: len(dataset) and dataset[i]",
        )
    return SAMPLERS.load(task.sampler)(task, seed, count)


def _rows(batch: Microbatch, rows: torch.Tensor, device: torch.device | str) -> Microbatch:
    """Some samples of a batch, on a device."""
    part: Microbatch = pytree.tree_map_only(torch.Tensor, lambda t: t[rows].to(device), batch)
    return part
