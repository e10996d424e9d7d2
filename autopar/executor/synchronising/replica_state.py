"""What one replica has that others have not: weights, buffers and optimizer state of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from autopar.executor.synchronising.averaging import Averager

if TYPE_CHECKING:
    from autopar.executor.lowering import Lowering


class ReplicaState:
    """Weights, buffers and optimizer tensors by key.

    Attributes:
        loaded: True after :meth:`load_state`.

    Args:
        lowering: The replica's.
    """

    def __init__(self, lowering: Lowering) -> None:
        self.lowering = lowering
        self.loaded = False

    def _tensors(self) -> dict[str, torch.Tensor]:
        lowering = self.lowering
        found = {f"weight.{name}": p.detach() for name, p in lowering.parameters.items()}
        found |= {f"buffer.{name}": b for name, b in lowering.buffers.items()}
        states = lowering.states
        for name, parameter in lowering.parameters.items():
            for key, value in states.get(parameter, {}).items():
                if isinstance(value, torch.Tensor):
                    found[f"optimizer.{name}.{key}"] = value.detach()
        return found

    def state(self) -> dict[str, torch.Tensor]:
        """Copies."""
        return {key: value.clone() for key, value in self._tensors().items()}

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Inverse of :meth:`state`."""
        self.loaded = True
        lowering, now = self.lowering, self._tensors()
        states = lowering.states
        for key, value in state.items():
            kind, _, rest = key.partition(".")
            if kind in ("weight", "buffer"):
                now[key].data.copy_(value)
            elif kind == "optimizer" and lowering.optimizer is not None:
                name, _, entry = rest.rpartition(".")
                parameter = lowering.parameters[name]
                states[parameter] = {**states.get(parameter, {}), entry: value}
        lowering.weights_written()

    @contextmanager
    def averaged(self, averager: Averager) -> Iterator[None]:
        """Within it float tensors are means over the averager's group (collective)."""
        context = self.lowering.context
        own = {k: t for k, t in self._tensors().items() if t.is_floating_point() and t.dim()}
        rows: list[Any] = [None] * context.groups.world_size
        dist.all_gather_object(rows, set(own), group=context.groups.control)
        # data-dependent models may have optimizer state of a weight on some ranks only
        common = set.intersection(*(rows[rank] for rank in averager.reducer.group.ranks))
        shared = {key: tensor for key, tensor in own.items() if key in common}
        kept = {key: tensor.clone() for key, tensor in shared.items()}
        for key, mean in averager.mean(shared).items():
            shared[key].copy_(mean)
        try:
            yield
        finally:
            for key, tensor in shared.items():
                tensor.copy_(kept[key])
