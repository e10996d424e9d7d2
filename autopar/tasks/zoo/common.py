"""What every zoo file shares: option checks, losses and optimizers."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.nn import functional

from autopar.core.errors import InputError


def require_positive(**options: int | float) -> None:
    """Reject sizes and factors that are zero or negative.

    Args:
        **options: Option names and their values.

    Raises:
        InputError: A value is not positive.
    """
    for name, value in options.items():
        if value <= 0:
            raise InputError(
                f"{name}={value}: must be greater than 0", hint=f"give {name} a positive value"
            )


def require_at_least(minimum: int, **options: int) -> None:
    """Reject sizes below a minimum.

    Args:
        minimum: Smallest value allowed.
        **options: Option names and their values.

    Raises:
        InputError: A value is smaller.
    """
    for name, value in options.items():
        if value < minimum:
            raise InputError(
                f"{name}={value}: must be at least {minimum}", hint=f"for example {name}={minimum}"
            )


def require_divides(divisor: str, divisor_value: int, dividend: str, dividend_value: int) -> None:
    """Reject sizes that do not split evenly, such as hidden over heads.

    Args:
        divisor: Name of the option that divides.
        divisor_value: Its value.
        dividend: Name of the option that is divided.
        dividend_value: Its value.

    Raises:
        InputError: There is a remainder.
    """
    if dividend_value % divisor_value:
        raise InputError(
            f"{dividend}={dividend_value}: must be a multiple of {divisor}={divisor_value}",
            hint=f"change {dividend} or {divisor}",
        )


def require_probability(**options: float) -> None:
    """Reject probabilities outside [0, 1).

    Args:
        **options: Option names and their values.

    Raises:
        InputError: A value is outside the range.
    """
    for name, value in options.items():
        if not 0.0 <= value < 1.0:
            raise InputError(
                f"{name}={value}: must be at least 0 and below 1",
                hint=f"{name}=0 keeps runs comparable bit for bit",
            )


def parse_sizes(name: str, text: str) -> list[int]:
    """Read a dash-separated list of sizes such as ``"512-256-128"``.

    Args:
        name: Name of the option, for the error message.
        text: Its value.

    Returns:
        The sizes, at least one, each at least one.

    Raises:
        InputError: A part is not a positive whole number.
    """
    parts = text.split("-")
    if not all(part.isdigit() and int(part) > 0 for part in parts):
        raise InputError(
            f"{name}={text}: must be positive whole numbers joined by '-'",
            hint=f"for example {name}=512-256-128",
        )
    return [int(part) for part in parts]


def token_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy over all tokens (or pixels) of all samples, in nats.

    Every sample has the same number of tokens, so the mean over equal microbatches is the mean
    over the batch.

    Args:
        output: Logits, ``[n, tokens, classes]``.
        target: Class indices, ``[n, tokens]``.
    """
    return functional.cross_entropy(output.flatten(0, 1), target.flatten())


def class_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy over the samples, in nats.

    Args:
        output: Logits, ``[n, classes]``.
        target: Class indices, ``[n]``.
    """
    return functional.cross_entropy(output, target)


def adamw(params: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW with the settings customary for transformers."""
    return torch.optim.AdamW(params, lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1)


def sgd_momentum(params: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """SGD with momentum and weight decay, customary for convolutional networks."""
    return torch.optim.SGD(params, lr=0.01, momentum=0.9, weight_decay=1e-4)
