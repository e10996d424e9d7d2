"""The plan as tables: settings, stages, placement."""

from __future__ import annotations

from autopar.core.units import format_bytes
from autopar.plans import Plan
from autopar.reporting.model import Section
from autopar.reporting.sections.subject import Subject
from autopar.reporting.table import Column, Table, Value
from autopar.reporting.text import clean

MAX_RANKS = 8


def plan_section(subject: Subject) -> Section:
    """Settings and stages of the plan."""
    plan = subject.plan
    return Section(
        id="plan",
        title="The plan",
        lead=f"{plan.name}, content hash {plan.hash}.",
        parts=(settings_table(plan), stages_table(subject)),
    )


def settings(plan: Plan) -> dict[str, str]:
    """Setting -> value, as words."""
    mesh = {axis: degree for axis, degree in plan.mesh.to_dict().items() if degree > 1}
    return {
        "task": clean(plan.task.name),
        "cluster": clean(plan.cluster) or "not named",
        "ranks": str(plan.world_size),
        "mesh": " \N{MULTIPLICATION SIGN} ".join(
            f"{axis} {degree}" for axis, degree in mesh.items()
        )
        or "one rank",
        "schedule": plan.schedule,
        "stages": str(len(plan.stages)),
        "microbatches per step": str(plan.microbatches),
        "microbatch size": _few([str(size) for size in plan.batch_shares])
        or str(plan.microbatch_size),
        "global batch": str(plan.global_batch),
        "recompute": "yes" if plan.recomputes else "no",
        "precision": plan.precision,
        "gradient sync": plan.sync,
        "gradient bucket": format_bytes(plan.bucket_bytes),
        "data split": plan.data_split,
        "gradient clipping": "none" if plan.clip_norm is None else f"norm {plan.clip_norm:g}",
        "seed": str(plan.seed),
        "placement": _few([str(device) for device in plan.placement]),
    }


def settings_table(plan: Plan) -> Table:
    """One row per setting."""
    return Table(
        id="settings-data",
        caption="Settings",
        columns=(Column("setting", "setting"), Column("value", "value")),
        rows=tuple(settings(plan).items()),
    )


def stages_table(subject: Subject) -> Table:
    """One row per virtual stage with its ranks, ops, and predicted seconds."""
    plan = subject.plan
    costs = subject.price.stage_costs if subject.price else ()
    rows: list[tuple[Value, ...]] = []
    for index, stage in enumerate(plan.stages):
        ranks = [
            str(rank)
            for rank in range(plan.world_size)
            if plan.mesh.coordinates(rank)["pp"] == stage.pp
        ]
        cost = costs[index] if index < len(costs) else None
        names = [clean(name) for name in stage.blocks]
        blocks = names[0] if len(names) == 1 else f"{names[0]} … {names[-1]}" if names else None
        rows.append(
            (
                index,
                _few(ranks),
                f"{stage.first_op} to {stage.stop_op - 1}",
                blocks,
                len(stage.recompute),
                cost.forward_s if cost else None,
                cost.backward_s if cost else None,
                cost.recompute_s if cost else None,
                cost.optimizer_s if cost else None,
            )
        )
    return Table(
        id="stages-data",
        caption="Stages; times are predicted, for one microbatch (optimizer: one step)",
        columns=(
            Column("stage", "stage", "count"),
            Column("ranks", "ranks"),
            Column("ops", "ops"),
            Column("blocks", "blocks"),
            Column("recompute_units", "recomputed units", "count"),
            Column("forward_s", "forward", "seconds"),
            Column("backward_s", "backward", "seconds"),
            Column("recompute_s", "recompute", "seconds"),
            Column("optimizer_s", "optimizer", "seconds"),
        ),
        rows=tuple(rows),
        searchable=len(rows) > 16,
    )


def _few(words: list[str]) -> str:
    if len(words) <= MAX_RANKS:
        return ", ".join(words)
    return ", ".join(words[:3]) + f", … {words[-1]} ({len(words)})"
