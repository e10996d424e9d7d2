"""What a page is before it becomes HTML: facts, charts, tables and prose in sections."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from autopar.reporting.table import Table

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from markupsafe import Markup

Tone = Literal["good", "warn", "bad", "plain"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One number of the header."""

    label: str
    value: str
    note: str = ""
    tone: Tone = "plain"


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A picture with the words and the table that make it readable without it.

    Attributes:
        id: Anchor.
        title: The finding, as a sentence.
        how_to_read: What the marks mean.
        table: The same data as numbers.
        figure: Plotly figure, or
        svg: a drawing of our own.
        note: Something the reader must know (aggregation, missing parts).
    """

    id: str
    title: str
    how_to_read: str
    table: Table
    figure: go.Figure | None = None
    svg: Markup | None = None
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prose:
    """Paragraphs.

    Attributes:
        paragraphs: The texts.
        opened: Each paragraph opens with what it is about, which is set in bold.
    """

    paragraphs: tuple[str, ...]
    opened: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A heading, one sentence, and what belongs under it."""

    id: str
    title: str
    lead: str = ""
    parts: tuple[Chart | Table | Prose, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Download:
    """A document that travels inside the page."""

    name: str
    label: str
    data: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Everything a reader sees.

    Attributes:
        kind: ``run``, ``plan``, ``profile``, ``bench`` or ``comparison``.
        title: Browser title and file name stem.
        name: Short name of the subject, for the file name.
        verdict: The answer, one sentence.
        tone: Whether the answer is good news.
        subject: What it is about: task, plan, cluster.
        facts: The numbers behind the verdict.
        warnings: What was assumed, skipped or failed.
        sections: The rest.
        primary: The table that CSV output holds.
        downloads: Source documents.
    """

    kind: str
    title: str
    name: str
    verdict: str
    tone: Tone
    subject: tuple[str, ...]
    facts: tuple[Fact, ...]
    warnings: tuple[str, ...]
    sections: tuple[Section, ...]
    primary: Table
    downloads: tuple[Download, ...] = ()

    def tables(self) -> list[Table]:
        """All tables in reading order."""
        found = []
        for section in self.sections:
            for part in section.parts:
                if isinstance(part, Chart):
                    found.append(part.table)
                elif isinstance(part, Table):
                    found.append(part)
        return found
