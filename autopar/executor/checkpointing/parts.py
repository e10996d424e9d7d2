"""Tensors of which a rank holds a part, as a checkpoint wants them: whole, under the model's name.

Parts of columns, vocabularies or experts are joined before they are saved and cut again after
they are loaded, so that a checkpoint fits plans with other degrees. While that happens a rank
holds one whole copy of what it has parts of.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.distributed.tensor import DTensor, distribute_tensor

from autopar.core.errors import InputError
from autopar.executor.holding import Cut
from autopar.executor.lowering import Lowering


def joined(lowering: Lowering, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """What is saved for a parameter, buffer or optimizer state (collective over its parts).

    Args:
        lowering: What is trained.
        name: Model name of the parameter or buffer.
        tensor: It, or state of the optimizer for it.

    Raises:
        InputError: State of another shape than its parameter's part: it cannot be joined.
    """
    if not lowering.cuts.get(name) or tensor.dim() == 0:
        return tensor.detach()
    held = {**lowering.parameters, **lowering.buffers}[name]
    if tensor.shape != held.shape:
        raise InputError(
            f"the optimizer keeps a tensor of shape {list(tensor.shape)} for a rank's part of "
            f"'{name}', shape {list(held.shape)}; parts of such state cannot be joined",
            hint="use an optimizer with elementwise state, or run without checkpoints",
        )
    return lowering.whole(name, tensor)


def whole_shape(cuts: Sequence[Cut], shape: Sequence[int]) -> torch.Size:
    """Shape of the model's own tensor from that of a part."""
    result = list(shape)
    for cut in reversed(cuts):
        result[cut.dim] = sum(cut.sections)
    return torch.Size(result)


@torch.no_grad()
def own_part(
    lowering: Lowering, name: str, whole: torch.Tensor, like: torch.Tensor
) -> torch.Tensor:
    """This rank's part of a whole tensor, sharded as another one is.

    Args:
        lowering: What is trained.
        name: Model name.
        whole: The model's own tensor, or optimizer state in its shape.
        like: The parameter or buffer here.
    """
    for cut in lowering.cuts.get(name, ()):
        group = lowering.context.groups.axis(cut.axis)
        whole = cut.part(whole, group.position, group.size)
    if isinstance(like, DTensor):
        return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)
    return whole
