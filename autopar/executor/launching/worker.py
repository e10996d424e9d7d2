"""One rank of a run: ``python -m autopar.executor.launching.worker JOB``, started by torchrun."""

from __future__ import annotations

import gc
import json
import os
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous

from autopar.core.errors import EnvironmentUnableError
from autopar.executor.ahead import Ahead
from autopar.executor.options import RunOptions
from autopar.executor.processes.failures import log_path, report_failure
from autopar.executor.processes.orphans import die_with_parent
from autopar.executor.processes.progress import FILE_NAME, ProgressWriter
from autopar.executor.server.roles import ServerLink, independent, server_sync
from autopar.executor.session import Handed, run_session
from autopar.plans import Plan
from autopar.tasks import Task


@dataclass(frozen=True)
class Seat:
    """Which rank a process is.

    Attributes:
        rank: The plan's rank.
        local_rank: Position on this host, also the number of its device.
        local_world: Ranks on this host.
    """

    rank: int
    local_rank: int
    local_world: int


def main(arguments: list[str]) -> int:
    """Run the rank that torchrun's environment describes."""
    gc.freeze()  # libraries are no garbage: every collection before the first step takes .2 s less
    job = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    options = RunOptions.from_dict(job["options"])
    plan = Plan.from_dict(job["plan"])
    process, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    rank = mesh_rank(plan, process)
    local = int(os.environ["LOCAL_RANK"])
    local_world = int(os.environ["LOCAL_WORLD_SIZE"])

    def task() -> Task:
        from autopar.tasks.resolve import resolve

        return resolve(job["target"])

    def body(link: ServerLink | None) -> None:
        made = task()
        store, _, _ = next(iter(rendezvous("env://", process, world)))
        work(plan, made, options, store, Seat(rank, local, local_world), link=link)

    return run_rank(plan, options, rank, task, body)


def run_rank(
    plan: Plan,
    options: RunOptions,
    rank: int,
    task: Callable[[], Task],
    body: Callable[[ServerLink | None], None],
    token: bytes | None = None,
) -> int:
    """Run a rank, beside its parameter server if the plan has them; returns the exit status.

    Args:
        plan: The plan.
        options: The run's options.
        rank: The plan's rank.
        task: Gives the task.
        body: What the rank does.
        token: Secret of a run with servers, from the options and the environment by default.
    """
    if server_sync(plan) is None:
        return guarded(options.out, rank, lambda: body(None))
    from autopar.executor.server.host import host_rank

    return host_rank(
        plan,
        options,
        rank,
        token or options.servers.token(options.nnodes),
        lambda: task().optimizer,
        lambda link: guarded(options.out, rank, lambda: body(link)),
    )


def mesh_rank(plan: Plan, process: int) -> int:
    """The plan's rank that runs in a process: process q has the q-th device the plan uses."""
    return plan.placement.index(sorted(plan.placement)[process])


def guarded(out: Path, rank: int, body: Callable[[], None]) -> int:
    """Run a rank's body with its own log; returns the exit status.

    An exception is noted for the launcher before the rank ends.
    """
    die_with_parent()
    log = log_path(out, rank)
    log.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    # a notebook or a test runner may have put objects of its own in place of these
    sys.stdout, sys.stderr = (os.fdopen(n, "w", encoding="utf-8", closefd=False) for n in (1, 2))
    try:
        body()
    except BaseException as error:
        report_failure(out, rank, error)
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def work(
    plan: Plan,
    task: Task,
    options: RunOptions,
    store: Store,
    seat: Seat,
    warnings: Sequence[str] = (),
    link: ServerLink | None = None,
    ahead: Ahead | None = None,
) -> None:
    """Join the process group, run, write the record.

    Args:
        plan: The plan.
        task: The task.
        options: The run's options.
        store: Where ranks find each other.
        seat: Which rank this is.
        warnings: For the record, from the launcher.
        link: The parameter server beside this rank, for plans with servers.
        ahead: The model and its graph, if the launcher made them.
    """
    device = choose_device(options.device, seat.local_rank, seat.local_world)
    init_group(
        plan,
        store,
        rank=seat.rank,
        device=device,
        timeout_s=options.timeout_s,
        one_host=options.nnodes == 1,
    )
    progress = ProgressWriter(options.out / FILE_NAME if seat.rank == 0 else None)
    options = replace(options, node_size=options.node_size or seat.local_world)
    handed = Handed(warnings=warnings, store=store, link=link, ahead=ahead)
    record = run_session(plan, task, options, device, progress, handed)
    if independent(plan, options):
        record.save(options.out)  # every rank, as any may have been lost; they are all the same
        return
    if seat.local_rank == 0:
        record.save(options.out)
    dist.barrier()
    dist.destroy_process_group()


def init_group(
    plan: Plan,
    store: Store,
    *,
    rank: int,
    device: torch.device,
    timeout_s: float,
    one_host: bool,
) -> None:
    """Make the default process group, which spans the plan's world.

    Args:
        plan: The plan.
        store: Where ranks find each other.
        rank: The plan's rank.
        device: Its device.
        timeout_s: How long a collective may take.
        one_host: All ranks are on this host.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
    elif one_host:
        _use_loopback_if_needed()
    dist.init_process_group(
        backend="nccl" if device.type == "cuda" else "gloo",
        store=store,
        rank=rank,
        world_size=plan.world_size,
        timeout=timedelta(seconds=timeout_s),
        device_id=device if device.type == "cuda" else None,
    )


def choose_device(wanted: str, local_rank: int, local_world: int) -> torch.device:
    """Device of a local rank.

    Raises:
        EnvironmentUnableError: CUDA was asked for and this host has too few devices.
    """
    have = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted == "cuda" and have < local_world:
        raise EnvironmentUnableError(
            f"{local_world} ranks on this host need {local_world} CUDA devices, it has {have}",
            hint="plan for fewer ranks per host, or for the CPU",
        )
    if wanted == "cuda" or (wanted == "auto" and have >= local_world):
        return torch.device("cuda", local_rank)
    return torch.device("cpu")


def _use_loopback_if_needed() -> None:
    """Gloo binds to the address of the host's name; a name without one needs a hint."""
    if "GLOO_SOCKET_IFNAME" in os.environ:
        return
    try:
        socket.getaddrinfo(socket.gethostname(), None)
    except OSError:
        os.environ["GLOO_SOCKET_IFNAME"] = "lo" if sys.platform == "linux" else "lo0"


if __name__ == "__main__":
    os._exit(main(sys.argv[1:]))
