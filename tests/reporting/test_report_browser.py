"""The pages in a real browser: no console message, no network request, every chart drawn."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

CHROMIUM = next(
    (
        path
        for name in ("chromium", "chromium-browser", "google-chrome")
        if (path := shutil.which(name))
    ),
    None,
)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-extensions", "--disable-default-apps", "--virtual-time-budget=20000",
    "--enable-logging=stderr", "--v=0",
)  # fmt: skip

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this host"),
]


@pytest.fixture(scope="module")
def pages(tmp_path_factory, all_html) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    found = {}
    for name, text in all_html.items():
        found[name] = folder / f"{name}.html"
        found[name].write_text(text, encoding="utf-8")
    return found


def browse(page: Path, tmp_path: Path, *, fragment: str = "", size: str = "1400,3000"):
    log = tmp_path / "net.json"
    done = subprocess.run(
        [
            str(CHROMIUM), *FLAGS, f"--user-data-dir={tmp_path / 'user'}", f"--log-net-log={log}",
            f"--window-size={size}", "--dump-dom", page.as_uri() + fragment,
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return done.stdout, console, log


def requested(log: Path) -> set[str]:
    """Addresses the page asked for, from the browser's network log.

    Requests of the browser itself (updates, time) have no origin as their initiator.
    """
    found = set()
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        if '"initiator"' not in line or '"url"' not in line:
            continue
        params = json.loads(line.rstrip(",]}\n") + "}" * _unclosed(line.rstrip(",]}\n")))["params"]
        if params["initiator"] != "not an origin" and not params["url"].startswith("file:"):
            found.add(params["url"])
    return found


def _unclosed(text: str) -> int:
    return text.count("{") - text.count("}")


@pytest.mark.parametrize(
    ("name", "theme"),
    [
        ("run", "dark"),
        ("plan", "light"),
        ("profile", "light"),
        ("bench", "light"),
        ("comparison", "light"),
    ],
)
def test_pages_draw_everything_without_console_or_network(pages, tmp_path, name, theme):
    dom, console, log = browse(pages[name], tmp_path, fragment=f"#theme={theme}")
    assert console == []
    assert requested(log) == set()
    assert f'data-theme="{theme}"' in dom
    assert 'data-ready="1"' in dom
    assert dom.count('data-figure="') == len(re.findall(r'data-figure="[^>]*data-done="1"', dom))
    assert dom.count('class="main-svg"') >= dom.count('data-figure="')


def test_the_check_sees_a_console_error_and_a_request(pages, tmp_path):
    """A page that misbehaves is caught, so the test above can fail."""
    text = pages["bench"].read_text(encoding="utf-8")
    bad = tmp_path / "bad.html"
    bad.write_text(
        text.replace("<main", '<img src="http://127.0.0.1:9/x.png"><script>1</script><main', 1),
        encoding="utf-8",
    )
    _, console, log = browse(bad, tmp_path)
    assert any("Content Security Policy" in line for line in console)
    open_page = tmp_path / "open.html"
    sources = {"http://127.0.0.1:9/x.png", "https://fonts.example/y.png"}
    images = "".join(f'<img src="{source}">' for source in sorted(sources))
    open_page.write_text(images, encoding="utf-8")
    _, _, log = browse(open_page, tmp_path)
    assert requested(log) == sources


def test_phone_width_needs_no_sideways_scrolling(pages, tmp_path):
    """Laid out in a frame of 390 pixels, the document is not wider than its frame."""
    frame = tmp_path / "frame.html"
    frame.write_text(
        f'<iframe id="f" src="{pages["run"].as_uri()}" style="width:390px;height:3000px"></iframe>'
        "<script>setInterval(function () { try { var d = document.getElementById('f')"
        ".contentDocument.documentElement; document.title = JSON.stringify([d.scrollWidth,"
        " d.clientWidth, d.dataset.ready]); } catch (e) { document.title = '[0, 1, null]'; } },"
        " 200)</script>",
        encoding="utf-8",
    )
    done = subprocess.run(
        [
            str(CHROMIUM), *FLAGS, f"--user-data-dir={tmp_path / 'user'}",
            "--allow-file-access-from-files", "--window-size=800,3000", "--dump-dom",
            frame.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    title = re.search(r"<title>(.*?)</title>", done.stdout)
    assert title
    scroll, client, ready = json.loads(title[1])
    assert ready == "1"
    assert 0 < scroll <= client
