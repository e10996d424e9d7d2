"""A mean over ranks in the bytes that a compression declares."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.distributed as dist

from autopar.executor.measuring.traffic import Traffic
from autopar.executor.mesh_groups import Group
from autopar.sync import AbstractCompression

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Which tensors a flat one is made of, one after the other.

    Attributes:
        names: Their names.
        sizes: Elements of each.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]

    def split(self, flat: torch.Tensor) -> dict[str, torch.Tensor]:
        """Views of the tensors, flat."""
        return dict(zip(self.names, torch.split(flat, list(self.sizes)), strict=True))


class ErrorFeedback:
    """What was not sent, added to what is sent next (Seide et al. 2014).

    Kept by tensor, so that it survives when DDP puts its buckets together anew.
    """

    def __init__(self) -> None:
        self.errors: dict[str, torch.Tensor] = {}

    def add(self, flat: torch.Tensor, layout: Layout) -> None:
        """Add the errors of earlier calls in place."""
        for name, piece in layout.split(flat).items():
            if name in self.errors:
                piece.add_(self.errors[name])

    def keep(self, error: torch.Tensor, layout: Layout) -> None:
        """Remember what is not sent this time."""
        for name, piece in layout.split(error).items():
            if name in self.errors:
                self.errors[name].copy_(piece)
            else:
                self.errors[name] = piece.clone()

    def subtract(self, sent: torch.Tensor, layout: Layout) -> None:
        """Take off what is sent after all."""
        for name, piece in layout.split(sent).items():
            self.errors[name].sub_(piece)


class Reducer(abc.ABC):
    """The runtime of one compression over one group.

    Every rank gets the same bits. The mean is taken, not the sum.

    Attributes:
        streams: One layer of collectives per bucket, so that buckets may be reduced beside
            backward: a second layer issued from a future's callback runs in another order on
            each rank, which gloo does not survive.
        alike: Elements are rounded by themselves: two ranks that reduce the same element beside
            different ones get the same.
        feeds_back: What is not sent now is sent later.
        any_dtype: Takes tensors of other types than float32 as they are.

    Args:
        compression: The declaration, with its options.
        group: Ranks that take part.
        traffic: Counts what is sent.
        seed: Of the run; the same on all ranks.
    """

    streams: ClassVar[bool] = False
    alike: ClassVar[bool] = False
    feeds_back: ClassVar[bool] = False
    any_dtype: ClassVar[bool] = False

    def __init__(
        self, compression: AbstractCompression, group: Group, traffic: Traffic, seed: int
    ) -> None:
        self.compression = compression
        self.group = group
        self.traffic = traffic
        self.seed = seed
        self.feedback = ErrorFeedback()

    @abc.abstractmethod
    def launch(self, flat: torch.Tensor, layout: Layout) -> torch.futures.Future[torch.Tensor]:
        """Begin the mean of a flat tensor over the group (collective).

        Args:
            flat: float32 unless :attr:`any_dtype`; may be overwritten.
            layout: What it is made of.

        Returns:
            The mean, which may be ``flat`` itself.
        """

    def state(self) -> dict[str, torch.Tensor]:
        """Tensors to continue with."""
        return {f"error.{name}": value for name, value in self.feedback.errors.items()}

    def load_state(self, state: Tensors) -> None:
        """Inverse of :meth:`state`."""
        self.feedback.errors = {
            key.removeprefix("error."): value
            for key, value in state.items()
            if key.startswith("error.")
        }

    def all_reduce(self, tensor: torch.Tensor) -> torch.futures.Future[torch.Tensor]:
        """Begin a sum in place, counted."""
        work = dist.all_reduce(tensor, group=self.group.handle, async_op=True)
        self.traffic.all_reduce(tensor.numel() * tensor.element_size(), self.group.size)
        future: torch.futures.Future[torch.Tensor] = work.get_future().then(lambda _: tensor)
        return future


def done(value: torch.Tensor) -> torch.futures.Future[torch.Tensor]:
    """A future that has its value."""
    device = value.device
    future: torch.futures.Future[torch.Tensor] = torch.futures.Future(
        devices=[device] if device.type == "cuda" else None
    )
    future.set_result(value)
    return future
