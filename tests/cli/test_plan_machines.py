"""``autopar plan`` with several clusters, a deadline or a budget."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from search.builders import chain_profile

import autopar
from autopar.cli.main import _run

TWO = ["--cluster", "2x8:a100-80gb-sxm", "--cluster", "2x4:t4"]


@pytest.fixture
def profile(workplace: Path) -> str:
    chain_profile([2e11] * 4, parameter_bytes=[40_000_000] * 4, batch=2).save(Path("chain.json"))
    return "chain.json"


def plan(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    code = _run(["plan", *arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_deadline_keeps_the_contract_and_adds_machines(
    capsys: pytest.CaptureFixture[str], profile: str
) -> None:
    wishes = ("--deadline", "200h", "--samples", "10000000", "--out", "best.json")
    code, document = plan(capsys, profile, *TWO, "--global-batch", "64", *wishes)
    data = document["data"]
    assert code == 0 and document["status"] == "ok"
    assert {"best", "top", "baselines", "certificate", "search_time_s", "study"} <= data.keys()
    assert [row["cluster"] for row in data["machines"]] == [
        "1x8:a100-80gb-sxm",
        "2x8:a100-80gb-sxm",
        "1x4:t4",
        "2x4:t4",
    ]
    row = next(r for r in data["machines"] if r["cluster"] == data["chosen"])
    assert (
        row["name"]
        == data["best"]["name"]
        == autopar.SearchResult.load(Path("best.json")).best.name
    )
    assert row["plan"]["hash"] == data["best"]["plan"]["hash"]
    assert row["meets_deadline"] == "surely" and row["meets_budget"] is None
    assert row["total_s"]["high"] <= 200 * 3600
    assert row["total_s"]["value"] == pytest.approx(row["step_time_s"]["value"] * 156_250)
    assert data["chosen"] in data["pareto"]
    assert data["explanation"][0].startswith("Machines. Of 4 sets")


def test_impossible_budget_is_exit_3_with_the_budget_that_works(
    capsys: pytest.CaptureFixture[str], profile: str
) -> None:
    wishes = ("--samples", "10000000", "--global-batch", "64")
    code, document = plan(capsys, profile, *TWO, *wishes, "--budget", "0.01")
    assert code == 3 and document["status"] == "infeasible"
    assert "budget of 0.01 USD" in document["error"]["message"]
    amount = document["error"]["hint"].split("raise --budget to ")[1].split()[0]
    assert plan(capsys, profile, *TWO, *wishes, "--budget", amount)[0] == 0


def test_one_cluster_without_wishes_is_as_before(
    capsys: pytest.CaptureFixture[str], profile: str
) -> None:
    _, document = plan(capsys, profile, "--cluster", "2x4:t4")
    assert "machines" not in document["data"]
    whole = ("--cluster", "2x4:t4", "--samples", "1000")
    _, counted = plan(capsys, profile, *whole)
    assert [row["cluster"] for row in counted["data"]["machines"]] == ["2x4:t4"]
    assert counted["data"]["best"]["name"] == document["data"]["best"]["name"]


def test_configuration_may_name_one_cluster_as_text(
    capsys: pytest.CaptureFixture[str], profile: str
) -> None:
    Path("one.toml").write_text('[plan]\ncluster = "2x4:t4"\n')
    assert _run(["--config", "one.toml", "plan", profile, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["data"]["cluster"]["name"] == "2x4:t4"


def test_table_for_people(capsys: pytest.CaptureFixture[str], profile: str) -> None:
    assert _run(["plan", profile, *TWO, "--samples", "1000"]) == 0
    shown = capsys.readouterr().out
    assert "machines" in shown and "* chosen" in shown and " kJ " in shown


def test_mixed_cluster_says_where_the_ranks_run(
    capsys: pytest.CaptureFixture[str], profile: str
) -> None:
    mixed = ("--cluster", "1x2:t4+1x2:a100-80gb-pcie", "--global-batch", "8")
    _, document = plan(capsys, profile, *mixed, "--explain")
    data = document["data"]
    assert data["cluster"]["name"] == "1x2:t4+1x2:a100-80gb-pcie"
    assert data["certificate"]["gap"] == 0
    assert any(text.startswith("Placement. Ranks run over") for text in data["explanation"])
    assert set(data["best"]["plan"]["placement"]) >= {2, 3}  # the faster machine


def test_one_set_is_not_called_sets(capsys: pytest.CaptureFixture[str], profile: str) -> None:
    one = ("--cluster", "1x4:t4", "--samples", "1000", "--global-batch", "64")
    _, document = plan(capsys, profile, *one, "--deadline", "9h")
    words = document["data"]["explanation"][0]
    assert words.startswith(
        "Machines. 1x4:t4 (4 devices), the only set, surely meets the deadline"
    )
    code, document = plan(capsys, profile, *one, "--budget", "1e-9")
    assert code == 3
    assert document["error"]["message"].startswith("the only machine set does not meet the budget")


@pytest.mark.parametrize("arguments", [("--deadline", "soon"), ("--budget", "-3")])
def test_junk_wishes_are_bad_input(
    capsys: pytest.CaptureFixture[str], profile: str, arguments: tuple[str, str]
) -> None:
    code, document = plan(capsys, profile, *TWO, *arguments)
    assert code == 2 and document["status"] == "invalid"


def test_python_uses_the_same_words(profile: str) -> None:
    choice = autopar.choose_machines(
        profile, ["2x8:a100-80gb-sxm", "2x4:t4"], samples=1000, deadline_s=1e6, global_batch=64
    )
    assert choice.chosen.meets(choice.wishes) == "surely"
