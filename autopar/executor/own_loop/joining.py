"""How a rank joins the process group of its plan."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore, Store
from torch.distributed.rendezvous import rendezvous

from autopar.core.errors import InputError
from autopar.executor.launching.worker import choose_device, init_group, mesh_rank
from autopar.plans import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """A process group that spans a plan's world.

    Attributes:
        device: Device of this rank.
        made_here: True when :func:`join` made the group, so that it must end it too.
    """

    device: torch.device
    made_here: bool


def join(plan: Plan, *, device: str, timeout_s: float) -> Joined:
    """Join the ranks of a plan from inside a user's own script.

    A process group that the script made is used as it is. Else torchrun's environment tells who
    this process is; without it the process is alone, which a plan of one rank allows.

    Args:
        plan: The plan.
        device: ``auto``, ``cpu`` or ``cuda``.
        timeout_s: How long a collective may take, for a group made here.

    Raises:
        InputError: The number of processes is not the plan's number of ranks.
        EnvironmentUnableError: Too few CUDA devices.
    """
    started = dist.is_initialized()
    world = dist.get_world_size() if started else int(os.environ.get("WORLD_SIZE", "1"))
    if world != plan.world_size:
        under = started or "WORLD_SIZE" in os.environ
        raise InputError(
            f"plan {plan.name} has {plan.world_size} ranks, "
            + (f"{world} processes were started" if under else "this script runs on its own"),
            hint=f"start it with torchrun --nproc-per-node={plan.world_size} SCRIPT "
            "(with --nnodes on several hosts)",
        )
    place = choose_device(
        device,
        int(os.environ.get("LOCAL_RANK", "0")),
        int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
    )
    if plan.threads:
        torch.set_num_threads(plan.threads)
    if started:
        _check_started(place)
        return Joined(device=place, made_here=False)
    process = int(os.environ.get("RANK", "0"))
    limit = timedelta(seconds=timeout_s)
    store: Store
    if "MASTER_ADDR" in os.environ:
        store, _, _ = next(iter(rendezvous("env://", process, world, timeout=limit)))
    elif world == 1:
        store = HashStore()
    else:
        raise InputError(
            f"WORLD_SIZE is {world} and MASTER_ADDR is not set",
            hint=f"start the script with torchrun --nproc-per-node={world}",
        )
    init_group(
        plan,
        store,
        rank=mesh_rank(plan, process),
        device=place,
        timeout_s=timeout_s,
        one_host=int(os.environ.get("GROUP_WORLD_SIZE", "1")) == 1,
    )
    return Joined(device=place, made_here=True)


def _check_started(device: torch.device) -> None:
    backend = dist.get_backend()
    if (device.type == "cuda") != ("nccl" in backend):
        raise InputError(
            f"the script's process group uses {backend}, the device is {device.type}",
            hint="pass device='cpu' for gloo, or let parallelize make the process group",
        )
    if device.type == "cuda":
        torch.cuda.set_device(device)
