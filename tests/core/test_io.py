"""Documents survive failed writes, and bad ones are refused in one line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from autopar.core.errors import InputError
from autopar.core.io import read_document, read_json, write_document, write_text_atomic


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.json"
    write_document(path, "autopar.test", 1, {"x": 1.5})
    assert read_document(path, "autopar.test", 1)["x"] == 1.5


def test_failed_write_keeps_the_good_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    write_text_atomic(path, "good")

    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="No space left"):
        write_text_atomic(path, "half")
    assert path.read_text() == "good"
    assert list(tmp_path.iterdir()) == [path]


def test_unserialisable_body_keeps_the_good_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_document(path, "autopar.test", 1, {"x": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_document(path, "autopar.test", 1, {"x": float("nan")})
    assert read_document(path, "autopar.test", 1)["x"] == 1


@pytest.mark.parametrize(
    "text",
    ["", "{", '{"a": NaN}', '{"a": 1e999}', "[1]", "[" * 100_000, '{"a": 1}trailing', "\x00"],
)
def test_bad_json_is_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_json(path)
    assert str(path) in caught.value.message


def test_truncation_at_every_offset_is_refused(tmp_path: Path) -> None:
    text = json.dumps({"schema": "autopar.test", "schema_version": 1, "x": [1, {"y": "z"}]})
    path = tmp_path / "cut.json"
    for end in range(len(text)):
        path.write_text(text[:end])
        with pytest.raises(InputError):
            read_document(path, "autopar.test", 1)


@pytest.mark.parametrize("header", [("other", 1), ("autopar.test", 2), (None, None)])
def test_other_schema_is_refused(tmp_path: Path, header: tuple[object, object]) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"schema": header[0], "schema_version": header[1]}))
    with pytest.raises(InputError, match=r"a\.json"):
        read_document(path, "autopar.test", 1)
