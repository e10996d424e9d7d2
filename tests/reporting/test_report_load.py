from __future__ import annotations

import json
from pathlib import Path

import pytest
import report_samples as samples

from autopar.core.errors import InputError
from autopar.graph import GraphProfile
from autopar.plans import Plan
from autopar.reporting import load_any, write_report
from autopar.results import BenchResult, RunRecord, SearchResult


@pytest.fixture
def stored(tmp_path: Path) -> dict[str, Path]:
    run = tmp_path / "run"
    run.mkdir()
    samples.run_record().save(run)
    paths = {name: tmp_path / f"{name}.json" for name in ("search", "profile", "bench", "plan")}
    samples.search_result().save(paths["search"])
    samples.measured_profile().save(paths["profile"])
    samples.bench_result().save(paths["bench"])
    samples.search_result().best.plan.save(paths["plan"])
    return {"run": run, **paths}


def envelope(data: dict, command: str = "plan", **more: object) -> dict:
    return {
        "schema": "autopar.cli", "schema_version": 1, "command": command, "status": "ok",
        "warnings": [], "data": data, "error": None, **more,
    }  # fmt: skip


def test_every_kind_is_recognised_by_its_schema(stored):
    kinds = {
        "run": RunRecord, "search": SearchResult, "profile": GraphProfile,
        "bench": BenchResult, "plan": Plan,
    }  # fmt: skip
    for name, kind in kinds.items():
        assert type(load_any(stored[name])) is kind, name


def test_bench_result_survives_a_round_trip(stored):
    assert load_any(stored["bench"]) == samples.bench_result()


def test_a_plan_envelope_from_stdout_is_read(tmp_path):
    path = tmp_path / "stdout.json"
    path.write_text(json.dumps(envelope(samples.search_result().to_dict())))
    assert load_any(path) == samples.search_result()


def test_a_bench_envelope_with_extra_keys_is_read(tmp_path):
    path = tmp_path / "stdout.json"
    data = {**samples.bench_result().to_dict(), "report": "x.html"}
    path.write_text(json.dumps(envelope(data, "bench")))
    assert load_any(path) == samples.bench_result()


def test_a_run_envelope_leads_to_its_folder(tmp_path, stored):
    path = tmp_path / "stdout.json"
    path.write_text(json.dumps(envelope({"run_dir": "run"}, "run")))
    assert isinstance(load_any(path), RunRecord)


def test_a_profile_envelope_leads_to_its_file(tmp_path, stored):
    path = tmp_path / "stdout.json"
    path.write_text(json.dumps(envelope({"profile": str(stored["profile"])}, "profile")))
    assert isinstance(load_any(path), GraphProfile)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "not valid JSON"),
        ("[]", "a JSON object is needed"),
        ('{"schema": "autopar.cluster", "schema_version": 1}', "has no report"),
        ('{"schema": "autopar.plan", "schema_version": 99}', "schema version 99"),
        ('{"schema": "autopar.run_record", "schema_version": 1}', "bad run record field"),
        ('{"schema": "autopar.bench", "schema_version": 1, "rows": 3}', "bad bench field"),
        (json.dumps(envelope({}, "doctor")), "output of 'doctor'"),
        (json.dumps(envelope({}, error={"message": "no plan fits"})), "no plan fits"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, content, words):
    path = tmp_path / "file.json"
    path.write_text(content)
    with pytest.raises(InputError, match=words):
        load_any(path)


def test_missing_files_and_empty_folders_are_named(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        load_any(tmp_path / "none.json")
    with pytest.raises(InputError, match=r"holds no record\.json"):
        load_any(tmp_path)


def test_default_place_depends_on_the_content_only(stored, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = write_report(stored["bench"], format="csv")
    second = write_report(stored["bench"], format="csv")
    assert first == second
    assert first.parent == Path("reports")
    assert first.name.startswith("bench-gpt-")
    assert first.suffix == ".csv"


def test_companions_of_a_run_folder_appear_in_its_page(stored):
    bare = write_report(stored["run"], out=stored["run"] / "a.md", format="md").read_text()
    samples.profile().save(stored["run"] / "profile.json")
    samples.search_result().save(stored["run"] / "search.json")
    full = write_report(stored["run"], out=stored["run"] / "b.md", format="md").read_text()
    assert "## Search" not in bare
    assert "## Search" in full
    assert "transformer.h.0" in full


def test_a_profile_passed_second_is_context_not_a_comparison(stored, tmp_path):
    path = write_report(stored["search"], stored["profile"], tmp_path / "x.md", "md")
    assert "comparison" not in path.read_text()


def test_documents_that_do_not_go_together_are_refused(stored, tmp_path):
    with pytest.raises(InputError, match="a plan and a bench result cannot be compared"):
        write_report(stored["plan"], stored["bench"], tmp_path / "x.html")


def test_unknown_format_is_refused_before_anything_is_written(stored, tmp_path):
    with pytest.raises(InputError, match="unknown report format 'pdf'"):
        write_report(stored["plan"], out=tmp_path / "x.pdf", format="pdf")
    assert not (tmp_path / "x.pdf").exists()
