"""GraphProfile to and from JSON: ops as columns-of-rows, amounts as pairs, checked on reading."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from autopar.core.errors import InputError
from autopar.graph.amount import Amount
from autopar.graph.block import Block, BlockEdge
from autopar.graph.convergence import Convergence
from autopar.graph.measurement import BlockCurve, Measurement
from autopar.graph.noise import GradientNoise
from autopar.graph.op import Op, OpEdge

if TYPE_CHECKING:
    from autopar.graph.profile import GraphProfile

_OP_AMOUNTS = (
    "forward_flop",
    "backward_flop",
    "forward_bytes",
    "backward_bytes",
    "saved_bytes",
    "output_bytes",
)
_BLOCK_AMOUNTS = (
    "forward_flop",
    "backward_flop",
    "forward_bytes",
    "backward_bytes",
    "saved_bytes",
    "boundary_bytes",
    "peak_transient_bytes",
)
_PLAIN = (
    "task",
    "target",
    "fingerprint",
    "batch",
    "device",
    "buffer_bytes",
    "input_bytes",
    "uncounted",
    "smallest_microbatch",
    "provenance",
)


def profile_to_dict(profile: GraphProfile) -> dict[str, Any]:
    """Plain JSON values of a profile."""
    return {
        **{key: getattr(profile, key) for key in _PLAIN},
        "parameters": {name: list(pair) for name, pair in profile.parameters.items()},
        "ops": [_op_to_dict(op) for op in profile.ops],
        "edges": [
            [
                e.producer,
                e.consumer,
                *e.size_bytes.to_list(),
                e.needs_gradient,
                list(e.shape),
                e.dtype,
            ]
            for e in profile.edges
        ],
        "blocks": [_block_to_dict(block) for block in profile.blocks],
        "block_edges": [
            [e.tensor, e.producer, e.consumer, *e.size_bytes.to_list(), e.needs_gradient]
            for e in profile.block_edges
        ],
        "optimizer": asdict(profile.optimizer),
        "measurement": _measurement_to_dict(profile.measurement),
        "gradient_noise": profile.gradient_noise.to_dict() if profile.gradient_noise else None,
        "convergence": [item.to_dict() for item in profile.convergence],
    }


def profile_from_dict(data: dict[str, Any], origin: str) -> GraphProfile:
    """Build a profile from JSON values.

    Raises:
        InputError: Names the file and the first field that is wrong.
    """
    from autopar.graph.profile import GraphProfile, OptimizerState

    try:
        profile = GraphProfile(
            **{key: data[key] for key in _PLAIN},
            parameters={n: (int(p[0]), int(p[1])) for n, p in data["parameters"].items()},
            ops=tuple(_op_from_dict(op) for op in data["ops"]),
            edges=tuple(_edge_from_list(e) for e in data["edges"]),
            blocks=tuple(_block_from_dict(block) for block in data["blocks"]),
            block_edges=tuple(_block_edge_from_list(e) for e in data["block_edges"]),
            optimizer=OptimizerState(**data["optimizer"]),
            measurement=_measurement_from_dict(data["measurement"]),
            gradient_noise=_noise_from_dict(data.get("gradient_noise")),
            convergence=tuple(Convergence.from_dict(c) for c in data.get("convergence", ())),
        )
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise InputError(
            f"{origin}: bad profile field: {type(error).__name__}: {error}",
            hint="make the profile again with `autopar profile`",
        ) from error
    _check(profile, origin)
    return profile


def _check(profile: GraphProfile, origin: str) -> None:
    """Structural invariants: order, coverage, edges that point at existing ops and forwards."""
    count = len(profile.ops)
    problems = []
    if [op.index for op in profile.ops] != list(range(count)):
        problems.append("op indices are not 0..n-1")
    if any(not 0 <= e.producer < e.consumer < count for e in profile.edges):
        problems.append("an edge does not point forward to an existing op")
    cuts = [b.first_op for b in profile.blocks] + [count]
    if not profile.blocks or cuts[0] != 0 or [b.stop_op for b in profile.blocks] != cuts[1:]:
        problems.append("blocks do not cover the ops")
    if any(not 0 <= e.producer < e.consumer < len(profile.blocks) for e in profile.block_edges):
        problems.append("a block edge does not point forward to an existing block")
    if not isinstance(profile.batch, int) or profile.batch < 1:
        problems.append(f"batch is {profile.batch!r}")
    if problems:
        raise InputError(
            f"{origin}: {problems[0]}", hint="make the profile again with `autopar profile`"
        )


def _op_to_dict(op: Op) -> dict[str, Any]:
    row: dict[str, Any] = {"name": op.name, "target": op.target, "module": op.module}
    row |= {k: getattr(op, k).to_list() for k in _OP_AMOUNTS if getattr(op, k) != Amount()}
    if op.parameters:
        row["parameters"] = list(op.parameters)
    row |= {k: True for k in ("replicated", "random") if getattr(op, k)}
    return {"index": op.index, **row, "kernels": op.kernels}


def _op_from_dict(row: dict[str, Any]) -> Op:
    amounts = {k: Amount.from_list(row[k]) for k in _OP_AMOUNTS if k in row}
    return Op(
        index=row["index"],
        name=row["name"],
        target=row["target"],
        module=row["module"],
        parameters=tuple(row.get("parameters", ())),
        replicated=row.get("replicated", False),
        random=row.get("random", False),
        kernels=row["kernels"],
        **amounts,
    )


def _edge_from_list(row: list[Any]) -> OpEdge:
    producer, consumer, fixed, per_sample, needs_gradient, shape, dtype = row
    return OpEdge(
        producer=producer,
        consumer=consumer,
        size_bytes=Amount(fixed, per_sample),
        needs_gradient=needs_gradient,
        shape=tuple(shape),
        dtype=dtype,
    )


def _block_edge_from_list(row: list[Any]) -> BlockEdge:
    tensor, producer, consumer, fixed, per_sample, needs_gradient = row
    return BlockEdge(
        tensor=tensor,
        producer=producer,
        consumer=consumer,
        size_bytes=Amount(fixed, per_sample),
        needs_gradient=needs_gradient,
    )


def _block_to_dict(block: Block) -> dict[str, Any]:
    return {
        "index": block.index,
        "name": block.name,
        "first_op": block.first_op,
        "stop_op": block.stop_op,
        "signature": block.signature,
        "parameters": list(block.parameters),
        "parameter_bytes": block.parameter_bytes,
        "kernels": block.kernels,
        **{key: getattr(block, key).to_list() for key in _BLOCK_AMOUNTS},
    }


def _block_from_dict(row: dict[str, Any]) -> Block:
    return Block(
        **{
            **row,
            "parameters": tuple(row["parameters"]),
            **{key: Amount.from_list(row[key]) for key in _BLOCK_AMOUNTS},
        }
    )


def _measurement_to_dict(measurement: Measurement | None) -> dict[str, Any] | None:
    if measurement is None:
        return None
    return {
        "device": measurement.device,
        "busy_ranks": measurement.busy_ranks,
        "threads": measurement.threads,
        "curves": {k: [list(p) for p in c.points] for k, c in measurement.curves.items()},
        "composition": [list(p) for p in measurement.composition],
        "eager": [list(p) for p in measurement.eager],
        "optimizer_s": measurement.optimizer_s,
        "optimizer_s_per_byte": measurement.optimizer_s_per_byte,
        "zero_grad_s": measurement.zero_grad_s,
        "accumulate_s_per_byte": measurement.accumulate_s_per_byte,
        "again": {k: list(pair) for k, pair in measurement.again.items()},
        "checkpoint_s": measurement.checkpoint_s,
        "checkpoint_s_per_op": measurement.checkpoint_s_per_op,
        "selective_s": measurement.selective_s,
        "selective_s_per_op": measurement.selective_s_per_op,
        "resident_bytes": measurement.resident_bytes,
        "spread": measurement.spread,
        "pace_s": measurement.pace_s,
    }


def _measurement_from_dict(row: dict[str, Any] | None) -> Measurement | None:
    if row is None:
        return None
    curves = {
        key: BlockCurve(points=tuple((p[0], p[1], p[2]) for p in points))
        for key, points in row["curves"].items()
    }
    composition = tuple((p[0], p[1]) for p in row["composition"])
    eager = tuple((p[0], p[1], p[2]) for p in row.get("eager", ()))
    again = {key: (pair[0], pair[1]) for key, pair in row.get("again", {}).items()}
    older = {  # profiles that know full recompute only
        "selective_s": row.get("checkpoint_s", 0.0),
        "selective_s_per_op": row.get("checkpoint_s_per_op", 0.0),
    }
    read = {"curves": curves, "composition": composition, "eager": eager, "again": again}
    return Measurement(**{**older, **row, **read})


def _noise_from_dict(row: dict[str, Any] | None) -> GradientNoise | None:
    return None if row is None else GradientNoise.from_dict(row)
