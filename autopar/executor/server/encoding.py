"""Gradients in fewer bytes on their way to a server, as the plan's compression declares them.

``none`` sends elements as they are, ``fp16`` and ``bf16`` round them, ``int8`` sends 8-bit
numbers with a float32 scale per 256 elements, ``topk`` sends the largest elements as pairs of
float32 value and int32 index and adds the others to the next gradient (error feedback).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from autopar.executor.server.protocol import ProtocolError
from autopar.sync.base import AbstractCompression
from autopar.sync.compressions.int8 import BLOCK_ELEMENTS
from autopar.sync.compressions.topk import TopK

ENCODINGS = ("none", "fp16", "bf16", "int8", "topk")
_HALVES = {"fp16": torch.float16, "bf16": torch.bfloat16}
_LEVELS = 127.0
_TINY = 1e-30


class Encoder:
    """Writes one shard of one worker's gradients, step after step.

    Args:
        compression: Of the plan.
    """

    def __init__(self, compression: AbstractCompression) -> None:
        self.name = compression.name
        self._density = compression.density if isinstance(compression, TopK) else 1.0
        self._error: torch.Tensor | None = None

    def encode(self, flat: torch.Tensor) -> list[torch.Tensor]:
        """Tensors to send.

        Args:
            flat: Gradient of the shard, one dimension; may be changed.
        """
        if self.name in _HALVES:
            return [flat.to(_HALVES[self.name])]
        if self.name == "int8":
            return _blocks(flat)
        if self.name == "topk":
            return self._largest(flat)
        return [flat]

    def _largest(self, flat: torch.Tensor) -> list[torch.Tensor]:
        if flat.numel() == 0:
            return [flat.float(), flat.to(torch.int32)]
        total = flat if self._error is None else flat.add_(self._error)
        index = total.abs().topk(math.ceil(self._density * total.numel())).indices
        values = total[index].float()
        total[index] = 0.0
        self._error = total.clone()
        return [values, index.to(torch.int32)]

    def forget(self) -> None:
        """Drop the error that was to be fed back."""
        self._error = None


def _blocks(flat: torch.Tensor) -> list[torch.Tensor]:
    """Float32 scales and the 8-bit numbers."""
    padded = torch.nn.functional.pad(flat.float(), (0, -flat.numel() % BLOCK_ELEMENTS))
    blocks = padded.view(-1, BLOCK_ELEMENTS)
    scales = blocks.abs().amax(1).div_(_LEVELS) if len(blocks) else blocks.sum(1)
    numbers = blocks.div(scales.clamp_min(_TINY)[:, None]).round_().clamp_(-_LEVELS, _LEVELS)
    return [scales, numbers.to(torch.int8).view(-1)[: flat.numel()].contiguous()]


def decode(
    name: str, tensors: Sequence[torch.Tensor], elements: int, dtype: torch.dtype
) -> torch.Tensor:
    """The gradient of a shard.

    Args:
        name: Encoding.
        tensors: As :meth:`Encoder.encode` wrote them.
        elements: Of the shard.
        dtype: Of the result.

    Raises:
        ProtocolError: The tensors are not those of the encoding or not of the shard.
    """
    if name in ("none", *_HALVES):
        wanted = _HALVES.get(name, dtype)
        _check(tensors, [(wanted, elements)])
        return tensors[0].to(dtype)
    if name == "int8":
        _check(
            tensors,
            [(torch.float32, math.ceil(elements / BLOCK_ELEMENTS)), (torch.int8, elements)],
        )
        scales = tensors[0].repeat_interleave(BLOCK_ELEMENTS)[:elements]
        return (tensors[1].float() * scales).to(dtype)
    if name == "topk":
        kept = tensors[0].numel() if tensors else 0
        _check(tensors, [(torch.float32, min(kept, elements)), (torch.int32, kept)])
        index = tensors[1].long()
        if kept and not 0 <= int(index.min()) <= int(index.max()) < elements:
            raise ProtocolError(f"a push has an index outside its {elements} elements")
        return torch.zeros(elements, dtype=dtype).index_add_(0, index, tensors[0].to(dtype))
    raise ProtocolError(f"unknown encoding '{name[:20]}'")


def _check(tensors: Sequence[torch.Tensor], wanted: list[tuple[torch.dtype, int]]) -> None:
    found = [(t.dtype, t.numel()) for t in tensors]
    if found != wanted or any(t.dim() != 1 for t in tensors):
        raise ProtocolError(f"a push holds {found}, {wanted} is needed")
