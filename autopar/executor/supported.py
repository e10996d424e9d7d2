"""What a plan may ask of the executor; the rest is refused in one line before anything starts."""

from __future__ import annotations

from collections.abc import Iterator

from autopar.core.errors import InputError
from autopar.executor.precision import PRECISIONS
from autopar.executor.server.encoding import ENCODINGS
from autopar.executor.server.roles import server_sync
from autopar.plans import Plan
from autopar.sync import SyncGroup, parse_sync

AXES = ("dp_replicate", "dp_shard", "pp", "cp", "tp", "ep")


HOST_STATE_DEVICES = ("cuda",)
"""Types of device that compute beside a host with memory of its own."""


def check_device(plan: Plan, device_type: str) -> None:
    """Refuse a plan that the ranks' devices cannot run.

    Raises:
        InputError: Optimizer state shall leave a device whose memory is the host's.
    """
    if plan.offload and device_type not in HOST_STATE_DEVICES:
        raise InputError(
            f"plan {plan.name} keeps optimizer state in host memory, this rank computes on "
            f"{device_type}: there is no other memory to move it from",
            hint="run it on CUDA devices, set offload to false in the plan, or plan again with "
            "--fix offload=off",
        )


def check_supported(plan: Plan) -> None:
    """Refuse a plan that cannot be run.

    Raises:
        InputError: Names the axis, mode or number.
    """
    for what, hint in _refusals(plan):
        raise InputError(
            f"plan {plan.name} has {what}, which the executor does not run", hint=hint
        )


def _refusals(plan: Plan) -> Iterator[tuple[str, str]]:
    """What cannot be run, and what to do instead."""
    again = "plan again with --space runnable"
    for axis, degree in plan.mesh.to_dict().items():
        if degree > 1 and axis not in AXES:
            yield f"{axis}={degree}", again
    if plan.offload and server_sync(plan) is not None:
        yield (
            f"optimizer state in host memory with sync mode '{plan.sync}', whose servers hold it",
            "set offload to false in the plan",
        )
    if plan.batch_shares and plan.mesh.ep > 1:
        yield f"batch_shares with ep={plan.mesh.ep}", "remove batch_shares, or use ep 1"
    yield from _precision_refusals(plan)
    yield from _sync_refusals(plan)


def _precision_refusals(plan: Plan) -> Iterator[tuple[str, str]]:
    if plan.precision not in PRECISIONS:
        yield (
            f"precision '{plan.precision}', whose products need scaled kernels",
            f"set precision to one of {', '.join(PRECISIONS)} in the plan",
        )
        return
    problem = parse_sync(plan.sync).check_precision(plan.precision)
    if problem is not None:
        yield f"sync mode {problem}", "set precision to bfloat16 in the plan"


def _sync_refusals(plan: Plan) -> Iterator[tuple[str, str]]:
    """The mode's own reasons; nodes are known only when the ranks have met."""
    if plan.sync == "all_reduce":
        return
    sync, mesh = parse_sync(plan.sync), plan.mesh
    ranks = mesh.replicas * mesh.cp
    problem = sync.check_mesh(mesh)
    if problem is None and not sync.mode.counts_nodes:
        problem = sync.check(SyncGroup(ranks=ranks))
    if problem is not None:
        yield (
            f"sync mode '{plan.sync}': {problem}",
            "plan again with --sync all_reduce, or for another mesh",
        )
    if server_sync(plan) is not None and sync.compression.name not in ENCODINGS:
        yield (
            f"compression '{sync.compression.name}' of what is pushed to a server",
            f"use one of {', '.join(ENCODINGS)}",
        )
