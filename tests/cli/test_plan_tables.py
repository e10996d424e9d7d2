"""What ``autopar plan`` prints: the objective's own column, labelled differences, times."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from search.builders import chain_profile

from autopar.cli import plan as plan_command
from autopar.cli.main import _run
from autopar.core.units import format_joule

WHERE = ["--cluster", "1x4:a100-80gb-sxm", "--global-batch", "64"]


@pytest.fixture
def profile(workplace: Path) -> str:
    chain_profile([2e11] * 4, parameter_bytes=[40_000_000] * 4, batch=2).save(Path("chain.json"))
    return "chain.json"


@pytest.mark.parametrize(
    ("objective", "head", "unit", "label"),
    [
        ("cost", "money", "USD", "money"),
        ("energy", "energy", "J", "energy"),
        ("memory", "memory", "GiB", "memory"),
        ("time-to-target", "step x steps", "s", "time"),
    ],
)
def test_the_table_shows_what_was_minimised(
    capsys: pytest.CaptureFixture[str],
    profile: str,
    objective: str,
    head: str,
    unit: str,
    label: str,
) -> None:
    assert _run(["plan", profile, *WHERE, "--objective", objective]) == 0
    rows = capsys.readouterr().out.splitlines()
    heads, best = rows[1], rows[2]
    assert heads.split("plan")[1].lstrip().startswith(head)
    assert heads.count(head) == 1
    name = best.split()[1]
    assert best.split(name)[1].split()[1].endswith(unit)
    for baseline in ("single device", "plain DDP"):
        (row,) = [r for r in rows if r.strip().startswith(f"{baseline}:")]
        assert row.endswith(f" {label}")


def test_no_baseline_beats_the_best_in_what_was_minimised(
    capsys: pytest.CaptureFixture[str], profile: str
) -> None:
    """In time some do: a plan of few devices is cheap and slow."""
    assert _run(["plan", profile, *WHERE, "--objective", "cost"]) == 0
    rows = capsys.readouterr().out.splitlines()
    shares = [r for r in rows if r.startswith("  ") and r.endswith(" money")]
    assert shares and not any(", -" in row for row in shares)


def test_time_before_the_search_is_told_with_the_way_around_it(
    capsys: pytest.CaptureFixture[str], workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_command, "FELT_S", 0.0)
    assert _run(["plan", "zoo:mlp", *WHERE]) == 0
    (row,) = [r for r in capsys.readouterr().out.splitlines() if "for the profile" in r]
    path = row.split("autopar plan ")[1].split(" skips")[0]
    assert _run(["plan", path, *WHERE, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)["data"]
    assert 0 <= data["profile_time_s"] < 1


def test_energies_of_a_column_share_a_unit() -> None:
    assert [format_joule(x) for x in (379.0, 1.03e3, 6.2e6)] == ["379 J", "1.03 kJ", "1.72 kWh"]
    assert format_joule(1.8e5, among=6.2e6) == "0.05 kWh"
