"""A server's share of the weights, with the task's optimizer over it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from autopar.core.errors import TrainingError
from autopar.executor.server.layout import Piece
from autopar.executor.server.protocol import ProtocolError, whole

MakeOptimizer = Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]


@dataclass(kw_only=True)
class StateImage:
    """Optimizer state of a shard as data.

    Attributes:
        rows: ``[piece, key]`` of each tensor, or ``[piece, key, value]`` of a plain value.
        tensors: Those of the rows without a value, in order.
    """

    rows: list[list[Any]] = field(default_factory=list)
    tensors: list[torch.Tensor] = field(default_factory=list)


class Shard:
    """Weights that are stepped by the task's optimizer.

    Args:
        pieces: What they are.
        weights: All pieces one after the other, flat; kept and written.
        make_optimizer: Of the task.
        share: Factor on the learning rate.

    Raises:
        ProtocolError: The weights have not as many elements as the pieces.
        TrainingError: The learning rate of the optimizer cannot be scaled.
    """

    def __init__(
        self,
        pieces: Sequence[Piece],
        weights: torch.Tensor,
        make_optimizer: MakeOptimizer,
        share: float = 1.0,
    ) -> None:
        self.pieces = tuple(pieces)
        self.weights = weights
        sizes = [p.numel for p in pieces]
        if weights.dim() != 1 or weights.numel() != sum(sizes) or not weights.is_floating_point():
            raise ProtocolError(
                f"{weights.numel()} elements of {weights.dtype} for pieces of {sum(sizes)}"
            )
        views = torch.split(weights, sizes) if sizes else ()
        self._parameters = [
            torch.nn.Parameter(view.view(piece.shape))
            for piece, view in zip(self.pieces, views, strict=True)
        ]
        self._optimizer = make_optimizer(self._parameters) if self._parameters else None
        if share != 1.0 and self._optimizer is not None:
            _scale_rate(self._optimizer, share)

    @property
    def elements(self) -> int:
        """Elements of all pieces."""
        return self.weights.numel()

    def apply(self, gradient: torch.Tensor, absent: set[int]) -> None:
        """One optimizer step.

        Args:
            gradient: Flat, of all pieces.
            absent: Pieces that have no gradient; the optimizer skips them.
        """
        if self._optimizer is None:
            return
        parts = torch.split(gradient, [p.numel for p in self.pieces])
        for index, (parameter, part) in enumerate(zip(self._parameters, parts, strict=True)):
            parameter.grad = None if index in absent else part.view(parameter.shape)
        self._optimizer.step()
        for parameter in self._parameters:
            parameter.grad = None

    def state(self) -> StateImage:
        """The optimizer's state, copied.

        Raises:
            TrainingError: It holds something that is neither a tensor nor a number.
        """
        image = StateImage()
        state = self._optimizer.state if self._optimizer is not None else {}
        for index, parameter in enumerate(self._parameters):
            for key, value in state.get(parameter, {}).items():
                if isinstance(value, torch.Tensor):
                    image.rows.append([index, key])
                    image.tensors.append(value.detach().clone())
                elif value is None or isinstance(value, bool | int | float | str):
                    image.rows.append([index, key, value])
                else:
                    raise TrainingError(
                        f"optimizer state '{key}' is a {type(value).__name__}, which a parameter "
                        "server cannot keep",
                        hint="use an optimizer with tensors and numbers as state",
                    )
        return image

    def load_state(self, image: StateImage) -> None:
        """Put back what :meth:`state` gave.

        Raises:
            ProtocolError: It is not of these pieces.
        """
        if self._optimizer is None:
            return
        tensors = iter(image.tensors)
        found: dict[int, dict[str, Any]] = {}
        for row in image.rows:
            if not isinstance(row, list) or len(row) not in (2, 3) or not isinstance(row[1], str):
                raise ProtocolError(f"optimizer state is described by {str(row)[:60]!r}")
            index = whole({"piece": row[0]}, "piece", len(self.pieces) - 1)
            value = row[2] if len(row) == 3 else next(tensors, None)
            found.setdefault(index, {})[row[1]] = value
        for index, values in found.items():
            self._optimizer.state[self._parameters[index]] = values


def _scale_rate(optimizer: torch.optim.Optimizer, share: float) -> None:
    for group in optimizer.param_groups:
        if not isinstance(group.get("lr"), float | int | torch.Tensor):
            raise TrainingError(
                f"{type(optimizer).__name__} has no learning rate to divide among the ranks",
                hint="use ps_sync, or an optimizer with an 'lr'",
            )
        group["lr"] = group["lr"] * share


def square_norm(gradient: torch.Tensor) -> float:
    """Sum of squares, added in float64."""
    return float(torch.linalg.vector_norm(gradient, dtype=torch.float64)) ** 2
