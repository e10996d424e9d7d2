"""From documents to text and files: the doors of the report layer."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from autopar.cluster import Cluster
from autopar.core.errors import InputError
from autopar.core.io import content_hash, write_text_atomic
from autopar.graph import GraphProfile
from autopar.plans import Plan
from autopar.reporting.load import Companions, Document, companions, load_any
from autopar.results import BenchResult, RunRecord, SearchResult

if TYPE_CHECKING:
    from autopar.reporting.model import Page
    from autopar.reporting.sections import Subject

FORMATS = ("html", "md", "json", "csv")


def render(
    document: Document,
    *,
    profile: GraphProfile | None = None,
    search: SearchResult | None = None,
    other: Document | None = None,
    cluster: Cluster | None = None,
    format: str = "html",
) -> str:
    """A page as text.

    Args:
        document: What the page is about.
        profile: The model, for a run or plan page.
        search: Where the plan came from, for a run page.
        other: Baseline of a comparison; a document of another kind is taken as context instead
            (a profile or search result beside a run or plan).
        cluster: The machines, for constants and the roofline.
        format: ``html``, ``md``, ``json`` or ``csv``.

    Raises:
        InputError: The format is unknown or the two documents do not go together.
    """
    if format not in FORMATS:
        raise InputError(f"unknown report format '{format}'", hint="use " + ", ".join(FORMATS))
    beside = Companions(profile=profile, search=search, cluster=cluster)
    return _text(_page(document, other, beside), format)


def write_report(
    path: Path | str,
    other: Path | str | None = None,
    out: Path | str | None = None,
    format: str = "html",
) -> Path:
    """Read, render and write a report; returns its path.

    Args:
        path: A document or run folder; ``profile.json``, ``search.json`` and ``cluster.json`` in
            a run folder make its page more complete.
        other: Baseline of a comparison, or a document that goes beside the first.
        out: File to write; ``reports/<name>-<hash>.<format>`` in the current directory by
            default.
        format: ``html``, ``md``, ``json`` or ``csv``.

    Raises:
        InputError: A document cannot be read, the format is unknown, or the file cannot be
            written.
    """
    if format not in FORMATS:
        raise InputError(f"unknown report format '{format}'", hint="use " + ", ".join(FORMATS))
    document = load_any(path)
    second = load_any(other) if other is not None else None
    page = _page(document, second, companions(path))
    target = Path(out) if out is not None else _default_path(page, document, second, format)
    write_text_atomic(target, _text(page, format))
    return target


def _default_path(page: Page, document: Document, other: Document | None, format: str) -> Path:
    slug = re.sub(r"[^A-Za-z0-9.]+", "-", page.name).strip("-.")[:80] or page.kind
    mark = content_hash([document.to_dict(), other.to_dict() if other else None])[:8]
    return Path("reports") / f"{slug}-{mark}.{format}"


def _text(page: Page, format: str) -> str:
    if format == "html":
        from autopar.reporting.html import render_html

        return render_html(page)
    from autopar.reporting import formats

    writers = {"md": formats.render_markdown, "json": formats.render_json}
    return writers.get(format, formats.render_csv)(page)


def _page(document: Document, other: Document | None, beside: Companions) -> Page:
    from autopar.reporting.pages.bench import bench_page
    from autopar.reporting.pages.compare import compare_page
    from autopar.reporting.pages.profile import profile_page
    from autopar.reporting.pages.run import plan_page, run_page

    if other is not None:
        context = _as_context(document, other, beside)
        if context is None:
            return compare_page(_subject(document, beside), _subject(other, Companions()))
        beside = context
    if isinstance(document, GraphProfile):
        return profile_page(document, beside.cluster)
    if isinstance(document, BenchResult):
        return bench_page(document)
    subject = _subject(document, beside)
    if isinstance(document, RunRecord):
        return run_page(subject, document)
    provenance = subject.search.provenance if subject.search else {}
    return plan_page(subject, provenance)


def _as_context(document: Document, other: Document, beside: Companions) -> Companions | None:
    """Companions with ``other`` among them; ``None`` when the two are to be compared.

    Raises:
        InputError: The two documents do not go together.
    """
    subjects = RunRecord | SearchResult | Plan
    if isinstance(document, subjects) and isinstance(other, GraphProfile):
        return Companions(profile=other, search=beside.search, cluster=beside.cluster)
    if isinstance(document, RunRecord) and isinstance(other, SearchResult):
        return Companions(profile=beside.profile, search=other, cluster=beside.cluster)
    if isinstance(document, subjects) and type(document) is type(other):
        return None
    raise InputError(
        f"a {_kind(document)} and a {_kind(other)} cannot be compared",
        hint="compare two runs, two search results or two plans; "
        "or put a profile or search result second, beside a run or plan",
    )


def _kind(document: Document) -> str:
    names: dict[type, str] = {
        RunRecord: "run",
        SearchResult: "search result",
        GraphProfile: "profile",
        BenchResult: "bench result",
        Plan: "plan",
    }
    return names[type(document)]


def _subject(document: Document, beside: Companions) -> Subject:
    from autopar.reporting.sections.subject import Subject, price_of

    if isinstance(document, SearchResult):
        best = document.best
        return Subject(
            plan=best.plan.with_predicted(best.price.to_dict()),
            price=best.price,
            search=document,
            profile=beside.profile,
            cluster=beside.cluster,
        )
    if isinstance(document, RunRecord):
        return Subject(
            plan=document.plan,
            price=price_of(document.plan),
            record=document,
            search=beside.search,
            profile=beside.profile,
            cluster=beside.cluster,
        )
    if isinstance(document, Plan):
        return Subject(
            plan=document,
            price=price_of(document),
            profile=beside.profile,
            cluster=beside.cluster,
        )
    raise InputError(f"a {_kind(document)} is not about one plan")
