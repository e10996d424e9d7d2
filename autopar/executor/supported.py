"""What a plan may ask of the executor; the rest is refused in one line before anything starts."""

from __future__ import annotations

from collections.abc import Iterator

from autopar.core.errors import InputError
from autopar.executor.server.encoding import ENCODINGS
from autopar.executor.server.roles import server_sync
from autopar.plans import Plan
from autopar.sync import SyncGroup

AXES = ("dp_replicate", "dp_shard", "pp", "cp", "ep")
PRECISIONS = ("float32",)


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
    if plan.offload:
        yield "optimizer state in host memory", again
    if plan.batch_shares and plan.mesh.ep > 1:
        yield f"batch_shares with ep={plan.mesh.ep}", "remove batch_shares, or use ep 1"
    if plan.precision not in PRECISIONS:
        yield f"precision '{plan.precision}'", "set precision to float32 in the plan"
    yield from _sync_refusals(plan)


def _sync_refusals(plan: Plan) -> Iterator[tuple[str, str]]:
    if plan.sync == "all_reduce":
        return
    sync = server_sync(plan)
    if sync is None:
        yield f"sync mode '{plan.sync}'", "plan again with --sync all_reduce"
        return
    if not plan.mesh.fits(("dp_replicate",)):
        yield f"sync mode '{plan.sync}' on more than replicas", "use a mesh of dp_replicate only"
    if sync.compression.name not in ENCODINGS:
        yield (
            f"compression '{sync.compression.name}' of what is pushed to a server",
            f"use one of {', '.join(ENCODINGS)}",
        )
    problem = sync.check(SyncGroup(ranks=plan.mesh.dp_replicate))
    if problem is not None:
        yield f"sync mode '{plan.sync}': {problem}", "use fewer servers or more replicas"
