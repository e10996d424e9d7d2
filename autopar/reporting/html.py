"""A :class:`Page` as one HTML file that needs no network and runs no script but its own."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from autopar.core.version import __version__
from autopar.reporting.model import Chart, Page, Prose
from autopar.reporting.table import Table
from autopar.reporting.text import split_opening, visible

TEMPLATES = Path(__file__).parent / "templates"
MAX_DOWNLOAD_CHARACTERS = 2_000_000


def render_html(page: Page) -> str:
    """The page as text; equal pages give equal bytes."""
    from plotly.offline import get_plotlyjs

    charts = [
        part for section in page.sections for part in section.parts if isinstance(part, Chart)
    ]
    drawn = any(chart.figure is not None for chart in charts)
    scripts = {
        "theme": _source("theme.js"),
        "plotly": get_plotlyjs().replace("\r", "") if drawn else "",
        "ui": _source("ui.js"),
    }
    downloads = [
        (d, text) for d in page.downloads if len(text := _json(d.data)) <= MAX_DOWNLOAD_CHARACTERS
    ]
    template = _environment().get_template("base.html.j2")
    return template.render(
        page=page,
        version=__version__,
        marks={"good": "✓", "warn": "▲", "bad": "✕"},
        csp=_policy([text for text in scripts.values() if text]),
        style=Markup(_source("style.css")),
        scripts={name: Markup(text) for name, text in scripts.items()},
        figures={
            chart.id: _json(chart.figure.to_plotly_json()) for chart in charts if chart.figure
        },
        downloads=downloads,
        large_downloads=[d for d in page.downloads if d not in [kept for kept, _ in downloads]],
    )


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_final,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["units"] = keep_units
    environment.filters["opening"] = split_opening
    environment.tests["chart"] = lambda part: isinstance(part, Chart)
    environment.tests["table"] = lambda part: isinstance(part, Table)
    environment.tests["prose"] = lambda part: isinstance(part, Prose)
    return environment


def _final(value: Any) -> Any:
    """The last step before escaping: whatever reaches the page is visible text."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def keep_units(text: str) -> str:
    """Numbers and their units joined by no-break spaces."""
    return re.sub(r"(?<=\d) (?=[%A-Za-zµ]{1,3}\b|%)", "\N{NO-BREAK SPACE}", text)


def _source(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8").replace("\r", "")


def _json(data: Any) -> Markup:
    """JSON that is safe inside a script element: ``<``, ``>``, ``&`` and quotes are escaped."""
    return htmlsafe_json_dumps(data, allow_nan=False, separators=(",", ":"))


def _policy(scripts: list[str]) -> str:
    """Content security policy: nothing loads, and only these very scripts run."""
    hashes = " ".join(
        "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"
        for text in scripts
    )
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
