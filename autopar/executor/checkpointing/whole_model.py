"""The whole model's state on one rank, from the parts that ranks hold."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from autopar.executor.lowering import Lowering


class WholeModel:
    """What a model looked like before a plan took it apart.

    Args:
        model: The model, whole.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        held = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        first = {id(tensor): name for name, tensor in held.items()}
        self._kinds = {name: (tensor.shape, tensor.dtype) for name, tensor in held.items()}
        self._names: dict[str, str] = {}
        self._extras: dict[str, Any] = {}
        for name, value in model.state_dict(keep_vars=True).items():
            if id(value) in first:
                self._names[name] = first[id(value)]
            else:  # an extra state of the user's own
                self._extras[name] = value
        self._buffers = {name: b.detach().cpu().clone() for name, b in model.named_buffers()}

    @torch.no_grad()
    def gather(self, lowering: Lowering) -> dict[str, Any]:
        """``state_dict`` of the model on rank 0, empty elsewhere (collective).

        Buffers that training does not write, and extra states, are those of the model as it was
        given.
        """
        groups = lowering.context.groups
        held = {**lowering.parameters, **lowering.buffers}
        mine = [name for name in held if name in lowering.owned]
        lists: list[Any] = [None] * groups.world_size
        dist.all_gather_object(lists, mine, group=groups.control)
        pipeline = groups.plan.mesh.group("pp", rank=0)
        found: dict[str, torch.Tensor] = dict(self._buffers) if groups.rank == 0 else {}
        for name in mine:
            tensor = lowering.whole(name, held[name]).cpu()
            if groups.rank == 0:
                found[name] = tensor
            elif groups.rank in pipeline:
                dist.send(tensor.contiguous(), 0, group=groups.control)
        if groups.rank:
            return {}
        for rank in pipeline[1:]:
            for name in lists[rank]:
                shape, dtype = self._kinds[name]
                found[name] = torch.empty(shape, dtype=dtype)
                dist.recv(found[name], rank, group=groups.control)
        named = {name: found[canonical] for name, canonical in self._names.items()}
        return {**named, **self._extras}
