"""What makes the fields of a plan fit each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from autopar.core.errors import InputError

if TYPE_CHECKING:
    from autopar.plans.plan import Plan, Stage

DATA_SPLITS = ("random", "contiguous", "shard", "balanced")
"""How a global batch can be shared out; ``balanced`` gives all microbatches equal tokens."""


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def check_plan(plan: Plan) -> None:
    """Reject contradictions with one line that says what to change.

    Raises:
        InputError: Names the fields.
    """
    for key in ("microbatches", "microbatch_size", "bucket_bytes"):
        if not _whole(getattr(plan, key)):
            raise InputError(
                f"plan has {key}={getattr(plan, key)!r}, it must be a whole number >= 1",
                hint=f"set {key} to 1 or more",
            )
    if plan.threads is not None and not _whole(plan.threads):
        raise InputError(f"plan has threads={plan.threads!r}", hint="use 1 or more, or null")
    if plan.data_split not in DATA_SPLITS:
        raise InputError(
            f"plan has data_split='{plan.data_split}'", hint="use " + ", ".join(DATA_SPLITS)
        )
    if plan.clip_norm is not None and not plan.clip_norm > 0:
        raise InputError(
            f"plan has clip_norm={plan.clip_norm}", hint="use a positive norm or null"
        )
    if sorted(set(plan.placement)) != sorted(plan.placement) or len(plan.placement) != (
        plan.world_size
    ):
        raise InputError(
            f"placement has {len(plan.placement)} entries for {plan.world_size} ranks, "
            "each rank needs one device of its own",
            hint="remove 'placement' to use devices 0, 1, 2 ...",
        )
    _check_shares(plan)
    _check_sharding(plan)
    _check_stages(plan)


def _check_shares(plan: Plan) -> None:
    shares, replicas = plan.batch_shares, plan.mesh.replicas
    if not shares:
        return
    if len(shares) != replicas or not all(_whole(share) for share in shares):
        raise InputError(
            f"plan has batch_shares={list(shares)} for {replicas} replicas",
            hint="give each replica a whole number >= 1, or remove the field",
        )
    if sum(shares) != replicas * plan.microbatch_size:
        raise InputError(
            f"batch_shares={list(shares)} sum to {sum(shares)}, {replicas} replicas x "
            f"microbatch_size {plan.microbatch_size} make {replicas * plan.microbatch_size}",
            hint="microbatch_size is the mean of the shares",
        )


def _check_sharding(plan: Plan) -> None:
    if plan.zero not in (0, 1, 2, 3) or (plan.zero == 0) != (plan.mesh.dp_shard == 1):
        raise InputError(
            f"plan has zero={plan.zero!r} with dp_shard={plan.mesh.dp_shard}",
            hint="use zero 1, 2 or 3 with dp_shard of 2 or more, else zero 0 with dp_shard 1",
        )
    if plan.sequence_parallel and plan.mesh.tp == 1:
        raise InputError("sequence_parallel divides over tp ranks, tp is 1", hint="set tp >= 2")
    data_ranks = plan.mesh.replicas * plan.mesh.cp
    if data_ranks % plan.mesh.ep:
        raise InputError(
            f"ep={plan.mesh.ep} does not divide the {data_ranks} data ranks",
            hint="use a divisor of dp_replicate x dp_shard x cp",
        )


def _check_stages(plan: Plan) -> None:
    pp = plan.mesh.pp
    if not plan.stages or len(plan.stages) % pp:
        raise InputError(
            f"plan has {len(plan.stages)} stages for pp={pp}, a multiple of pp is needed",
            hint="give each pipeline rank the same number of stages",
        )
    edges = [0, *(stage.stop_op for stage in plan.stages)]
    starts = [stage.first_op for stage in plan.stages]
    if starts != edges[:-1] or edges[-1] != plan.task.op_count or edges != sorted(set(edges)):
        raise InputError(
            f"stages do not cover ops 0..{plan.task.op_count} without gaps or empty stages: "
            f"cuts at {edges}",
            hint="make each stage start where the one before stops",
        )
    if {stage.pp for stage in plan.stages} != set(range(pp)):
        raise InputError(
            f"stages use pipeline ranks {sorted({s.pp for s in plan.stages})}, pp={pp}",
            hint=f"use every pipeline rank from 0 to {pp - 1}",
        )
    for stage in plan.stages:
        _check_ranges(stage, "recompute", (*stage.recompute, *stage.selective))
        _check_ranges(stage, "units", stage.units)


def _check_ranges(stage: Stage, what: str, pairs: tuple[tuple[int, int], ...]) -> None:
    ranges = [op for pair in sorted(pairs) for op in pair]
    inside = all(stage.first_op <= op <= stage.stop_op for op in ranges)
    if ranges != sorted(ranges) or not inside:
        raise InputError(
            f"{what} ranges {pairs} of the stage at op {stage.first_op} overlap or leave the "
            "stage",
            hint="use disjoint ranges inside the stage",
        )
