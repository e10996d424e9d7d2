"""``autopar plan`` for several objectives, and with a tuned bucket size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from search.builders import MB, chain_profile

import autopar
from autopar.cli.main import _run
from autopar.results import SearchResult

WHERE = ("--cluster", "1x4:a100-40gb-sxm", "--global-batch", "16")


@pytest.fixture
def profile(workplace: Path) -> str:
    made = chain_profile(
        [2e12] * 4, parameter_bytes=[200_000_000] * 4, saved_bytes=900 * MB, batch=2
    )
    made.save(Path("chain.json"))
    return "chain.json"


def plan(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    code = _run(["plan", *arguments, *WHERE, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_a_list_of_objectives_adds_the_set(
    capsys: pytest.CaptureFixture[str], profile: str
) -> None:
    code, document = plan(capsys, profile, "--objective", "time,memory", "--out", "best.json")
    data = document["data"]
    assert code == 0 and document["status"] == "ok"
    assert {"best", "top", "baselines", "certificate", "search_time_s", "study"} <= data.keys()
    found = data["pareto"]
    assert len(found) > 1
    assert all({"name", "plan", "values"} <= row.keys() for row in found)
    times = [row["values"]["time"] for row in found]
    sizes = [row["values"]["memory"] for row in found]
    assert times == sorted(times)
    assert sizes == sorted(sizes, reverse=True)
    assert data["best"]["step_time_s"]["value"] == pytest.approx(times[0])
    proof = data["pareto_proof"]
    assert proof["complete"] and proof["engine"] == "sweep"
    assert 0 <= proof["knee"] < len(found)
    loaded = SearchResult.load(Path("best.json"))
    assert loaded.pareto is not None
    assert loaded.pareto.to_dict()["pareto"] == found


def test_the_python_api_says_the_same(profile: str) -> None:
    result = autopar.plan(profile, "1x4:a100-40gb-sxm", global_batch=16, objective="time,energy")
    assert result.pareto is not None
    assert result.pareto.objectives == ("time", "energy")
    assert result.pareto.proof.engine == "exhaustive"
    fastest = result.pareto.plans[0]
    assert fastest.values["time"] == pytest.approx(result.best.price.step_time_s.value)


def test_the_set_is_shown_as_a_table(capsys: pytest.CaptureFixture[str], profile: str) -> None:
    assert _run(["plan", profile, *WHERE, "--objective", "time,memory,cost"]) == 0
    shown = capsys.readouterr().out
    assert "knee" in shown
    assert "that none beats in time and memory and cost" in shown


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--objective", "time,fame"), "fame"),
        (("--objective", "time,"), "objective"),
        (("--objective", "time,memory", "--deadline", "3h"), "one cluster"),
        (("--tune", "--budget", "30"), "one cluster"),
    ],
)
def test_what_does_not_go_together_is_bad_input(
    capsys: pytest.CaptureFixture[str], profile: str, arguments: tuple[str, ...], words: str
) -> None:
    code, document = plan(capsys, profile, *arguments)
    assert code == 2
    assert words in document["error"]["message"]


def test_tuning_never_makes_the_plan_slower(
    capsys: pytest.CaptureFixture[str], profile: str
) -> None:
    fixed = ("--fix", "dp_replicate=4", "--fix", "recompute=none")
    _, plain = plan(capsys, profile, *fixed)
    code, tuned = plan(capsys, profile, *fixed, "--tune")
    assert code == 0
    before, after = (d["data"]["best"]["step_time_s"]["value"] for d in (plain, tuned))
    assert after <= before
    sizes = [d["data"]["best"]["plan"]["bucket_bytes"] for d in (plain, tuned)]
    assert (sizes[0] != sizes[1]) == (after < before)
    assert "Bucket size" in tuned["data"]["answers"][0]
