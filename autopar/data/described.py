"""What samplers ask of a dataset, added to one that does not tell; batches of a dataset."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.data import Dataset, default_collate

from autopar.core.errors import InputError


class Described(Dataset[Any]):
    """A dataset with ``weights`` or ``lengths`` of its samples, which samplers read.

    Args:
        dataset: Any map-style dataset.
        weights: How often each sample is drawn, relative to the others, for sampler
            ``weighted``.
        lengths: Tokens (or whatever costs time) of each sample, for sampler ``bucketed`` and
            data split ``balanced``.

    Raises:
        InputError: Another number of values than samples.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        weights: Sequence[float] | torch.Tensor | None = None,
        lengths: Sequence[int] | torch.Tensor | None = None,
    ) -> None:
        self._dataset = dataset
        for name, values in (("weights", weights), ("lengths", lengths)):
            if values is None:
                continue
            if len(values) != len(dataset):
                raise InputError(
                    f"{len(values)} {name} for a dataset of {len(dataset)} samples",
                    hint="give one per sample",
                )
            setattr(self, name, values)

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, i: int) -> Any:
        return self._dataset[i]


def class_weights(targets: Sequence[int] | torch.Tensor) -> torch.Tensor:
    """Weights with which every class is drawn equally often: 1 / samples of the class.

    Args:
        targets: Class number of each sample, 0 or more.

    Returns:
        float64, one per sample.
    """
    classes = torch.as_tensor(targets)
    return 1.0 / torch.bincount(classes)[classes].double()


def batch_from(
    dataset: Any, collate: Callable[[list[Any]], Any] = default_collate
) -> Callable[[int, torch.Generator], tuple[Any, Any]]:
    """A ``Task.batch`` that draws from a dataset, for profiling and tracing.

    Args:
        dataset: Map-style, of ``(inputs, target)``.
        collate: Puts samples together, ``Task.collate`` if the task has one.
    """

    def batch(n: int, generator: torch.Generator) -> tuple[Any, Any]:
        chosen = torch.randint(0, len(dataset), (n,), generator=generator)
        inputs, target = collate([dataset[int(i)] for i in chosen])
        return inputs, target

    return batch
