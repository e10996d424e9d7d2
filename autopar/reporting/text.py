"""Words and numbers for people: safe text, signed percentages, ranges, pairs in one unit."""

from __future__ import annotations

import html
import re
import unicodedata
from datetime import UTC, datetime

from autopar.core.estimate import Estimate
from autopar.core.units import GIB, KIB, MIB, format_bytes, format_count, format_seconds

MAX_NAME = 200
_INVISIBLE = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}


def visible(text: str) -> str:
    """A string without control, bidi or other invisible characters; line ends stay."""
    return "".join(c for c in text if c == "\n" or unicodedata.category(c) not in _INVISIBLE)


def clean(text: object, limit: int = MAX_NAME) -> str:
    """A foreign string as one visible line, cut at ``limit``."""
    kept = visible(str(text)).replace("\n", " ")
    return kept if len(kept) <= limit else kept[: limit - 1] + "…"


def split_opening(text: str) -> tuple[str, str]:
    """A paragraph's opening words, up to the first full stop or question mark, and the rest.

    ``"Memory. 6 GiB of 8 GiB."`` -> ``("Memory.", " 6 GiB of 8 GiB.")``; no opening when the
    first sentence is long.
    """
    found = re.match(r".{1,80}?[.?](?= )", text)
    return (text[: found.end()], text[found.end() :]) if found is not None else ("", text)


def plot_text(text: object, limit: int = 60) -> str:
    """A foreign string as a plot label: plotly reads labels as pseudo-HTML, so it is escaped."""
    return html.escape(clean(text, limit))


def middle(text: str, limit: int) -> str:
    """``text`` shortened in the middle, where module paths differ least."""
    if len(text) <= limit:
        return text
    head = (limit - 1) // 2
    return f"{text[:head]}…{text[len(text) - (limit - 1 - head) :]}"


def signed_percent(ratio: float) -> str:
    """A relative difference: ``"+3.4 %"``, or with a true minus sign ``"-12 %"``."""
    value = abs(ratio) * 100
    digits = f"{value:.1f}" if value < 99.95 else f"{value:.0f}"
    sign = "±" if float(digits) == 0 else "\N{MINUS SIGN}" if ratio < 0 else "+"
    return f"{sign}{digits} %"


def percent(ratio: float) -> str:
    """A share: ``"58 %"``, ``"0.4 %"``."""
    value = ratio * 100
    return f"{value:.0f} %" if abs(value) >= 9.95 or value == 0 else f"{value:.1f} %"


def bytes_pair(used: float, capacity: float) -> str:
    """Two sizes in the unit of the larger: ``"1.20 of 11.0 GiB"``."""
    for unit, factor in (("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if capacity >= factor:
            return f"{used / factor:.3g} of {capacity / factor:.4g} {unit}"
    return f"{used:.0f} of {capacity:.0f} B"


def seconds_range(estimate: Estimate) -> str:
    """The range of a time estimate and its source."""
    low, high = format_seconds(estimate.low), format_seconds(estimate.high)
    return f"{low} to {high}, {estimate.source}"


def bytes_range(estimate: Estimate) -> str:
    """The range of a size estimate and its source."""
    return f"{format_bytes(estimate.low)} to {format_bytes(estimate.high)}, {estimate.source}"


def quantity(value: float, unit: str) -> str:
    """A large number with its unit: ``"174 GFLOP"``, ``"142 J"``."""
    number = format_count(value)
    return f"{number}{unit}" if number[-1].isalpha() else f"{number} {unit}"


def moment(text: object) -> str:
    """An ISO time to the minute: ``"2026-11-24 10:00 UTC"``; other text unchanged."""
    try:
        found = datetime.fromisoformat(str(text)).astimezone(UTC)
    except ValueError:
        return clean(text, 40)
    return found.strftime("%Y-%m-%d %H:%M UTC")


def plural(count: float, word: str) -> str:
    """``"1 rank"``, ``"12 ranks"``."""
    return f"{count:,} {word}" if count == 1 else f"{count:,} {word}s"


def join_words(words: list[str]) -> str:
    """``"a, b and c"``."""
    if len(words) < 2:
        return "".join(words)
    return ", ".join(words[:-1]) + " and " + words[-1]


def axis_seconds(largest: float) -> tuple[float, str]:
    """Factor and unit that make the numbers of a time axis readable."""
    for unit, factor in (("s", 1.0), ("ms", 1e-3)):
        if largest >= factor:
            return 1 / factor, unit
    return 1e6, "µs"


def axis_bytes(largest: float) -> tuple[float, str]:
    """Factor and unit that make the numbers of a size axis readable."""
    for unit, factor in (("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if largest >= factor:
            return 1 / factor, unit
    return 1.0, "B"


def display(kind: str, value: object) -> str:
    """A table cell for people; ``kind`` is a :data:`autopar.report.table.Kind`."""
    if value is None or value == "":
        return "\N{EN DASH}"
    if kind == "text" or isinstance(value, str | bool):
        return clean(value, 400)
    number = float(value)  # type: ignore[arg-type]
    formats = {
        "count": lambda: f"{number:,.0f}",
        "bytes": lambda: format_bytes(number),
        "seconds": lambda: "0" if number == 0 else format_seconds(number),
        "flop": lambda: quantity(number, "FLOP") if number else "0",
        "flop_rate": lambda: quantity(number, "FLOP/s"),
        "rate": lambda: quantity(number, "B/s"),
        "ratio": lambda: percent(number),
        "signed_ratio": lambda: signed_percent(number),
        "signed_seconds": lambda: (
            "0"
            if number == 0
            else ("\N{MINUS SIGN}" if number < 0 else "+") + format_seconds(abs(number))
        ),
    }
    return formats[kind]() if kind in formats else f"{number:.4g}"
