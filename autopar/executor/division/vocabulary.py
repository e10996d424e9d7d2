"""Lookups and losses over a vocabulary of which each rank holds a part.

The last ranks' parts are padded when the ranks do not divide the vocabulary; what the padding
computes is left out here. Each loss sends three numbers per token: the maximum, the sum of the
exponentials and the target's logit (Shoeybi et al. 2019, arXiv 1909.08053).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from autopar.executor.division.collectives import Call, Collectives, RawCollectives

NONE, MEAN, SUM = 0, 1, 2
"""aten's reductions."""


class Vocabulary:
    """The calls for one vocabulary.

    They are plain functions, so that a graph module's code can name them.

    Args:
        size: Entries of the whole vocabulary.
        calls: Collectives of the ranks that hold the parts.

    Attributes:
        embedding: ``(weight, indices, padding_idx)``; terms of the sum over the ranks.
        cross_entropy: ``(logits, target, reduction, ignore_index, label_smoothing)``.
        log_softmax: ``(logits, dim)``; a part.
        nll_loss: ``(log_probabilities, target, reduction, ignore_index)``.
    """

    def __init__(self, size: int, calls: Collectives) -> None:
        count, position = calls.group.size, calls.group.position
        step = -(-size // count)
        self._start = min(position * step, size)
        self._valid = max(0, min(step, size - self._start))
        self._size = size
        self.embedding = _named("embedding_part", self._embedding())
        self.cross_entropy = _named("cross_entropy_of_parts", self._cross_entropy(calls))
        self.log_softmax = _named("log_softmax_of_parts", self._log_softmax(calls))
        self.nll_loss = _named("nll_loss_of_parts", self._nll_loss(calls))

    def _embedding(self) -> Call:
        start, valid = self._start, self._valid

        def embedding(
            weight: torch.Tensor, indices: torch.Tensor, padding_idx: int = -1
        ) -> torch.Tensor:
            local = indices - start
            outside = (local < 0) | (local >= valid)
            local = local.masked_fill(outside, 0)
            padding = padding_idx - start if start <= padding_idx < start + valid else None
            found = torch.nn.functional.embedding(local, weight, padding)
            return found.masked_fill(outside.unsqueeze(-1), 0.0)

        return embedding

    def _cross_entropy(self, calls: Collectives) -> Call:
        shard = _Shard(start=self._start, valid=self._valid, size=self._size, raw=calls.raw)

        def cross_entropy(
            logits: torch.Tensor,
            target: torch.Tensor,
            reduction: int = MEAN,
            ignore_index: int = -100,
            label_smoothing: float = 0.0,
        ) -> torch.Tensor:
            losses = CrossEntropy.apply(logits, target, ignore_index, label_smoothing, shard)  # type: ignore[no-untyped-call]
            return _reduced(losses, target, reduction, ignore_index)

        return cross_entropy

    def _log_softmax(self, calls: Collectives) -> Call:
        valid, raw = self._valid, calls.raw

        def log_softmax(logits: torch.Tensor, dim: int) -> torch.Tensor:
            result: torch.Tensor = LogSoftmax.apply(logits, dim, valid, raw)  # type: ignore[no-untyped-call]
            return result

        return log_softmax

    def _nll_loss(self, calls: Collectives) -> Call:
        start, valid = self._start, self._valid

        def nll_loss(
            parts: torch.Tensor,
            target: torch.Tensor,
            reduction: int = MEAN,
            ignore_index: int = -100,
        ) -> torch.Tensor:
            dim = 1 if parts.dim() > 1 else 0
            local = target - start
            outside = (local < 0) | (local >= valid) | (target == ignore_index)
            local = local.masked_fill(outside, 0)
            picked = parts.gather(dim, local.unsqueeze(dim)).squeeze(dim)
            own = -picked.masked_fill(outside, 0.0)
            return _reduced(calls.sum_forward(own), target, reduction, ignore_index)

        return nll_loss


def _reduced(
    losses: torch.Tensor, target: torch.Tensor, reduction: int, ignore_index: int
) -> torch.Tensor:
    """Losses of the tokens, 0 where ignored, as aten reduces them."""
    if reduction == NONE:
        return losses
    total = losses.sum()
    return total / (target != ignore_index).sum() if reduction == MEAN else total


@dataclass(frozen=True, kw_only=True)
class _Shard:
    """Classes ``[start, start + valid)`` of ``size``, and the collectives of all ranks."""

    start: int
    valid: int
    size: int
    raw: RawCollectives


def _highest(inside: torch.Tensor, dim: int, raw: RawCollectives) -> torch.Tensor:
    """Largest value over all ranks; one that holds padding only has none."""
    if inside.shape[dim]:
        return raw.maximum(inside.amax(dim, keepdim=True))
    shape = [1 if d == dim else n for d, n in enumerate(inside.shape)]
    return raw.maximum(inside.new_full(shape, -torch.inf))


class CrossEntropy(torch.autograd.Function):
    """Cross entropy of each token over parts of the classes; backward sends nothing."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: torch.Tensor,
        target: torch.Tensor,
        ignore_index: int,
        smoothing: float,
        shard: _Shard,
    ) -> torch.Tensor:
        """``log sum exp - target logit``, smoothed towards the mean logit."""
        dim = 1 if logits.dim() > 1 else 0
        inside = logits.narrow(dim, 0, shard.valid)
        local = target - shard.start
        outside = (local < 0) | (local >= shard.valid)
        local = local.masked_fill(outside, 0).unsqueeze(dim)
        highest = _highest(inside, dim, shard.raw)
        exponentials = (inside - highest).exp()
        own = logits.gather(dim, local).squeeze(dim).masked_fill(outside, 0.0)
        sums = [exponentials.sum(dim), own]
        if smoothing:
            sums.append(inside.sum(dim))
        total, picked, *spread = shard.raw.sum(torch.stack(sums)).unbind(0)
        losses = total.log() + highest.squeeze(dim) - (1.0 - smoothing) * picked
        if smoothing:
            losses = losses - smoothing / shard.size * spread[0]
        ignored = target == ignore_index
        probabilities = exponentials.div_(total.unsqueeze(dim))
        ctx.save_for_backward(probabilities, local, outside, ignored)
        ctx.dim, ctx.padded = dim, logits.shape[dim]
        ctx.smoothing, ctx.size = smoothing, shard.size
        return losses.masked_fill(ignored, 0.0)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        """``p - target``, smoothed; 0 for padding and ignored tokens."""
        probabilities, local, outside, ignored = ctx.saved_tensors
        dim = ctx.dim
        shape = list(probabilities.shape)
        shape[dim] = ctx.padded
        result = probabilities.new_zeros(shape)
        inside = result.narrow(dim, 0, probabilities.shape[dim])
        inside.copy_(probabilities - ctx.smoothing / ctx.size)
        hit = (~outside).unsqueeze(dim).to(result.dtype) * (ctx.smoothing - 1.0)
        result.scatter_add_(dim, local, hit)
        result *= gradients[0].masked_fill(ignored, 0.0).unsqueeze(dim)
        return result, None, None, None, None


class LogSoftmax(torch.autograd.Function):
    """Logarithms of probabilities over parts of the classes."""

    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, dim: int, valid: int, raw: RawCollectives
    ) -> torch.Tensor:
        """Maximum and sum of exponentials over all ranks; padding has probability 0."""
        inside = logits.narrow(dim, 0, valid)
        highest = _highest(inside, dim, raw)
        total = raw.sum((inside - highest).exp().sum(dim, keepdim=True))
        result = logits - (highest + total.log())
        ctx.save_for_backward(result)
        ctx.dim, ctx.valid, ctx.raw = dim, valid, raw
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        """``g - p * sum(g)``, the sum over all classes."""
        (result,) = ctx.saved_tensors
        dim, valid = ctx.dim, ctx.valid
        inside = gradients[0].narrow(dim, 0, valid)
        total = ctx.raw.sum(inside.sum(dim, keepdim=True))
        own = inside - result.narrow(dim, 0, valid).exp() * total
        if valid == gradients[0].shape[dim]:
            return own, None, None, None
        padded = torch.zeros_like(gradients[0])
        padded.narrow(dim, 0, valid).copy_(own)
        return padded, None, None, None


def _named(name: str, function: Callable[..., torch.Tensor]) -> Call:
    function.__name__ = function.__qualname__ = name
    return function
