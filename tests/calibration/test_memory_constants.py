"""Memory constants: what ships, what a file may hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from autopar.calibration.memory import MEMORY_SPECS, MemoryConstants
from autopar.core.errors import InputError


def test_every_constant_says_what_it_is() -> None:
    defaults = MemoryConstants.defaults()
    for spec in MEMORY_SPECS:
        assert getattr(defaults, spec.name) == spec.default > 0
        assert spec.text
        assert spec.source
        assert spec.unit


def test_the_shipped_values_are_plausible_and_say_what_they_rest_on() -> None:
    c = MemoryConstants.shipped()
    for spec in MEMORY_SPECS:
        assert 0.2 < getattr(c, spec.name) / spec.default < 5
    assert c.low_factor < 1 < c.high_factor < 1.3
    assert sum(c.fitted_on["peaks"].values()) > 50
    assert all(0.8 < factor < 1.25 for factor in c.margins.values())


def test_a_framework_without_rows_has_the_common_margin() -> None:
    c = MemoryConstants.shipped()
    assert c.margin("of tomorrow") == c.allocator_margin
    assert c.margin("nanotron") == c.allocator_margin * c.margins["nanotron"]


def test_a_file_keeps_all_values(tmp_path: Path) -> None:
    c = MemoryConstants.shipped()
    c.save(tmp_path / "c.json")
    assert MemoryConstants.load(tmp_path / "c.json") == c


@pytest.mark.parametrize(
    ("name", "value"),
    [("logit_bytes", -1.0), ("framework_bytes", None), ("margins", {"nemo": 0.0}), ("margins", 3)],
)
def test_a_bad_value_is_one_line(tmp_path: Path, name: str, value: object) -> None:
    path = tmp_path / "c.json"
    MemoryConstants.shipped().save(path)
    body = json.loads(path.read_text())
    path.write_text(json.dumps({**body, name: value}))
    with pytest.raises(InputError) as error:
        MemoryConstants.load(path)
    assert "\n" not in error.value.message
    assert error.value.hint


def test_a_missing_value_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    MemoryConstants.shipped().save(path)
    body = json.loads(path.read_text())
    del body["bucket_bytes"]
    path.write_text(json.dumps(body))
    with pytest.raises(InputError):
        MemoryConstants.load(path)
