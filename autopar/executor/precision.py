"""What a plan's precision means in the executor: one place for every dtype it decides.

==========  =============================  ===========================  ==================
precision   products computed in           values between stages        weights, gradients
==========  =============================  ===========================  ==================
float32     float32                        as they are                  float32
tf32        TF32 (CUDA)                    as they are                  float32
bfloat16    bfloat16, by ``autocast``      bfloat16                     float32
float16     float16, by ``autocast``       float16, losses are scaled   float32
==========  =============================  ===========================  ==================

Weights sharded over ranks are gathered in the narrow format and their gradients summed in float32.
Every rank keeps float32 weights, which the optimizer updates (Micikevicius et al. 2018,
arXiv 1710.03740).
"""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.fsdp import MixedPrecisionPolicy

from autopar.core.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """How a plan computes.

    Attributes:
        name: As in ``plan.precision``.
        narrow: Format of products, ``None`` for that of the weights.
        tolerance: Largest relative difference from one process in the same precision that
            rounding explains; see :data:`PRECISIONS`.
        scales_loss: Gradients need a factor to stay in the range of the format.
    """

    name: str
    tolerance: float
    narrow: torch.dtype | None = None
    scales_loss: bool = False

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        """What forward runs in, the second time too."""
        if self.narrow is None:
            return contextlib.nullcontext()
        return torch.autocast(device.type, dtype=self.narrow)

    def cast_once(self, device: torch.device) -> AbstractContextManager[Any]:
        """Around the forward passes of a step: weights are cast in the first one for all.

        Autocast keeps its casts of weights until the outermost of its contexts ends, one that is
        switched off included. Without one every microbatch makes its own and keeps it for its
        backward. Weights must not change inside. Known limit: on CUDA backward runs in another
        thread, whose recompute may end the outermost context there and with it the casts; never
        run on a GPU.
        """
        if self.narrow is None:
            return contextlib.nullcontext()
        return torch.autocast(device.type, dtype=self.narrow, enabled=False)

    def between_stages(self, dtype: torch.dtype) -> torch.dtype:
        """Format in which a value of a type travels to another rank, and its gradient back."""
        return self.narrow if self.narrow is not None and dtype == torch.float32 else dtype

    def sharded(self) -> MixedPrecisionPolicy:
        """Formats in which FSDP2 gathers weights and sums gradients."""
        if self.narrow is None:
            return MixedPrecisionPolicy()
        return MixedPrecisionPolicy(
            param_dtype=self.narrow, reduce_dtype=torch.float32, cast_forward_inputs=False
        )

    def prepare(self, device: torch.device) -> None:
        """Set the process up for it.

        Raises:
            InputError: The device does not compute so.
        """
        if self.name == "tf32" and device.type != "cuda":
            raise InputError(
                f"precision 'tf32' is a mode of CUDA devices, this rank is on {device.type}",
                hint="set precision to float32 in the plan",
            )
        if device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = self.name == "tf32"
            torch.backends.cudnn.allow_tf32 = self.name == "tf32"


FLOAT32 = Precision(name="float32", tolerance=1e-5)

PRECISIONS: dict[str, Precision] = {
    precision.name: precision
    for precision in (
        FLOAT32,
        Precision(name="tf32", tolerance=8e-3),
        Precision(name="bfloat16", tolerance=6e-2, narrow=torch.bfloat16),
        Precision(name="float16", tolerance=8e-3, narrow=torch.float16, scales_loss=True),
    )
}
"""What runs. float8 does not: torch has no autocast for it, its products need scaled kernels.

The tolerances of narrow formats are 16 roundings (2^-8 in bfloat16, 2^-11 in float16 and TF32). A
plan rounds at other places than one process: between stages, in sums over ranks. Measured on small
models: at most 4.6e-2 in bfloat16, 8e-4 in float16. TF32 was not measured.
"""


def wide(loss: torch.Tensor) -> torch.Tensor:
    """A loss in float32 at least, to be scaled and added up."""
    return loss if loss.element_size() >= torch.float32.itemsize else loss.float()
