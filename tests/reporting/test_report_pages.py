from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import report_samples as samples

from autopar.reporting import render
from autopar.reporting.model import Chart
from autopar.reporting.text import display, signed_percent

PAGES = (
    "run",
    "run alone",
    "plan",
    "plan alone",
    "profile",
    "bench",
    "compare runs",
    "compare plans",
)
HTML = ("run", "plan", "profile", "bench", "comparison")


class Outline(HTMLParser):
    """Ids, headings, links, landmarks and external references of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.levels: list[int] = []
        self.targets: list[str] = []
        self.tags: list[str] = []
        self.outside: list[str] = []
        self.unlabelled: list[str] = []

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.tags.append(tag)
        if "id" in found:
            self.ids.append(found["id"])
        if re.fullmatch("h[1-6]", tag):
            self.levels.append(int(tag[1]))
        if tag == "a" and (found.get("href") or "").startswith("#"):
            self.targets.append(found["href"][1:])
        for key in ("src", "href"):
            value = found.get(key) or ""
            if value and not value.startswith(("#", "data:")):
                self.outside.append(f"{tag} {key}={value}")
        if found.get("role") == "img" and not found.get("aria-label"):
            self.unlabelled.append(tag)


def outline(text: str) -> Outline:
    parser = Outline()
    parser.feed(text)
    return parser


@pytest.mark.parametrize("name", PAGES)
def test_every_chart_has_a_finding_a_guide_and_a_table(all_pages, name):
    charts = [p for s in all_pages[name].sections for p in s.parts if isinstance(p, Chart)]
    assert charts or name == "plan alone"
    for chart in charts:
        assert len(chart.title) > 8
        assert len(chart.how_to_read) > 30
        assert chart.table.rows
        assert (chart.figure is None) != (chart.svg is None)
        if chart.figure is not None:
            assert chart.figure.layout.xaxis.title.text


@pytest.mark.parametrize("name", HTML)
def test_structure_is_accessible_and_nothing_is_loaded(all_html, name):
    found = outline(all_html[name])
    assert found.outside == []
    assert len(found.ids) == len(set(found.ids))
    assert set(found.targets) <= set(found.ids)
    assert found.levels.count(1) == 1
    assert all(b - a <= 1 for a, b in zip(found.levels, found.levels[1:], strict=False))
    assert {"main", "nav", "header", "footer"} <= set(found.tags)
    assert found.unlabelled == []
    assert 'lang="en"' in all_html[name]


@pytest.mark.parametrize("name", HTML)
def test_size_policy_and_reproducibility(all_html, name):
    text = all_html[name]
    assert len(text.encode()) < 8_000_000
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy
    rules = policy[1].replace("&#39;", "'")
    assert "default-src 'none'" in rules
    assert "script-src 'sha256-" in rules
    assert "unsafe-inline" not in rules.split("script-src")[1].split(";")[0]
    assert "unsafe-eval" not in rules


def test_the_same_documents_give_the_same_bytes():
    assert render(samples.run_record()) == render(samples.run_record())


def test_the_verdict_of_a_run_has_the_right_numbers():
    item = samples.ranked(dp=2, pp=2)
    record = samples.run_record(item)
    step = record.step_time_quantiles_s["median"]
    page = json.loads(render(record, format="json"))
    error = signed_percent(item.price.step_time_s.value / step - 1)
    assert display("seconds", step) in page["verdict"]
    assert display("seconds", item.price.step_time_s.value) in page["verdict"]
    assert error in page["verdict"]
    assert "fits: " in page["verdict"]
    assert "equal to one process" in page["verdict"]


def test_bad_news_is_said_first():
    record = samples.run_record(verify=False)
    over = replace(record, peak_memory_bytes=(1e12,) * 4)
    page = json.loads(render(over, format="json"))
    assert "NOT EQUAL to one process" in page["verdict"]
    assert "DOES NOT FIT" in page["verdict"]
    assert page["tone"] == "bad"


def test_a_run_without_prediction_says_so():
    record = samples.run_record()
    bare = replace(record, plan=record.plan.with_predicted({}))
    page = json.loads(render(bare, format="json"))
    assert "nothing predicted" in page["verdict"]
    assert "gantt" not in page["tables"]
    assert render(bare).startswith("<!doctype html>") or "<!doctype html>" in render(bare)[:20]


def test_another_plan_beside_a_run_is_a_warning():
    page = json.loads(
        render(
            samples.run_record(samples.ranked(dp=1, pp=4)),
            search=samples.search_result(),
            format="json",
        )
    )
    assert any("the search result beside this run chose" in text for text in page["warnings"])


def test_warnings_and_assumptions_reach_the_page(all_html):
    price = samples.ranked(dp=2, pp=2).price
    assert price.assumptions
    from markupsafe import escape

    for text in (*samples.run_record().warnings, *price.assumptions):
        assert str(escape(text)) in all_html["run"]


def test_the_certificate_in_words():
    page = render(samples.search_result(), format="md")
    assert "1,416 points" in page
    assert "903 break a constraint" in page
    assert "nothing in the space is predicted to be faster" in page
    certificate = replace(samples.search_result().certificate, gap=0.125)
    open_search = replace(samples.search_result(), certificate=certificate)
    assert "Gap 12 %" in render(open_search, format="md")


def test_comparison_names_what_differs():
    base = samples.run_record()
    moved = replace(base, provenance={**base.provenance, "host": "node-b"})
    page = json.loads(render(moved, other=base, format="json"))
    assert "No clear change" in page["verdict"]
    assert page["tables"]["setup-data"]["rows"] == [
        {"setting": "host", "new": "node-b", "baseline": "node-a"}
    ]
    assert "the runs were made on different hosts" in page["warnings"]
    slower = samples.run_record(factor=1.4)
    assert json.loads(render(slower, other=base, format="json"))["verdict"].startswith("Slower")


def test_different_batches_are_not_compared_by_step_time():
    page = json.loads(
        render(
            samples.run_record(samples.ranked(microbatches=4)),
            other=samples.run_record(),
            format="json",
        )
    )
    assert any("global batches differ" in text for text in page["warnings"])


@pytest.mark.parametrize("name", PAGES)
def test_csv_has_units_in_keys_and_raw_values(all_pages, name):
    from autopar.reporting.formats import render_csv

    rows = list(csv.reader(io.StringIO(render_csv(all_pages[name]))))
    assert len(rows) == len(all_pages[name].primary.rows) + 1
    assert len({len(row) for row in rows}) == 1


def test_csv_cells_cannot_be_formulas():
    search = samples.search_result()
    from autopar.results import Rejection

    evil = Rejection(name="x", reason="memory", detail="=HYPERLINK(1)")
    text = render(replace(search, baselines={"@cmd": evil}), format="csv")
    cells = [cell for row in csv.reader(io.StringIO(text)) for cell in row]
    assert "'@cmd" in cells
    assert "'=HYPERLINK(1)" in cells


@pytest.mark.parametrize("name", PAGES)
def test_json_and_markdown_hold_every_table(all_pages, name):
    from autopar.reporting.formats import render_json, render_markdown

    page = all_pages[name]
    data = json.loads(render_json(page))
    assert data["schema"] == "autopar.report"
    assert set(data["tables"]) == {table.id for table in page.tables()}
    markdown = render_markdown(page)
    assert markdown.startswith("# ")
    for section in page.sections:
        assert f"## {section.title}" in markdown


def test_importing_the_report_layer_needs_no_torch_and_no_plotly():
    import subprocess
    import sys

    code = (
        "import sys, autopar.reporting; "
        "print([m for m in ('torch', 'plotly', 'jinja2', 'pandas') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
