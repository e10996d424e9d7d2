"""The document of ``scripts/validate_published``: every row once, held out where needed."""

import csv
import json
from pathlib import Path

import pytest

from autopar.core.errors import InputError
from autopar.validation.published.validate import validate

FILE = Path(__file__).with_name("time_rows.csv")
NEW = "vts-9001"


@pytest.fixture
def files(tmp_path) -> tuple[Path, Path]:
    """A fit file of 24 rows, and a file that repeats 6 of them and adds four others."""
    with FILE.open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["id"].startswith("vts")][:24]
    fit, test = tmp_path / "fit.csv", tmp_path / "test.csv"
    new = {**rows[0], "id": NEW, "layers": "36", "step_time_s": ""}
    odd = {**rows[1], "id": "vts-9002", "gpu": "Cray-1"}
    failed = {**rows[2], "id": "vts-9003", "step_time_s": "", "metric_value": "OOM"}
    exchange = {
        **dict.fromkeys(rows[0], ""),
        "id": "net-1",
        "model": "BERT-Large",
        "params_b": "0.336",
        "gpu": "not stated",
        "gpus": "16",
        "micro_batch": "8",
        "notes": "sync mode: all-reduce, no overlap; network 10GbE with TCP/IP; x",
    }
    for path, some in ((fit, rows), (test, [*rows[:6], new, odd, failed, exchange])):
        with path.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(some)
    return fit, test


def test_every_row_is_priced_or_told_why(files):
    fit, test = files
    data = validate(test, fit_path=fit).to_dict()
    json.dumps(data, allow_nan=False)
    by_id = {row["id"]: row for row in data["rows"]}
    assert [row["id"] for row in data["unpriced"]] == ["vts-9002"]
    assert len(by_id) == 9
    assert by_id[NEW]["how"] == "new to the fit"
    assert by_id[NEW]["rel_error"] is None
    known = [row for row in data["rows"] if row["how"] == "cross-validated"]
    assert len(known) >= 6
    assert all(row["low_s"] < row["predicted_s"] < row["high_s"] for row in data["rows"])
    assert by_id["vts-9003"]["out_of_memory"]
    assert by_id["net-1"]["predicted_s"] > 0


def test_a_row_of_the_fit_is_not_priced_by_its_own_measurement(files, tmp_path):
    fit, test = files
    before = validate(test, fit_path=fit).to_dict()["rows"][0]
    text = fit.read_text()
    measured = f",{before['measured_s']:g},"
    assert measured in text
    bent = tmp_path / "bent.csv"
    bent.write_text(text.replace(measured, ",999,"))
    after = validate(test, fit_path=bent).to_dict()["rows"][0]
    assert after["predicted_s"] == pytest.approx(before["predicted_s"], rel=1e-9)


def test_zero_shot_reads_no_calibration(files):
    _, test = files
    data = validate(test, zero_shot=True).to_dict()
    assert {row["how"] for row in data["rows"][:-1]} == {"zero-shot"}


def test_a_table_without_needed_columns_is_one_line(tmp_path):
    path = tmp_path / "bad.csv"
    path.write_text("id,model\n1,x\n")
    with pytest.raises(InputError, match="lacks the columns"):
        validate(path)
