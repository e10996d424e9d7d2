"""Means as products of two thin matrices."""

from __future__ import annotations

import math
from typing import ClassVar, final

import torch

from autopar.executor.measuring.traffic import Traffic
from autopar.executor.mesh_groups import Group
from autopar.executor.synchronising.reducers.base import Layout, Reducer, Tensors, done
from autopar.sync import AbstractCompression, Payload
from autopar.sync.compressions.powersgd import SIDE
from autopar.sync.compressions.powersgd import PowerSgd as Declared

_SEED_STEP = 15_485_863


class Squares:
    """A flat tensor as squares: a batch of ``SIDE x SIDE`` and one smaller for the rest.

    Args:
        flat: The tensor; whole squares are views of it.
        rank: Columns of a factor, at most the side of a square.
    """

    def __init__(self, flat: torch.Tensor, rank: int) -> None:
        self._flat = flat
        self._whole = flat.numel() // SIDE**2 * SIDE**2
        rest = flat.numel() - self._whole
        self.matrices: list[torch.Tensor] = []
        if self._whole:
            self.matrices.append(flat[: self._whole].view(-1, SIDE, SIDE))
        if rest:
            side = math.ceil(math.sqrt(rest))
            padded = torch.nn.functional.pad(flat[self._whole :], (0, side**2 - rest))
            self.matrices.append(padded.view(1, side, side))
        self._shapes = [(m.shape[0], m.shape[1], min(rank, m.shape[1])) for m in self.matrices]
        self._sizes = [math.prod(shape) for shape in self._shapes]

    @property
    def factor_size(self) -> int:
        """Elements of one factor of all squares."""
        return sum(self._sizes)

    def factors(self, flat_factor: torch.Tensor) -> list[torch.Tensor]:
        """Views of the factors, one per batch of squares."""
        pieces = torch.split(flat_factor, self._sizes)
        return [piece.view(shape) for piece, shape in zip(pieces, self._shapes, strict=True)]

    def fill(self, left: torch.Tensor, right: torch.Tensor) -> None:
        """Put the product of two factors in place of the flat tensor."""
        for m, p, q in zip(self.matrices, self.factors(left), self.factors(right), strict=True):
            torch.bmm(p, q.mT, out=m)
        if self._whole < self._flat.numel():
            rest = self.matrices[-1].view(-1)[: self._flat.numel() - self._whole]
            self._flat[self._whole :] = rest


@final
class PowerSgd(Reducer):
    """One power iteration per mean, started from the factor of the last one (Vogels et al. 2019).

    ``M`` is the tensor plus the error, in squares as :mod:`autopar.sync.compressions.powersgd`
    declares. ``P = orth(mean(M Q))``, ``Q = mean(M^T P)``, the mean is ``P Q^T``, the error what
    ``M`` has beside it. Each rank makes ``P`` orthogonal by itself from the same bits.
    """

    feeds_back: ClassVar[bool] = True

    def __init__(
        self, compression: AbstractCompression, group: Group, traffic: Traffic, seed: int
    ) -> None:
        super().__init__(compression, group, traffic, seed)
        self._factors: dict[str, torch.Tensor] = {}

    def launch(self, flat: torch.Tensor, layout: Layout) -> torch.futures.Future[torch.Tensor]:
        """Both all-reduces."""
        declared, ranks = self.compression, self.group.size
        assert isinstance(declared, Declared)
        payload = Payload(size_bytes=4.0 * flat.numel())
        if 2.0 * declared.factor_bytes(payload) >= payload.size_bytes:
            return self.all_reduce(flat.div_(ranks))  # factors would be larger
        self.feedback.add(flat, layout)
        squares = Squares(flat, declared.rank)
        right = self._factor(layout.names[0], squares.factor_size, flat.device)
        left = torch.empty_like(right)
        for m, p, q in zip(
            squares.matrices, squares.factors(left), squares.factors(right), strict=True
        ):
            torch.bmm(m, q, out=p)
        self.all_reduce(left.div_(ranks)).wait()
        for m, p, q in zip(
            squares.matrices, squares.factors(left), squares.factors(right), strict=True
        ):
            p.copy_(torch.linalg.qr(p).Q)
            torch.bmm(m.mT, p, out=q)
        self.all_reduce(right.div_(ranks)).wait()
        self.feedback.keep(flat, layout)
        squares.fill(left, right)
        self.feedback.subtract(flat, layout)
        return done(flat)

    def _factor(self, name: str, size: int, device: torch.device) -> torch.Tensor:
        """``Q`` of the last mean of these tensors, or a random one, the same on all ranks."""
        found = self._factors.get(name)
        if found is None or found.numel() != size:
            generator = torch.Generator().manual_seed(self.seed * _SEED_STEP + size)
            found = torch.randn(size, generator=generator).to(device)
            self._factors[name] = found
        return found

    def state(self) -> dict[str, torch.Tensor]:
        """Errors and factors."""
        return {
            **super().state(),
            **{f"factor.{name}": value for name, value in self._factors.items()},
        }

    def load_state(self, state: Tensors) -> None:
        """Inverse of :meth:`state`."""
        super().load_state(state)
        self._factors = {
            key.removeprefix("factor."): value
            for key, value in state.items()
            if key.startswith("factor.")
        }
