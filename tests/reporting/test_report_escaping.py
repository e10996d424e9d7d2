"""Foreign strings in names never become markup, script or spreadsheet formulas."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import report_samples as samples

from autopar.reporting import render
from autopar.results import Rejection

PAYLOADS = (
    "<script>alert(1)</script>",
    "</script><script>alert(1)</script>",
    "</title><script>alert(1)</script>",
    "</style><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<svg onload=alert(1)>",
    "<svg><script>alert(1)</script></svg>",
    "<iframe src=javascript:alert(1)>",
    "<iframe srcdoc='<script>alert(1)</script>'>",
    "<object data=javascript:alert(1)>",
    "<embed src=javascript:alert(1)>",
    "<a href=javascript:alert(1)>x</a>",
    "<a href='https://evil.example/'>click</a>",
    "<body onload=alert(1)>",
    "<details open ontoggle=alert(1)>",
    "<input autofocus onfocus=alert(1)>",
    "<video><source onerror=alert(1)>",
    "<math><mi xlink:href='javascript:alert(1)'>",
    "<base href=https://evil.example/>",
    "<meta http-equiv=refresh content='0;url=https://evil.example/'>",
    "<link rel=stylesheet href=https://evil.example/x.css>",
    "<form action=https://evil.example/><button>",
    "<style>@import 'https://evil.example/x.css'</style>",
    "<!--",
    "--><script>alert(1)</script>",
    "<![CDATA[<script>alert(1)</script>]]>",
    '"><script>alert(1)</script>',
    "'><script>alert(1)</script>",
    '" onmouseover="alert(1)',
    "' onmouseover='alert(1)",
    "` onmouseover=`alert(1)",
    '"autofocus onfocus=alert(1) x="',
    "javascript:alert(1)",
    "data:text/html,<script>alert(1)</script>",
    "{{ 7*7 }}",
    "{% for x in ().__class__.__bases__ %}",
    "{{ config }}",
    "${7*7}",
    "%{x}<b>bold</b>",
    "<b>bold</b>",
    "<lambda>",
    "a<b>c & d",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "&#60;script&#62;alert(1)",
    "\u2028alert(1)\u2029",
    "\u202egnp.exe",
    "\x1b[31mred",
    "\x00nul",
    "line\nbreak\rreturn\ttab",
    "\\u003cscript\\u003e",
    "\\x3cscript\\x3e",
    "=cmd|' /C calc'!A0",
    "+1+1",
    "@SUM(A1)",
    "-2+3",
    "|pipe|table|",
    "`code` *star* _under_ [link](javascript:alert(1))",
    "x" * 5000,
    "\N{MATHEMATICAL DOUBLE-STRUCK CAPITAL X}" * 300,
    "\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16"),
)


class Census(HTMLParser):
    """Counts of dangerous elements, handler attributes and links to elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def handle_starttag(self, tag, attrs):
        if tag in ("script", "iframe", "object", "embed", "base", "form", "link", "meta", "style",
                   "img", "video", "math", "body", "input"):  # fmt: skip
            self.found[tag] += 1
        for key, value in attrs:
            if key.startswith("on"):
                self.found["handler"] += 1
            if key in ("href", "src", "srcdoc", "action", "data") and not (value or "").startswith(
                ("#", "data:,")
            ):
                self.found["link"] += 1

    handle_startendtag = handle_starttag


def census(text: str) -> Counter[str]:
    parser = Census()
    parser.feed(text)
    parser.close()
    return parser.found


def name(index: int) -> str:
    return PAYLOADS[index % len(PAYLOADS)]


def poisoned_profile(poison):
    profile = samples.gpt_profile(layers=len(PAYLOADS), measured=True)
    return replace(
        profile,
        task=poison(0),
        target=poison(1),
        device=poison(2),
        blocks=tuple(
            replace(b, name=poison(b.index), signature=f"s{b.index}") for b in profile.blocks
        ),
        ops=tuple(
            replace(op, target=poison(op.index), module=poison(op.index + 1)) for op in profile.ops
        ),
        uncounted={poison(i): poison(i + 1) for i in range(len(PAYLOADS))},
        measurement=replace(
            profile.measurement,
            device=poison(3),
            curves={f"s{b.index}": profile.measurement.curves["layer"] for b in profile.blocks},
        ),
        provenance={poison(i): poison(i + 2) for i in range(len(PAYLOADS))},
    )


