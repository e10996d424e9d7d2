"""Peak memory per rank against the device."""

from __future__ import annotations

from autopar.core.units import format_bytes
from autopar.reporting.figures.memory import OFF_SCALE, MemoryRow, memory_figure, memory_table
from autopar.reporting.model import Chart, Section
from autopar.reporting.palette import MEMORY
from autopar.reporting.sections.subject import Subject
from autopar.reporting.text import bytes_pair, percent


def memory_rows(subject: Subject) -> tuple[MemoryRow, ...]:
    """One row per pipeline coordinate, with the largest measured peak among its ranks."""
    mesh = subject.plan.mesh
    peaks: dict[int, list[float]] = {}
    for rank, peak in enumerate(subject.record.peak_memory_bytes if subject.record else ()):
        peaks.setdefault(mesh.coordinates(rank)["pp"], []).append(peak)
    predicted = subject.price.memory if subject.price else ()
    rows = []
    for pp in range(mesh.pp):
        measured = max(peaks[pp]) if pp in peaks else None
        part = predicted[pp] if pp < len(predicted) else None
        if part is not None or measured is not None:
            label = f"pipeline rank {pp}" if mesh.pp > 1 else "every rank"
            rows.append(MemoryRow(label=label, predicted=part, measured_bytes=measured))
    return tuple(rows)


def memory_section(subject: Subject) -> Section | None:
    """Stacked peak memory with the capacity line."""
    rows = memory_rows(subject)
    if not any(row.largest for row in rows):
        return None
    capacity = subject.price.capacity_bytes if subject.price else None
    fullest = max(rows, key=lambda row: row.largest)
    title = f"The fullest rank needs {format_bytes(fullest.largest)}"
    if capacity:
        title = (
            f"The fullest rank uses {bytes_pair(fullest.largest, capacity)} "
            f"({percent(fullest.largest / capacity)})"
        )
    note = ""
    if capacity and capacity > OFF_SCALE * fullest.largest:
        note = f"The capacity, {format_bytes(capacity)}, lies far off the right edge."
    chart = Chart(
        id="memory-chart",
        title=title,
        how_to_read="Bars are the predicted peak of each rank, cut into what fills it; a diamond "
        "is the measured peak of the fullest rank of that row. The dashed line is what the "
        "smallest device has.",
        table=memory_table(rows, capacity),
        figure=memory_figure(rows, capacity),
        note=note,
    )
    return Section(id="memory", title="Memory", lead=_lead(rows), parts=(chart,))


def _lead(rows: tuple[MemoryRow, ...]) -> str:
    """What fills the fullest rank."""
    predicted = [row.predicted for row in rows if row.predicted]
    if not predicted:
        return "Peak memory as measured; the plan carries no prediction."
    worst = max(predicted, key=lambda part: part.total_bytes)
    key = max(MEMORY, key=lambda k: getattr(worst, k))
    share = getattr(worst, key) / worst.total_bytes if worst.total_bytes else 0.0
    return f"Mostly {MEMORY[key].label}: {percent(share)} of the predicted peak."
