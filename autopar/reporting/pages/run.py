"""Pages about one plan: a run, a search result, or a plan alone."""

from __future__ import annotations

from typing import Any

from autopar.core.units import format_seconds
from autopar.reporting.figures.breakdown import Bar, breakdown_table
from autopar.reporting.figures.pareto import candidates_table
from autopar.reporting.model import Download, Fact, Page, Section
from autopar.reporting.pages import facts
from autopar.reporting.sections import Subject
from autopar.reporting.sections.appendix import appendix_section
from autopar.reporting.sections.choice import (
    candidates,
    rejected_baselines,
    search_section,
    why_section,
)
from autopar.reporting.sections.communication import communication_section
from autopar.reporting.sections.details import plan_section, settings_table
from autopar.reporting.sections.memory import memory_section
from autopar.reporting.sections.model import model_section
from autopar.reporting.sections.step import step_section, timeline_section
from autopar.reporting.sections.training import training_section
from autopar.reporting.text import clean, plural, signed_percent
from autopar.results import RunRecord, SearchResult


def run_page(subject: Subject, record: RunRecord) -> Page:
    """The page of a measured run."""
    verdict = run_verdict(subject, record)
    header = [
        *facts.step_facts(subject),
        *facts.memory_facts(subject),
        *facts.rate_facts(subject),
        facts.verify_fact(record.verify),
    ]
    optional = (
        step_section(subject),
        timeline_section(subject),
        memory_section(subject),
        communication_section(subject),
        training_section(subject),
        model_section(subject),
        *_search_sections(subject.search),
        plan_section(subject),
        appendix_section(subject.price, _environment(subject), subject.cluster),
    )
    step = subject.measured_step_s
    speed = f"{format_seconds(step)}/step" if step else "no measured step"
    bars = [Bar(label="measured", breakdown=record.breakdown)]
    if subject.price:
        bars.insert(0, Bar(label="predicted", breakdown=subject.price.breakdown))
    return Page(
        kind="run",
        title=_title(speed, subject),
        name=f"run-{subject.plan.task.name}-{subject.plan.name}",
        verdict=verdict,
        tone=facts.worst([fact.tone for fact in header]),
        subject=facts.subject_words(subject, record.provenance),
        facts=tuple(header),
        warnings=_warnings(subject),
        sections=tuple(section for section in optional if section),
        primary=breakdown_table(tuple(bars), "breakdown-data"),
        downloads=_downloads(subject),
    )


def run_verdict(subject: Subject, record: RunRecord) -> str:
    """``"412 ms/step measured, 398 ms predicted (-3.4 %); fits: 1.2 of 11 GiB"``."""
    parts = []
    step = subject.measured_step_s
    if step is None:
        parts.append("No step was measured")
    elif subject.price and subject.step_error is not None:
        parts.append(
            f"{format_seconds(step)}/step measured, "
            f"{format_seconds(subject.price.step_time_s.value)} predicted "
            f"({signed_percent(subject.step_error)})"
        )
    else:
        parts.append(f"{format_seconds(step)}/step measured, nothing predicted")
    fits = facts.fits_words(subject)
    if fits:
        parts.append(fits)
    if record.verify:
        parts.append(
            "equal to one process" if record.verify.passed else "NOT EQUAL to one process"
        )
    return "; ".join(parts) + "."


def plan_page(subject: Subject, provenance: dict[str, Any]) -> Page:
    """The page of a search result, or of a plan alone."""
    plan, price = subject.plan, subject.price
    header = [
        *facts.step_facts(subject),
        *facts.memory_facts(subject),
        *facts.rate_facts(subject),
    ]
    if subject.search:
        header.append(_certificate_fact(subject.search))
    why = [why_section(subject.search)] if subject.search else []
    optional = (
        *why,
        step_section(subject),
        timeline_section(subject),
        memory_section(subject),
        communication_section(subject),
        *([search_section(subject.search)] if subject.search else []),
        model_section(subject),
        plan_section(subject),
        appendix_section(price, _environment(subject), subject.cluster),
    )
    if price:
        speed = f"{format_seconds(price.step_time_s.value)}/step"
        verdict = f"{plan.name}: {speed} predicted; {facts.fits_words(subject)}."
    else:
        speed, verdict = plan.name, f"{plan.name}: nothing is predicted for this plan."
    primary = settings_table(plan)
    if subject.search:
        found, rejected = candidates(subject.search), rejected_baselines(subject.search)
        primary = candidates_table(found, rejected)
    return Page(
        kind="plan",
        title=_title(speed, subject),
        name=f"plan-{plan.task.name}-{plan.name}",
        verdict=verdict,
        tone=facts.worst([fact.tone for fact in header]),
        subject=facts.subject_words(subject, provenance),
        facts=tuple(header),
        warnings=_warnings(subject),
        sections=tuple(section for section in optional if section),
        primary=primary,
        downloads=_downloads(subject),
    )


def _certificate_fact(search: SearchResult) -> Fact:
    certificate = search.certificate
    proved = certificate.gap == 0
    return Fact(
        label="Optimality",
        value="proved" if proved else f"gap {certificate.gap:.1%}",
        note=f"{certificate.priced:,} of {certificate.space:,} points priced, "
        f"{format_seconds(search.search_time_s)}",
        tone="good" if proved else "warn",
    )


def _search_sections(search: SearchResult | None) -> list[Section]:
    return [search_section(search), why_section(search)] if search else []


def _title(speed: str, subject: Subject) -> str:
    where = clean(subject.plan.cluster, 60) or f"{subject.plan.world_size} ranks"
    return f"{speed} · {clean(subject.plan.task.name, 60)} · {where} · autopar"


def _warnings(subject: Subject) -> tuple[str, ...]:
    found = [*(subject.record.warnings if subject.record else ())]
    found += [*(subject.search.warnings if subject.search else ())]
    assumed = set(subject.price.assumptions) if subject.price else set()
    found = [text for text in found if text not in assumed]
    if assumed:
        found.append(
            f"{plural(len(assumed), 'constant')} behind the prediction assumed, not measured; "
            "the appendix lists them"
        )
    if subject.search and subject.search.best.plan.hash != subject.plan.hash:
        found.append(
            f"the search result beside this run chose {subject.search.best.name}, "
            f"the run used {subject.plan.name}"
        )
    if subject.profile and subject.profile.fingerprint != subject.plan.task.fingerprint:
        found.append("the profile beside this plan is of another graph than the plan's task")
    return tuple(dict.fromkeys(clean(text, 400) for text in found))


def _environment(subject: Subject) -> dict[str, dict[str, Any]]:
    documents = {
        "run": subject.record,
        "profile": subject.profile,
        "cluster": subject.cluster,
    }
    found = {name: doc.provenance for name, doc in documents.items() if doc is not None}
    if subject.search:
        found["searched profile"] = subject.search.profile
        found["searched cluster"] = subject.search.cluster
    return found


def _downloads(subject: Subject) -> tuple[Download, ...]:
    found = []
    if subject.record:
        found.append(
            Download(name="record.json", label="Run record", data=subject.record.to_dict())
        )
    if subject.search:
        found.append(
            Download(name="search.json", label="Search result", data=subject.search.to_dict())
        )
    found.append(Download(name="plan.json", label="Plan", data=subject.plan.to_dict()))
    return tuple(found)
