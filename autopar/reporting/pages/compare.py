"""The page that compares two runs, two search results or two plans."""

from __future__ import annotations

import random
from dataclasses import dataclass

from autopar.core.stats import median, quantile
from autopar.core.units import format_bytes, format_seconds
from autopar.plans import Plan
from autopar.reporting.figures.breakdown import Bar, breakdown_figure, breakdown_table
from autopar.reporting.figures.difference import difference_figure, difference_table
from autopar.reporting.figures.losses import losses_figure, losses_table
from autopar.reporting.model import Chart, Download, Fact, Page, Section, Tone
from autopar.reporting.sections import Subject
from autopar.reporting.sections.appendix import appendix_section
from autopar.reporting.sections.details import settings
from autopar.reporting.table import Column, Kind, Table, Value
from autopar.reporting.text import clean, signed_percent

RESAMPLES = 2000
COVERAGE = 0.95
ENVIRONMENT_KEYS = ("host", "system", "cpu_count", "python", "autopar", "packages")


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Step time of the new document over the baseline's, minus 1.

    Attributes:
        value: Best guess.
        low: Lower end of the 95 % interval (for predictions: of the ranges).
        high: Upper end.
    """

    value: float
    low: float
    high: float

    @property
    def in_noise(self) -> bool:
        """True when the interval holds zero."""
        return self.low <= 0 <= self.high


def step_change(new: Subject, base: Subject) -> Change | None:
    """Relative change of the step time with an interval, from steps or from predicted ranges."""
    if new.record and base.record and new.record.step_times_s and base.record.step_times_s:
        return bootstrap_change(new.record.step_times_s, base.record.step_times_s)
    if new.price and base.price:
        a, b = new.price.step_time_s, base.price.step_time_s
        if b.low > 0:
            return Change(
                value=a.value / b.value - 1, low=a.low / b.high - 1, high=a.high / b.low - 1
            )
    return None


def bootstrap_change(new: tuple[float, ...], base: tuple[float, ...]) -> Change:
    """Ratio of medians minus 1 with its 95 % percentile bootstrap interval (Efron 1979).

    Seeded: the page is the same every time.
    """
    draw = random.Random(0)
    ratios = [
        median(draw.choices(new, k=len(new))) / median(draw.choices(base, k=len(base))) - 1
        for _ in range(RESAMPLES)
    ]
    value = median(new) / median(base) - 1
    tail = (1 - COVERAGE) / 2
    low, high = quantile(ratios, tail), quantile(ratios, 1 - tail)
    return Change(value=value, low=min(low, value), high=max(high, value))


def compare_page(new: Subject, base: Subject) -> Page:
    """``new`` against ``base``: what differs in the set-up, and in the result."""
    change = step_change(new, base)
    figures = figures_table(new, base)
    sections = [
        _setup(new, base),
        _results(new, base, figures),
        _losses(new, base),
        appendix_section(
            None,
            {
                "new": new.record.provenance if new.record else {},
                "baseline": base.record.provenance if base.record else {},
            },
        ),
    ]
    return Page(
        kind="comparison",
        title=f"{_short(change)} · {clean(new.plan.task.name, 60)} · comparison · autopar",
        name=f"compare-{new.plan.task.name}-{new.plan.name}",
        verdict=_verdict(new, base, change),
        tone=_tone(change),
        subject=(clean(new.plan.task.name), f"new {new.plan.name}", f"baseline {base.plan.name}"),
        facts=_facts(new, base, change),
        warnings=_warnings(new, base),
        sections=tuple(section for section in sections if section),
        primary=figures,
        downloads=(
            Download(name="new.json", label="New", data=_document(new)),
            Download(name="baseline.json", label="Baseline", data=_document(base)),
        ),
    )


def _document(subject: Subject) -> dict[str, object]:
    source = subject.record or subject.search or subject.plan
    return source.to_dict()


def _short(change: Change | None) -> str:
    if change is None:
        return "not comparable"
    return f"{signed_percent(change.value)} step time"


def _tone(change: Change | None) -> Tone:
    if change is None or change.in_noise:
        return "plain"
    return "bad" if change.value > 0 else "good"


def _verdict(new: Subject, base: Subject, change: Change | None) -> str:
    if change is None:
        return "The two documents have no step time in common to compare."
    kind, interval = ("measured", "95 % interval") if new.record else ("predicted", "ranges give")
    span = f"{interval} {signed_percent(change.low)} to {signed_percent(change.high)}"
    value = signed_percent(change.value)
    if change.in_noise:
        return f"No clear change of the {kind} step time: {value}, {span}."
    word = "Slower" if change.value > 0 else "Faster"
    times = f"{format_seconds(_step(new) or 0.0)} after {format_seconds(_step(base) or 0.0)}"
    return f"{word}: {times} {kind}, {value} ({span})."


def _step(subject: Subject) -> float | None:
    if subject.record:
        return subject.measured_step_s
    return subject.price.step_time_s.value if subject.price else None


def _peak(subject: Subject) -> float | None:
    if subject.record:
        return subject.measured_peak_bytes
    return subject.price.peak_memory_bytes.value if subject.price else None


def _facts(new: Subject, base: Subject, change: Change | None) -> tuple[Fact, ...]:
    found = []
    for label, subject in (("New step", new), ("Baseline step", base)):
        step = _step(subject)
        if step is not None:
            steps = f"{len(subject.record.step_times_s)} steps" if subject.record else "predicted"
            found.append(
                Fact(label=label, value=format_seconds(step), note=f"{subject.plan.name}, {steps}")
            )
    if change:
        found.append(
            Fact(
                label="Change",
                value=signed_percent(change.value),
                note="inside the noise" if change.in_noise else "outside the noise",
                tone=_tone(change),
            )
        )
    peaks = _peak(new), _peak(base)
    if peaks[0] and peaks[1]:
        found.append(
            Fact(
                label="Peak memory",
                value=format_bytes(peaks[0]),
                note=f"{signed_percent(peaks[0] / peaks[1] - 1)} from {format_bytes(peaks[1])}",
            )
        )
    return tuple(found)


def figures_table(new: Subject, base: Subject) -> Table:
    """Headline figures of both, with their change."""
    named: list[tuple[str, Kind, float | None, float | None]] = [
        ("step_time_s", "seconds", _step(new), _step(base)),
        ("peak_memory_bytes", "bytes", _peak(new), _peak(base)),
        ("samples_per_s", "number", _rate(new), _rate(base)),
        ("step_time_rel_error", "signed_ratio", new.step_error, base.step_error),
        ("last_loss", "number", _last_loss(new), _last_loss(base)),
    ]
    known = [row for row in named if row[2] is not None or row[3] is not None]
    rows: list[tuple[Value, ...]] = [
        (name, a, b, a / b - 1 if a is not None and b and kind != "signed_ratio" else None)
        for name, kind, a, b in known
    ]
    return Table(
        id="figures-data",
        caption="Headline figures",
        columns=(
            Column("figure", "figure"),
            Column("new", "new", "number"),
            Column("baseline", "baseline", "number"),
            Column("change", "change", "signed_ratio"),
        ),
        rows=tuple(rows),
        row_kinds=tuple(kind for _, kind, _, _ in known),
    )


def _rate(subject: Subject) -> float | None:
    step = _step(subject)
    return subject.plan.global_batch / step if step else None


def _last_loss(subject: Subject) -> float | None:
    return subject.record.losses[-1] if subject.record and subject.record.losses else None


def _setup(new: Subject, base: Subject) -> Section:
    differing = setup_differences(new, base)
    lead = f"{len(differing)} settings differ." if differing else "Plans and hosts are the same."
    table = Table(
        id="setup-data",
        caption="What differs before anything ran",
        columns=(
            Column("setting", "setting"),
            Column("new", "new"),
            Column("baseline", "baseline"),
        ),
        rows=tuple(differing),
    )
    return Section(id="setup", title="Set-up", lead=lead, parts=(table,) if differing else ())


def setup_differences(new: Subject, base: Subject) -> list[tuple[str, str, str]]:
    """Settings, stage cuts and environment entries that are not equal."""
    a, b = settings(new.plan) | _cuts(new.plan), settings(base.plan) | _cuts(base.plan)
    found = [(key, a[key], b[key]) for key in a if a[key] != b[key]]
    if new.record and base.record:
        one, two = new.record.provenance, base.record.provenance
        found += [
            (key, clean(one.get(key), 200), clean(two.get(key), 200))
            for key in ENVIRONMENT_KEYS
            if one.get(key) != two.get(key)
        ]
    return found


def _cuts(plan: Plan) -> dict[str, str]:
    return {
        "stage borders (ops)": ", ".join(str(stage.stop_op) for stage in plan.stages),
        "graph": plan.task.fingerprint,
    }


def _results(new: Subject, base: Subject, figures: Table) -> Section:
    parts: list[Chart | Table] = [figures]
    first = base.record.breakdown if base.record else base.price.breakdown if base.price else None
    second = new.record.breakdown if new.record else new.price.breakdown if new.price else None
    if first and second:
        bars = (Bar(label="baseline", breakdown=first), Bar(label="new", breakdown=second))
        table = difference_table(first, second, "difference-data")
        part, _, _, delta = table.rows[0] if table.rows else ("nothing", 0, 0, 0)
        sign = "longer" if float(delta or 0) > 0 else "shorter"
        parts += [
            Chart(
                id="difference",
                title=f"Largest change: {part}, {format_seconds(abs(float(delta or 0)))} {sign}",
                how_to_read="Start at the baseline's step, add the change of each part, end at "
                "the new step. Orange: longer, blue: shorter. The axis may start above zero.",
                table=table,
                figure=difference_figure(table, "baseline", "new"),
            ),
            Chart(
                id="breakdown",
                title="Both steps by part",
                how_to_read="Each bar is one step of the rank that ends last.",
                table=breakdown_table(bars, "breakdown-data"),
                figure=breakdown_figure(bars),
            ),
        ]
    return Section(id="results", title="Results", lead="", parts=tuple(parts))


def _losses(new: Subject, base: Subject) -> Section | None:
    if not (new.record and base.record and new.record.losses and base.record.losses):
        return None
    series = (("new", new.record.losses), ("baseline", base.record.losses))
    shared = min(len(values) for _, values in series)
    worst = max(abs(series[0][1][i] - series[1][1][i]) for i in range(shared))
    chart = Chart(
        id="losses",
        title=f"Losses differ by at most {worst:.3g} over the {shared} steps both have",
        how_to_read="Mean loss over the global batch at each step, warm-up included.",
        table=losses_table(series),
        figure=losses_figure(series),
    )
    return Section(id="training", title="Training", lead="", parts=(chart,))


def _warnings(new: Subject, base: Subject) -> tuple[str, ...]:
    found = []
    if new.plan.task.fingerprint != base.plan.task.fingerprint:
        found.append("the two trained different graphs: step times are not comparable")
    if new.plan.global_batch != base.plan.global_batch:
        found.append(
            f"global batches differ ({new.plan.global_batch} and {base.plan.global_batch}): "
            "compare samples per second, not step times"
        )
    if new.plan.world_size != base.plan.world_size:
        found.append(f"rank counts differ ({new.plan.world_size} and {base.plan.world_size})")
    if new.record and base.record:
        one, two = new.record.provenance, base.record.provenance
        if one.get("host") != two.get("host"):
            found.append("the runs were made on different hosts")
        if one.get("packages") != two.get("packages"):
            found.append("the runs used different package versions")
    return tuple(found)
