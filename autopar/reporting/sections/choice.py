"""Why this plan, and how the search went."""

from __future__ import annotations

from autopar.core.units import format_seconds
from autopar.reporting.figures.breakdown import Bar, breakdown_figure
from autopar.reporting.figures.pareto import (
    Candidate,
    candidates_table,
    on_front,
    pareto_figure,
)
from autopar.reporting.figures.search import (
    history_figure,
    history_table,
    outcomes_figure,
    outcomes_table,
)
from autopar.reporting.model import Chart, Prose, Section
from autopar.reporting.text import clean, join_words, percent, plural
from autopar.results import Certificate, RankedPlan, Rejection, SearchResult

MAX_BARS = 10


def candidates(search: SearchResult) -> tuple[Candidate, ...]:
    """The chosen plan, runners-up and baselines that could be priced."""
    best = search.best.plan.hash
    found = [Candidate(role="chosen", label=search.best.name, price=search.best.price)]
    found += [
        Candidate(role="runner-up", label=item.name, price=item.price)
        for item in search.top
        if item.plan.hash != best
    ]
    found += [
        Candidate(role="baseline", label=f"{clean(name)}: {item.name}", price=item.price)
        for name, item in search.baselines.items()
        if isinstance(item, RankedPlan)
    ]
    return tuple(found)


def rejected_baselines(search: SearchResult) -> tuple[tuple[str, str], ...]:
    """Baselines that are not possible, with the reason."""
    return tuple(
        (clean(name), clean(item.detail, 300))
        for name, item in search.baselines.items()
        if isinstance(item, Rejection)
    )


def why_section(search: SearchResult) -> Section:
    """The explanation, and the chosen plan beside runners-up and baselines."""
    found = candidates(search)
    rejected = rejected_baselines(search)
    shown = _shown(found)
    bars = tuple(
        Bar(
            label=("★ " if c.role == "chosen" else "") + c.label,
            breakdown=c.price.breakdown,
            low_s=c.price.step_time_s.low,
            high_s=c.price.step_time_s.high,
        )
        for c in shown
    )
    charts = (
        Chart(
            id="candidates",
            title=_finding(found),
            how_to_read="One bar per plan: the chosen one first (★), then runners-up, then plain "
            "baselines. Each is cut into the parts of its predicted step; the line spans the "
            "range of the prediction. Where ranges overlap, the order is too close to call.",
            table=candidates_table(found, rejected),
            figure=breakdown_figure(bars),
            note=""
            if len(shown) == len(found)
            else f"{len(found)} plans are in the table, {len(shown)} are drawn.",
        ),
    )
    prose = (Prose(paragraphs=search.explanation, opened=True),) if search.explanation else ()
    return Section(
        id="why",
        title="Why this plan",
        lead=f"{search.best.name} is best for {clean(search.objective)} in the search space.",
        parts=(*prose, *charts),
    )


def _shown(found: tuple[Candidate, ...]) -> list[Candidate]:
    """The chosen plan, all baselines, and as many runners-up as fit."""
    baselines = [c for c in found if c.role == "baseline"][: MAX_BARS // 2]
    others = [c for c in found if c.role != "baseline"]
    return others[: max(MAX_BARS - len(baselines), 2)] + baselines


def _finding(found: tuple[Candidate, ...]) -> str:
    chosen = found[0].price.step_time_s
    others = [c for c in found[1:] if c.role == "runner-up"]
    baselines = [c for c in found if c.role == "baseline"]
    words = []
    if baselines:
        best = min(baselines, key=lambda c: c.price.step_time_s.value)
        ratio = best.price.step_time_s.value / chosen.value
        if ratio > 1.005:
            words.append(
                f"{ratio:.2f}\N{MULTIPLICATION SIGN} as fast as the best baseline ({best.label})"
            )
        else:
            words.append(f"The best baseline ({best.label}) is as fast")
    if others:
        gap = others[0].price.step_time_s.value / chosen.value - 1
        close = others[0].price.step_time_s.low <= chosen.high
        tail = "inside the range of the prediction" if close else "clear of the range"
        words.append(f"runner-up {percent(max(gap, 0.0))} slower, {tail}")
    return "; ".join(words) or "No other plan to compare with"


def search_section(search: SearchResult) -> Section:
    """Certificate in words, outcomes, Pareto set and history."""
    found = candidates(search)
    front = on_front(found)
    outcomes = outcomes_table(search.certificate)
    charts = [
        Chart(
            id="outcomes",
            title=_outcome_title(search.certificate),
            how_to_read="Every point of the search space ends in exactly one of these rows.",
            table=outcomes,
            figure=outcomes_figure(outcomes),
        )
    ]
    if len(found) > 1:
        charts.append(
            Chart(
                id="pareto",
                title=f"{plural(len(front), 'plan')} of {len(found)} shown trade time for memory "
                "without being beaten in both"
                if len(front) > 1
                else "The chosen plan is best in both time and memory"
                if front[0].role == "chosen"
                else f"{front[0].label} is best in both time and memory",
                how_to_read="Left is faster, down is smaller. Plans on the dotted line are not "
                "beaten in both. Horizontal lines are ranges. ★ is the chosen plan, squares are "
                "baselines.",
                table=candidates_table(found, ()),
                figure=pareto_figure(found, search.best.price.capacity_bytes),
            )
        )
    if len(search.history) > 1:
        charts.append(_history(search))
    return Section(
        id="search",
        title="Search",
        lead=certificate_words(search.certificate, search.search_time_s),
        parts=tuple(charts),
    )


def certificate_words(certificate: Certificate, seconds: float) -> str:
    """The optimality certificate as a sentence or two."""
    rejected = sum(certificate.rejected.values())
    steps = [f"{certificate.priced:,} were priced in full"]
    if certificate.bounded:
        steps.insert(0, f"{certificate.bounded:,} cannot beat the best by a lower bound")
    if rejected:
        steps.insert(0, f"{rejected:,} break a constraint")
    words = (
        f"The search space has {plural(certificate.space, 'point')}: {join_words(steps)}, "
        f"in {format_seconds(seconds)}."
    )
    if certificate.gap == 0:
        return words + " Gap 0: nothing in the space is predicted to be faster."
    return words + (
        f" Gap {percent(certificate.gap)}: a plan up to that much faster may have been missed."
    )


def _outcome_title(certificate: Certificate) -> str:
    if certificate.space <= 0:
        return "The search space is empty"
    share = certificate.priced / certificate.space
    return (
        f"Pricing {percent(share)} of the space was enough"
        if certificate.gap == 0
        else (f"{percent(share)} of the space was priced")
    )


def _history(search: SearchResult) -> Chart:
    best = min(row[2] for row in search.history)
    first = next(i for i, row in enumerate(search.history, start=1) if row[2] <= best)
    return Chart(
        id="history",
        title=f"The best plan was found as number {first} of {len(search.history)} priced",
        how_to_read="Each point is a plan that was priced, in the order of the search; the line "
        "is the best so far. Points come cheapest lower bound first.",
        table=history_table(search.history),
        figure=history_figure(search.history),
    )
