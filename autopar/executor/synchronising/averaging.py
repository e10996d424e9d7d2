"""Means of named tensors through a reducer, bucket by bucket or all at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch

from autopar.core.registry import Entry, Registry
from autopar.executor.mesh_groups import Group
from autopar.executor.synchronising.reducers.base import Layout, Reducer

if TYPE_CHECKING:
    from autopar.executor.lowering import Context, Lowering

_HERE = "autopar.executor.synchronising.reducers"
_IN_FLIGHT = 2

REDUCERS: Registry[type[Reducer]] = Registry(
    "compression",
    {
        "none": Entry(f"{_HERE}.none:Plain", "as they are"),
        "fp16": Entry(f"{_HERE}.half:Float16", "cast, one all-reduce"),
        "bf16": Entry(f"{_HERE}.half:BFloat16", "cast, one all-reduce"),
        "int8": Entry(f"{_HERE}.int8:Int8", "all-to-all, all-gather"),
        "powersgd": Entry(f"{_HERE}.powersgd:PowerSgd", "two all-reduces of factors"),
        "topk": Entry(f"{_HERE}.topk:TopK", "one all-gather of pairs"),
    },
)
"""Runtime of a compression, by the names of :data:`autopar.sync.COMPRESSIONS`."""


def make_reducer(context: Context, group: Group, compression: str | None = None) -> Reducer:
    """A reducer over a group.

    Args:
        context: The run; its plan names the compression.
        group: Ranks that take part.
        compression: Another one, ``none``.
    """
    from autopar.sync import parse_sync

    sync = parse_sync(context.plan.sync)
    name = compression or sync.compression.name
    kind = REDUCERS.load(name)
    return kind(sync.compression, group, context.traffic, context.plan.seed)


class Averager:
    """Means of tensors of one rank over a reducer's group.

    What several ranks of a replica hold alike (a norm's weight under tensor parallelism) is not
    mixed with what they hold parts of, so that its copies stay alike when a compression rounds
    an element by its neighbours. Of a gradient that is a term over an axis they hold parts too:
    it is summed over the axis afterwards.

    Args:
        reducer: How means are taken.
        lowering: Whose tensors they are.
        gradients: They are gradients, not weights.
    """

    def __init__(self, reducer: Reducer, lowering: Lowering, *, gradients: bool) -> None:
        self.reducer = reducer
        self._device = lowering.context.device
        self._bucket_bytes = lowering.context.plan.bucket_bytes
        terms = {name for names in lowering.partial.values() for name in names}
        parts = frozenset(lowering.cuts) | (terms if gradients else frozenset())
        self._apart = frozenset() if reducer.alike else parts

    @torch.no_grad()
    def mean(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Means, in the shapes and dtypes given (collective).

        Args:
            tensors: Name -> tensor; the same names in the same order on every rank.
        """
        result: dict[str, torch.Tensor] = {}
        flights: deque[tuple[torch.futures.Future[torch.Tensor], Layout]] = deque()

        def land() -> None:
            future, layout = flights.popleft()
            for name, piece in layout.split(future.wait()).items():
                like = tensors[name]
                result[name] = piece.view(like.shape).to(like.device, like.dtype)

        for names in self._batches(tensors):
            flat = torch.cat([tensors[name].detach().reshape(-1) for name in names])
            flat = flat.to(self._device)  # optimizer state may live in host memory
            layout = Layout(names=names, sizes=tuple(tensors[name].numel() for name in names))
            if not self.reducer.any_dtype:
                flat = flat.float()
            flights.append((self.reducer.launch(flat, layout), layout))
            if len(flights) == _IN_FLIGHT:
                land()
        while flights:
            land()
        return result

    def _batches(self, tensors: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, ...]]:
        """Names that are reduced together, last first as backward makes their gradients."""
        open_: dict[object, tuple[list[str], int]] = {}
        for name, tensor in reversed(list(tensors.items())):
            key = (name in self._apart, tensor.dtype if self.reducer.any_dtype else None)
            names, used = open_.pop(key, ([], 0))
            own = tensor.numel() * tensor.element_size()
            if names and self.reducer.streams and used + own > self._bucket_bytes:
                yield tuple(names)
                names, used = [], 0
            open_[key] = ([*names, name], used + own)
        for names, _ in open_.values():
            yield tuple(names)
