"""What travels between ranks: bytes, how often, how long, and how much of it is exposed."""

from __future__ import annotations

from autopar.core.units import format_bytes
from autopar.plans import Plan
from autopar.reporting.model import Section
from autopar.reporting.sections.subject import Subject
from autopar.reporting.table import Column, Table, Value
from autopar.reporting.text import percent
from autopar.results import PlanPrice


def communication_section(subject: Subject) -> Section | None:
    """Transfers between stages, gradient synchronisation, and measured bytes per rank."""
    parts = []
    if subject.price:
        table = communication_table(subject.plan, subject.price)
        if table.rows:
            parts.append(table)
    sent = subject.record.bytes_sent if subject.record else ()
    if any(sent):
        parts.append(sent_table(subject.plan, sent))
    if not parts:
        return None
    return Section(
        id="communication", title="Communication", lead=_lead(subject), parts=tuple(parts)
    )


def _lead(subject: Subject) -> str:
    breakdown = None
    source = "predicted"
    if subject.price:
        breakdown = subject.price.breakdown
    if subject.record:
        breakdown, source = subject.record.breakdown, "measured"
    if breakdown is None or breakdown.total_s <= 0:
        return ""
    exposed = breakdown.gradient_sync_s + breakdown.pipeline_communication_s
    words = f"{percent(exposed / breakdown.total_s)} of the {source} step waits for messages"
    if subject.record and any(subject.record.bytes_sent):
        words += f"; the busiest rank sends {format_bytes(max(subject.record.bytes_sent))} a step"
    return words + "."


def communication_table(plan: Plan, price: PlanPrice) -> Table:
    """One row per transfer between stages and per gradient synchronisation."""
    rows: list[tuple[Value, ...]] = []
    for t in price.transfers:
        ends = ((t.producer, t.consumer, t.forward_s), (t.consumer, t.producer, t.backward_s))
        for what, (origin, goal, seconds) in zip(("activation", "gradient"), ends, strict=True):
            if seconds > 0 or what == "activation":
                rows.append(
                    (
                        what,
                        f"stage {origin} → {goal}",
                        t.size_bytes,
                        plan.microbatches,
                        seconds,
                        seconds * plan.microbatches,
                        t.size_bytes / seconds if seconds > 0 else None,
                        None,
                    )
                )
    rows += _sync_rows(plan, price)
    return Table(
        id="communication-data",
        caption="Messages of one replica in one step, predicted",
        columns=(
            Column("what", "what"),
            Column("between", "between"),
            Column("message_bytes", "message", "bytes"),
            Column("messages", "per step", "count"),
            Column("message_s", "time each", "seconds"),
            Column("total_s", "time per step", "seconds"),
            Column("bytes_per_s", "bytes/s", "rate"),
            Column("exposed_s", "exposed", "seconds"),
        ),
        rows=tuple(rows),
        searchable=len(rows) > 12,
    )


def _sync_rows(plan: Plan, price: PlanPrice) -> list[tuple[Value, ...]]:
    rows: list[tuple[Value, ...]] = []
    for pp in range(plan.mesh.pp):
        costs = [c for c, s in zip(price.stage_costs, plan.stages, strict=False) if s.pp == pp]
        full = sum(cost.gradient_sync_s for cost in costs)
        if full > 0:
            size = price.memory[pp].gradients_bytes if pp < len(price.memory) else None
            exposed = sum(cost.exposed_sync_s for cost in costs)
            group = f"{plan.mesh.replicas} replicas of pipeline rank {pp}"
            rate = size / full if size else None
            rows.append((plan.sync.replace("_", "-"), group, size, 1, full, full, rate, exposed))
    for tied in price.tied_syncs:
        group = "pipeline ranks " + ", ".join(str(rank) for rank in tied.ranks)
        rows.append(
            ("tied parameters", group, None, 1, tied.seconds, tied.seconds, None, tied.seconds)
        )
    return rows


def sent_table(plan: Plan, sent: tuple[float, ...]) -> Table:
    """Bytes each rank sent in one measured step."""
    rows = [(rank, plan.mesh.coordinates(rank)["pp"], value) for rank, value in enumerate(sent)]
    return Table(
        id="sent-data",
        caption="Bytes each rank sent in one measured step",
        columns=(
            Column("rank", "rank", "count"),
            Column("pipeline_rank", "pipeline rank", "count"),
            Column("sent_bytes", "sent", "bytes"),
        ),
        rows=tuple(rows),
        searchable=len(rows) > 16,
    )