def poisoned_run(poison):
    record = samples.run_record()
    plan = record.plan
    stages = tuple(
        replace(stage, blocks=tuple(poison(i + j) for j in range(30)))
        for i, stage in enumerate(plan.stages)
    )
    predicted = json.loads(json.dumps(plan.predicted))
    predicted["assumptions"] = [poison(i) for i in range(len(PAYLOADS))]
    task = replace(plan.task, name=poison(0), target=poison(1))
    return replace(
        record,
        plan=replace(plan, task=task, stages=stages, cluster=poison(4), predicted=predicted),
        warnings=tuple(poison(i) for i in range(len(PAYLOADS))),
        provenance={"host": poison(5), "created": poison(6), "autopar": poison(7), poison(8): 1},
    )


def poisoned_search(poison):
    search = samples.search_result()
    baselines = {
        poison(i): Rejection(name=poison(i), reason=poison(i), detail=poison(i + 1))
        for i in range(len(PAYLOADS))
    }
    baselines["priced " + poison(4)] = search.top[1]
    return replace(
        search,
        objective=poison(0),
        baselines=baselines,
        explanation=tuple(poison(i) for i in range(len(PAYLOADS))),
        history=tuple((t, v, b, poison(t)) for t, v, b, _ in search.history),
        warnings=tuple(poison(i) for i in range(len(PAYLOADS))),
        certificate=replace(
            search.certificate, rejected={poison(i): i for i in range(len(PAYLOADS))}
        ),
        profile={"task": poison(9), poison(1): poison(2)},
    )


def poisoned_bench(poison):
    bench = samples.bench_result()
    failed = replace(bench.rows[-1], failure=poison(3))
    return replace(
        bench, task=poison(1), cluster=poison(2), rows=(*bench.rows[:-1], failed),
        warnings=tuple(poison(i) for i in range(len(PAYLOADS))),
    )  # fmt: skip


def documents(poison, format: str = "html") -> dict[str, str]:
    run, search = poisoned_run(poison), poisoned_search(poison)
    profile = poisoned_profile(poison)
    return {
        "profile": render(profile, format=format),
        "run": render(run, profile=profile, search=search, format=format),
        "search": render(search, format=format),
        "bench": render(poisoned_bench(poison), format=format),
        "comparison": render(run, other=samples.run_record(), format=format),
    }


@pytest.fixture(scope="module")
def poisoned() -> dict[str, str]:
    return documents(name)


@pytest.fixture(scope="module")
def harmless() -> dict[str, str]:
    return documents(lambda index: f"name {index % len(PAYLOADS)}")


KINDS = ("profile", "run", "search", "bench", "comparison")


@pytest.mark.parametrize("kind", KINDS)
def test_payloads_add_no_element_handler_or_link(poisoned, harmless, kind):
    assert len(set(PAYLOADS)) >= 50
    assert census(poisoned[kind]) == census(harmless[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_payloads_add_no_script_of_ours_to_the_policy(poisoned, harmless, kind):
    policy = re.compile(r'Content-Security-Policy" content="([^"]*)"')
    assert policy.search(poisoned[kind])[1] == policy.search(harmless[kind])[1]


@pytest.mark.parametrize("kind", KINDS)
def test_embedded_json_stays_json_and_holds_no_markup(poisoned, kind):
    blocks = re.findall(
        r'<script type="application/json" id="([^"]+)">(.*?)</script>', poisoned[kind], re.DOTALL
    )
    assert blocks
    for _, text in blocks:
        json.loads(text)
        assert "<" not in text


@pytest.mark.parametrize("kind", KINDS)
def test_plot_labels_hold_no_pseudo_html(poisoned, kind):
    """Plotly turns <a> and <b> in labels into markup; only our own <br> and <extra> may occur."""
    figures = re.findall(
        r'<script type="application/json" id="figure-[^"]+">(.*?)</script>',
        poisoned[kind],
        re.DOTALL,
    )
    for text in figures:
        for string in strings(json.loads(text)):
            left = re.sub(r"<br>|<extra></extra>", "", string)
            assert "<" not in left, string


def strings(value):
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from strings(item)


@pytest.mark.parametrize("kind", KINDS)
def test_visible_text_has_no_control_or_direction_characters(poisoned, kind):
    visible = re.sub(r"<script.*?</script>", "", poisoned[kind], flags=re.DOTALL)
    assert not re.search(r"[\x00\x1b\u202a-\u202e\u2028\u2029]", visible)


@pytest.mark.parametrize("format", ["md", "csv", "json"])
def test_other_formats_survive_the_payloads(format):
    for kind, text in documents(name, format).items():
        assert text, kind
        if format == "json":
            json.loads(text)
        if format == "md":
            assert not re.search(r"<(script|img|iframe|svg)", text), kind
            assert "\x1b" not in text
