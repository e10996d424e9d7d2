"""Conversions at the edges. Inside the package every quantity is in SI base units."""

from __future__ import annotations

import re

from autopar.core.errors import InputError

KIB = 1024
MIB = 1024**2
GIB = 1024**3

_SIZE = re.compile(r"^\s*([0-9]*\.?[0-9]+)\s*([kmgt]?i?b?)\s*$", re.IGNORECASE)
_FACTORS = {
    "": 1,
    "b": 1,
    **{f"{p}b": 1000**i for i, p in enumerate("kmgt", start=1)},
    **{f"{p}ib": 1024**i for i, p in enumerate("kmgt", start=1)},
    **{p: 1024**i for i, p in enumerate("kmgt", start=1)},
    **{f"{p}i": 1024**i for i, p in enumerate("kmgt", start=1)},
}


def parse_bytes(text: str) -> int:
    """Read a size such as ``"80GiB"``, ``"512M"`` or ``"1e9"`` given by a user.

    ``K``, ``M``, ``G`` and ``T`` alone are binary, ``KB`` ... ``TB`` decimal.

    Raises:
        InputError: The text is not a size.
    """
    match = _SIZE.match(text)
    if match is None:
        raise InputError(f"'{text}' is not a size", hint="write it like 80GiB, 512M or 2000000")
    return int(float(match[1]) * _FACTORS[match[2].lower()])


_DURATION = re.compile(r"^\s*([0-9]*\.?[0-9]+)\s*(s|min|m|h|d|w)?\s*$", re.IGNORECASE)
_SECONDS = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def parse_seconds(text: str) -> float:
    """Read a duration such as ``"24h"``, ``"90min"`` or ``"3d"``; a number alone is seconds.

    Raises:
        InputError: The text is not a positive duration.
    """
    match = _DURATION.match(text)
    if match is None or float(match[1]) <= 0:
        raise InputError(f"'{text}' is not a duration", hint="write it like 24h, 90min or 3d")
    return float(match[1]) * _SECONDS[(match[2] or "").lower()]


_ROUNDS_UP = 0.9995
"""From here on three digits round to 1 of the next unit, which would be written 1e+03."""


def format_bytes(value: float) -> str:
    """A size for people, in binary units: ``"1.50 GiB"``."""
    for unit, factor in (("TiB", 1024**4), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if abs(value) >= factor:
            return f"{value / factor:.2f} {unit}"
    return f"{value:.0f} B"


def format_seconds(value: float) -> str:
    """A duration for people: ``"412 ms"``, ``"1.31 s"``, ``"3.2 h"``."""
    if value >= 7200:
        return f"{value / 3600:.1f} h"
    for unit, factor in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if abs(value) >= factor * _ROUNDS_UP:
            return f"{value / factor:.3g} {unit}" if abs(value) < 999.5 else f"{value:.0f} s"
    return f"{value * 1e9:.3g} ns"


def format_count(value: float) -> str:
    """A large number for people: ``"175 G"``, ``"25.6 M"``."""
    for unit, factor in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= factor * _ROUNDS_UP:
            return f"{value / factor:.3g} {unit}"
    return f"{value:.3g}"


def format_usd(value: float) -> str:
    """Money for people: ``"0.0123 USD"``, ``"5,120 USD"``."""
    return f"{value:,.0f} USD" if value >= 1000 else f"{value:.3g} USD"


def format_joule(value: float, among: float | None = None) -> str:
    """Energy for people: ``"379 J"``, ``"1.03 kJ"``, ``"1.73 kWh"``.

    Args:
        value: Joule.
        among: The largest of several that share a unit, so that a column has one.
    """
    largest = value if among is None else among
    for unit, factor, least in (("kWh", 3.6e6, 3.6e5), ("kJ", 1e3, 1e3)):
        if abs(largest) >= least * _ROUNDS_UP:
            return f"{value / factor:.3g} {unit}"
    return f"{value:.3g} J"
