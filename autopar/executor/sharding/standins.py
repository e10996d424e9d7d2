"""Weights that are not shared out, seen by the optimizer as DTensors like all the others."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate


class Standins:
    """A DTensor on the memory of each plain parameter.

    Optimizers update all parameters in one call per dtype, and torch refuses a call that mixes
    DTensors with plain tensors. FSDP2 refuses scalars, and ranks that hold different experts hold
    nothing to share out.

    Args:
        parameters: Model name -> plain parameter.
        mesh: Mesh of the other parameters.

    Attributes:
        originals: Model name -> plain parameter.
        parameters: Model name -> what the optimizer updates; the same memory.
    """

    def __init__(self, parameters: Mapping[str, torch.nn.Parameter], mesh: DeviceMesh) -> None:
        self._mesh = mesh
        self.originals = dict(parameters)
        for parameter in parameters.values():
            parameter.data = parameter.data.to(mesh.device_type)
        self.parameters = {
            name: torch.nn.Parameter(
                self._wrap(parameter.detach()), requires_grad=parameter.requires_grad
            )
            for name, parameter in parameters.items()
        }

    def take_gradients(self) -> None:
        """Move gradients from the plain parameters to the stand-ins."""
        for name, plain in self.originals.items():
            if plain.grad is not None:
                self.parameters[name].grad = self._wrap(plain.grad)
                plain.grad = None

    def _wrap(self, tensor: torch.Tensor) -> DTensor:
        return DTensor.from_local(
            tensor, self._mesh, [Replicate()] * self._mesh.ndim, run_check=False
        )
