"""What an optimizer couples: nothing, the elements of a parameter, or parameters with each other.

Found out by running it on a few numbers, not by its name: a step on whole parameters is compared
with a step on pieces of them.
"""

from __future__ import annotations

from typing import Literal

import torch

from autopar.core.errors import InputError
from autopar.executor.server.shard import MakeOptimizer

Coupling = Literal["elements", "parameters"]
_SHAPE = (6, 4)
_STEPS = 2
_TOLERANCE = 1e-6


def coupling(make_optimizer: MakeOptimizer) -> Coupling:
    """How the parameters of an optimizer may be shared out over servers.

    Returns:
        ``elements``: every element is stepped by itself, parameters may be cut (SGD, Adam ...).
        ``parameters``: a parameter must stay whole (LAMB, Adafactor, Muon ...).

    Raises:
        InputError: A parameter's step depends on other parameters, or there is no plain step.
    """
    try:
        rows = _SHAPE[0] // 2
        whole = _stepped(make_optimizer, [[0, 1]], [_SHAPE[0]] * 2)
        alone = _stepped(make_optimizer, [[0], [1]], [_SHAPE[0]] * 2)
        cut = _stepped(make_optimizer, [[0, 1, 2, 3]], [rows] * 4)
    except Exception as error:
        raise InputError(
            f"the task's optimizer cannot run on a parameter server: {error}",
            hint="use an optimizer whose step() needs no closure, or another sync mode",
        ) from error
    if not torch.allclose(whole, alone, rtol=_TOLERANCE, atol=_TOLERANCE):
        raise InputError(
            "the task's optimizer steps a parameter by what others have, a parameter server has "
            "only some of them",
            hint="clip with --clip-norm instead of inside the optimizer, or use another sync mode",
        )
    same = torch.allclose(whole, cut, rtol=_TOLERANCE, atol=_TOLERANCE)
    return "elements" if same else "parameters"


def _stepped(make: MakeOptimizer, sets: list[list[int]], rows: list[int]) -> torch.Tensor:
    """All weights after some steps of one optimizer per set of consecutive pieces."""
    generator = torch.Generator().manual_seed(0)
    total = sum(rows)
    weights = torch.randn(total, _SHAPE[1], generator=generator)
    parameters = [torch.nn.Parameter(part.clone()) for part in torch.split(weights, rows)]
    optimizers = [make([parameters[i] for i in one]) for one in sets]
    for _ in range(_STEPS):
        gradient = torch.randn(total, _SHAPE[1], generator=generator)
        gradient[: total // 2].mul_(10.0)  # parameters of unlike norms
        for parameter, part in zip(parameters, torch.split(gradient, rows), strict=True):
            parameter.grad = part.clone()
        for optimizer in optimizers:
            optimizer.step()
    return torch.cat([parameter.detach() for parameter in parameters])
