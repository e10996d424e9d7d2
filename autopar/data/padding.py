"""Samples of different length in one tensor."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils.data import default_collate

from autopar.core.errors import InputError


class PadCollate:
    """Puts samples together, filling dimension 0 of their tensors up to one length.

    Scalars and equal tensors are stacked as usual. Use it as ``Task.collate``. A plan that runs
    the traced graph needs the same length in all batches: give ``length`` then.

    Args:
        inputs: Filler of tensors in inputs.
        target: Filler of tensors in the target; -100 is what torch's cross-entropy ignores.
        length: The length; the longest sample's by default.
        multiple: Round the length up to a multiple.

    Raises:
        InputError: A number is not positive.
    """

    def __init__(
        self,
        *,
        inputs: float = 0,
        target: float = -100,
        length: int | None = None,
        multiple: int = 1,
    ) -> None:
        if multiple < 1 or (length is not None and length < 1):
            raise InputError(
                f"padding to length={length}, multiple={multiple}", hint="use 1 or more"
            )
        self._fillers = (inputs, target)
        self._length, self._multiple = length, multiple

    def __call__(self, samples: Sequence[tuple[Any, Any]]) -> tuple[Any, Any]:
        """``(inputs, target)`` of the batch.

        Raises:
            InputError: A sample is longer than ``length``.
        """
        length = self._batch_length(samples)
        parts = []
        for place, filler in enumerate(self._fillers):
            padded = [
                pytree.tree_map_only(torch.Tensor, partial(_pad, length, filler), sample[place])
                for sample in samples
            ]
            parts.append(default_collate(padded))
        return parts[0], parts[1]

    def _batch_length(self, samples: Sequence[tuple[Any, Any]]) -> int:
        leaves = [t for t in pytree.tree_leaves(list(samples)) if isinstance(t, torch.Tensor)]
        longest = max((t.shape[0] for t in leaves if t.dim()), default=1)
        if self._length is None:
            return -(-longest // self._multiple) * self._multiple
        if longest > self._length:
            raise InputError(
                f"a sample of length {longest} does not fit in length={self._length}",
                hint="raise length, or cut the samples",
            )
        return self._length


def _pad(length: int, filler: float, tensor: torch.Tensor) -> torch.Tensor:
    if tensor.dim() == 0 or tensor.shape[0] == length:
        return tensor
    missing = (length - tensor.shape[0], *tensor.shape[1:])
    return torch.cat([tensor, tensor.new_full(missing, filler)])
