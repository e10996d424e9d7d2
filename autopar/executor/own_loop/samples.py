"""The samples of one step in the user's own loop: counted, and cut into microbatches."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.utils import _pytree as pytree

from autopar.core.errors import InputError
from autopar.executor.data import Microbatch
from autopar.executor.own_loop.given import sample_counts
from autopar.plans import Plan


def samples_of(plan: Plan, replica: int) -> int:
    """Samples that a replica takes at each step."""
    return plan.microbatches * plan.replica_microbatch(replica)


def cut(batch: Microbatch, plan: Plan, replica: int, device: torch.device) -> list[Microbatch]:
    """Microbatches of a replica's samples, on the device.

    Raises:
        InputError: Another number of samples.
    """
    check_samples(batch, plan, replica, samples_of(plan, replica), f"replica {replica}")
    size = plan.replica_microbatch(replica)
    return [_rows(batch, k * size, (k + 1) * size, device) for k in range(plan.microbatches)]


def check_samples(batch: object, plan: Plan, replica: int, wanted: int, whose: str) -> None:
    """Refuse a batch with another number of samples.

    Args:
        batch: Tensors with samples on dimension 0.
        plan: The plan.
        replica: This rank's replica, for the hint.
        wanted: Samples.
        whose: Whose step it is, for the message.

    Raises:
        InputError: Says both numbers.
    """
    counts = sample_counts(batch)
    if counts != {wanted}:
        raise InputError(
            f"the tensors have {sorted(counts)} samples on dimension 0, a step of {whose} in "
            f"plan {plan.name} takes {wanted}",
            hint=f"give step() {samples_of(plan, replica)} samples (session.samples), or "
            f"session.part() a global batch of {plan.global_batch}",
        )


def _rows(batch: Microbatch, start: int, stop: int, device: torch.device) -> Microbatch:
    take: Callable[[torch.Tensor], torch.Tensor] = lambda t: t[start:stop].to(device)  # noqa: E731
    part: Microbatch = pytree.tree_map_only(torch.Tensor, take, batch)
    return part
