"""The same page as Markdown, JSON or CSV."""

from __future__ import annotations

import csv
import io
import json
import re

from autopar.reporting.model import Chart, Page, Prose
from autopar.reporting.table import Table
from autopar.reporting.text import split_opening, visible

SCHEMA = "autopar.report"
SCHEMA_VERSION = 1
MAX_MARKDOWN_ROWS = 200
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def render_json(page: Page) -> str:
    """Verdict, facts, warnings and every table, in SI units."""
    tables: dict[str, object] = {}
    for table in page.tables():
        tables.setdefault(table.id, table.to_dict())
    document = {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "kind": page.kind,
        "title": page.title,
        "verdict": page.verdict,
        "tone": page.tone,
        "facts": [
            {"label": f.label, "value": f.value, "note": f.note, "tone": f.tone}
            for f in page.facts
        ],
        "warnings": list(page.warnings),
        "tables": tables,
    }
    return json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def render_csv(page: Page) -> str:
    """The page's main table: one heading row with units in the keys, raw values below."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([_plain(column.key) for column in page.primary.columns])
    for row in page.primary.rows:
        writer.writerow([_plain(v) if isinstance(v, str) else "" if v is None else v for v in row])
    return out.getvalue()


def _plain(text: str) -> str:
    """Text a spreadsheet does not take for a formula."""
    return f"'{text}" if text.startswith(_FORMULA) else text


def render_markdown(page: Page) -> str:
    """Headings, facts and tables; charts appear as their tables."""
    lines = [f"# {_md(page.verdict)}", "", " · ".join(_md(word) for word in page.subject), ""]
    for fact in page.facts:
        note = f" ({_md(fact.note)})" if fact.note else ""
        lines.append(f"- **{_md(fact.label)}**: {_md(fact.value)}{note}")
    lines.append("")
    for warning in page.warnings:
        lines += [f"> **Warning:** {_md(warning)}", ""]
    seen: set[str] = set()
    for section in page.sections:
        lines += [f"## {_md(section.title)}", ""]
        if section.lead:
            lines += [_md(section.lead), ""]
        for part in section.parts:
            if isinstance(part, Prose):
                lines += [
                    line for text in part.paragraphs for line in (_paragraph(text, part), "")
                ]
                continue
            if isinstance(part, Chart):
                lines += [f"### {_md(part.title)}", ""]
            table = part.table if isinstance(part, Chart) else part
            if table.id not in seen:
                lines += _md_table(table)
            seen.add(table.id)
    return "\n".join(lines).rstrip() + "\n"


def _paragraph(text: str, part: Prose) -> str:
    opening, rest = split_opening(text) if part.opened else ("", text)
    return f"**{_md(opening)}**{_md(rest)}" if opening else _md(text)


def _md_table(table: Table) -> list[str]:
    marks = ["---:" if column.kind != "text" else "---" for column in table.columns]
    lines = [
        f"*{_md(table.caption)}*",
        "",
        "| " + " | ".join(_md(column.label) for column in table.columns) + " |",
        "| " + " | ".join(marks) + " |",
    ]
    cells = table.cells()
    lines += [
        "| " + " | ".join(_md(c.text) for c in row) + " |" for row in cells[:MAX_MARKDOWN_ROWS]
    ]
    left = len(cells) - MAX_MARKDOWN_ROWS + table.omitted
    if left > 0:
        lines.append(f"\n{left} more rows are in the JSON form.")
    return [*lines, ""]


def _md(text: str) -> str:
    """Text without Markdown or HTML meaning."""
    flat = (
        re.sub(r"\s+", " ", visible(text))
        .replace("&", "&amp;")
        .replace("<", "&lt;")
        .replace(">", "&gt;")
    )
    return re.sub(r"([\\`*_\[\]|#])", r"\\\1", flat)
