"""The page of a BenchResult."""

from __future__ import annotations

from autopar.core.units import format_seconds
from autopar.reporting.figures.accuracy import accuracy_figure, bench_table, errors_figure
from autopar.reporting.model import Chart, Download, Fact, Page, Section, Tone
from autopar.reporting.pages.facts import error_tone, worst
from autopar.reporting.sections.appendix import appendix_section
from autopar.reporting.text import clean, moment, percent, plural
from autopar.results import BenchResult

SMALL_REGRET, LARGE_REGRET = 0.02, 0.10


def bench_page(bench: BenchResult) -> Page:
    """Predicted against measured for every plan, and how good the choice was."""
    table = bench_table(bench)
    header = _facts(bench)
    charts: tuple[Chart, ...] = ()
    if bench.measured:
        charts = (_accuracy(bench), _errors(bench), _memory(bench))
    sections = [
        Section(
            id="accuracy",
            title="Accuracy",
            lead="Every plan was priced first, then run.",
            parts=charts,
        ),
        Section(id="plans", title="Plans", lead="", parts=(table,)),
        appendix_section(None, {"bench": bench.provenance}),
    ]
    failed = [row for row in bench.rows if row.failure]
    return Page(
        kind="bench",
        title=f"{_short(bench)} · {clean(bench.task, 60)} · bench · autopar",
        name=f"bench-{bench.task}",
        verdict=_verdict(bench),
        tone=worst([fact.tone for fact in header]),
        subject=_subject(bench),
        facts=tuple(header),
        warnings=(
            *(clean(text, 400) for text in bench.warnings),
            *(f"{row.name} did not finish: {clean(row.failure, 300)}" for row in failed),
        ),
        sections=tuple(section for section in sections if section.parts),
        primary=table,
        downloads=(Download(name="bench.json", label="Bench result", data=bench.to_dict()),),
    )


def _subject(bench: BenchResult) -> tuple[str, ...]:
    created = bench.provenance.get("created")
    words = [clean(bench.task), clean(bench.cluster)]
    return (*words, moment(created)) if created else tuple(words)


def _short(bench: BenchResult) -> str:
    error = bench.median_abs_rel_error
    return "nothing measured" if error is None else f"{percent(error)} median error"


def _verdict(bench: BenchResult) -> str:
    if bench.median_abs_rel_error is None:
        return "No plan finished, so nothing can be said about the predictions."
    words = (
        f"Predictions are {percent(bench.median_abs_rel_error)} off in the median over "
        f"{plural(len(bench.measured), 'plan')}"
    )
    if bench.regret is None:
        return words + "; the plan the model would choose did not finish."
    if bench.regret <= 0:
        return words + "; the plan the model would choose is the fastest measured."
    return (
        words
        + f"; the plan the model would choose is {percent(bench.regret)} slower than "
        + ("the fastest measured.")
    )


def _facts(bench: BenchResult) -> list[Fact]:
    found = []
    for label, value in (
        ("Median error", bench.median_abs_rel_error),
        ("90th percentile error", bench.p90_abs_rel_error),
    ):
        if value is not None:
            fact = Fact(
                label=label, value=percent(value), note="of step time", tone=error_tone(value)
            )
            found.append(fact)
    if bench.kendall_tau is not None:
        found.append(
            Fact(
                label="Order agreement",
                value=f"{bench.kendall_tau:.2f}",
                note="Kendall's tau, 1 = same order",
            )
        )
    if bench.regret is not None:
        tone: Tone = (
            "good"
            if bench.regret <= SMALL_REGRET
            else ("warn" if bench.regret <= LARGE_REGRET else "bad")
        )
        found.append(
            Fact(
                label="Regret",
                value=percent(bench.regret),
                note="chosen over fastest, minus 1",
                tone=tone,
            )
        )
    best = min(bench.measured, key=lambda row: row.measured_s or 0.0, default=None)
    if best and best.measured_s:
        found.append(
            Fact(label="Fastest measured", value=format_seconds(best.measured_s), note=best.name)
        )
    return found


def _accuracy(bench: BenchResult) -> Chart:
    inside = sum(error <= 0.10 for error in bench.abs_rel_errors)
    return Chart(
        id="accuracy-chart",
        title=f"{inside} of {plural(len(bench.measured), 'plan')} within 10 % of the prediction",
        how_to_read="One point per plan. On the line the prediction is exact, above it the model "
        "is pessimistic, below it optimistic; the green band is 10 % either way. The star is the "
        "plan the model would choose. Both axes are logarithmic.",
        table=bench_table(bench),
        figure=accuracy_figure(bench),
    )


def _errors(bench: BenchResult) -> Chart:
    errors = [row.rel_error for row in bench.measured if row.rel_error is not None]
    low = sum(error < 0 for error in errors)
    table = bench_table(bench)
    return Chart(
        id="errors-chart",
        title=f"{low} of {plural(len(errors), 'prediction')} too fast, "
        f"{len(errors) - low} too slow",
        how_to_read="Fastest measured plan on top. Right of zero the prediction was too slow, "
        "left of it too fast; the green band is 10 % either way.",
        table=table,
        figure=errors_figure(table, "rel_error"),
    )


def _memory(bench: BenchResult) -> Chart:
    table = bench_table(bench)
    under = sum(
        row.predicted_memory_bytes < (row.measured_memory_bytes or 0.0) for row in bench.measured
    )
    return Chart(
        id="memory-errors",
        title=f"Peak memory under-predicted for {under} of {plural(len(bench.measured), 'plan')}",
        how_to_read="As above, for the largest peak over ranks. Left of zero is the dangerous "
        "side: the plan needs more than predicted.",
        table=table,
        figure=errors_figure(table, "memory_rel_error"),
    )
