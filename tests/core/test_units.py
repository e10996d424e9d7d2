"""Sizes people write and read."""

from __future__ import annotations

import pytest

from autopar.core.errors import InputError
from autopar.core.units import format_bytes, format_seconds, format_usd, parse_bytes, parse_seconds


@pytest.mark.parametrize(
    ("text", "size"),
    [("80GiB", 80 * 2**30), ("512M", 512 * 2**20), ("1.5 GB", 1_500_000_000), ("7", 7)],
)
def test_parse_bytes(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "lots", "-3GiB", "1 XB", "1e9999"])
def test_junk_sizes_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="not a size"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("text", "seconds"), [("24h", 86400.0), ("1.5 min", 90.0), ("2d", 172800.0), ("7", 7.0)]
)
def test_parse_seconds(text: str, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "-3h", "0", "1y"])
def test_junk_durations_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="not a duration"):
        parse_seconds(text)


def test_formats() -> None:
    assert format_usd(5120.4) == "5,120 USD"
    assert format_usd(0.01234) == "0.0123 USD"
    assert format_bytes(1.5 * 2**30) == "1.50 GiB"
    assert format_seconds(0.4123) == "412 ms"
    assert format_seconds(3 * 3600) == "3.0 h"
    assert format_seconds(0.9997) == "1 s"
    assert format_seconds(-0.0099999) == "-10 ms"
    assert format_seconds(999.7) == "1000 s"
