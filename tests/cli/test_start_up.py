"""Planning commands start fast and never import torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

from autopar.cli.main import _run

PROBE = """
import sys
from autopar.cli.main import _run
code = _run(sys.argv[1:])
heavy = [m for m in ("torch", "transformers", "pandas", "plotly") if m in sys.modules]
sys.stderr.write("HEAVY " + ",".join(heavy))
sys.exit(code)
"""


@pytest.mark.parametrize(
    "line",
    ["--help", "plan --help", "export --help", "catalog", "catalog machines --json"],
)
def test_no_heavy_import(line: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *line.split()], capture_output=True, text=True, check=True
    )
    assert done.stderr.endswith("HEAVY ")


@pytest.mark.parametrize(
    "verb", ["profile", "plan", "run", "bench", "report", "export", "catalog", "doctor"]
)
def test_every_verb_has_help_with_an_example(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run([verb, "--help"]) == 0
    assert "autopar " + verb in capsys.readouterr().out


def test_the_package_runs_as_a_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "autopar", "plan", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "autopar plan" in done.stdout
