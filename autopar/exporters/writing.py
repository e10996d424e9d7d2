"""Text forms that several targets share: TOML, YAML, comments, a plan inside a shell script."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from autopar.core.units import format_seconds
from autopar.core.version import __version__
from autopar.plans import Plan

_PLAN_MARK = "AUTOPAR_PLAN"
_WIDTH = 98


def one_line(text: str) -> str:
    """The text without anything that could end a line or hide: what a comment may hold."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def comments(lines: Iterable[str], mark: str) -> str:
    """Lines as comments, each behind ``mark``."""
    return "".join(f"{mark} {one_line(line)}".rstrip() + "\n" for line in lines)


def toml(tables: Mapping[str, Mapping[str, Any]]) -> str:
    """Tables of scalars and lists as TOML."""
    parts = []
    for name, table in tables.items():
        rows = "".join(f"{key} = {_toml_value(value)}\n" for key, value in table.items())
        parts.append(f"[{name}]\n{rows}")
    return "\n".join(parts)


def _toml_value(value: Any) -> str:
    if isinstance(value, float) and math.isinf(value):
        return "inf" if value > 0 else "-inf"
    return json.dumps(value, allow_nan=False)


def yaml(data: Mapping[str, Any], indent: str = "") -> str:
    """A mapping of scalars and mappings as YAML; text is quoted as JSON quotes it."""
    rows = []
    for key, value in data.items():
        if isinstance(value, Mapping):
            rows.append(f"{indent}{key}:\n{yaml(value, indent + '  ')}")
        else:
            rows.append(f"{indent}{key}: {json.dumps(value, allow_nan=False)}\n")
    return "".join(rows)


def shell_plan(plan: Plan) -> str:
    """Shell lines that write the plan to the file ``$plan``.

    The document is one line of ASCII between quoted marks: the shell expands nothing in it.
    """
    document = json.dumps(plan.to_dict(), allow_nan=False)
    return f"cat > \"$plan\" <<'{_PLAN_MARK}'\n{document}\n{_PLAN_MARK}\n"


def headline(plan: Plan, target: str, written_for: str) -> list[str]:
    """What a reader of the file should know first."""
    place = f" on {plan.cluster}" if plan.cluster else ""
    return [
        f"Plan {plan.name} ({plan.hash}) of {plan.task.target or plan.task.name}{place}"
        f"{_expected(plan)}.",
        f"Written by autopar {__version__} for {written_for} (autopar export --to {target}).",
    ]


def _expected(plan: Plan) -> str:
    try:
        seconds = float(plan.predicted["step_time_s"]["value"])
    except (KeyError, TypeError, ValueError):
        return ""
    return f", {format_seconds(seconds)} per step predicted"
