"""``--fail-if``: one comparison over a document's figures, or several joined by ``or``."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from autopar.core.errors import InputError
from autopar.core.registry import did_you_mean
from autopar.core.units import format_bytes, format_seconds, parse_bytes
from autopar.plans import Plan
from autopar.reporting.load import Document
from autopar.reporting.text import clean, signed_percent
from autopar.results import BenchResult, CostBreakdown, PlanPrice, RunRecord, SearchResult

_COMPARISON = re.compile(r"^\s*([a-z][a-z0-9_]*)\s*(>=|<=|==|!=|>|<)\s*(\S.*?)\s*$")
_NUMBER = re.compile(r"^([+-]?)([0-9]+\.?[0-9]*(?:[eE][+-]?[0-9]+)?|\.[0-9]+)\s*(%|[A-Za-zµ]*)$")
_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
}
_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9, "min": 60.0, "h": 3600.0}
_TIMES = {f.name.removesuffix("_s") for f in fields(CostBreakdown)} | {"search_time"}
_EXAMPLE = "write it like step_time>+5%, peak_memory>2GiB, step_time_rel>0.15 or verify!=passed"

Figure = float | str | None


@dataclass(frozen=True, slots=True)
class Limit:
    """The right-hand side: a number or a word.

    Attributes:
        value: The number in SI units, or the word.
        relative: ``""`` absolute, ``"delta"`` added to the baseline, ``"ratio"`` relative to it.
    """

    value: float | str
    relative: str = ""


def evaluate_gate(
    expression: str, document: Document, baseline: Document | None = None
) -> tuple[bool, str]:
    """Whether a failure condition holds, and a sentence with the numbers.

    Args:
        expression: ``METRIC OP LIMIT``, several joined by ``or``. A limit is a number with an
            optional unit (``2GiB``, ``400ms``, ``15%``), a word (``passed``), or, with a sign, a
            distance from the baseline (``+5%``, ``+10ms``).
        document: What is judged.
        baseline: What signed limits refer to.

    Returns:
        ``(True, sentence)`` when the condition holds, that is when the gate fails.

    Raises:
        InputError: The expression cannot be read, names an unknown figure, or needs a baseline.
    """
    clauses = [part for part in re.split(r"\s+or\s+", expression.strip()) if part]
    if not clauses:
        raise InputError("empty --fail-if expression", hint=_EXAMPLE)
    outcomes = [_clause(clause, document, baseline) for clause in clauses]
    holding = [sentence for holds, sentence in outcomes if holds]
    return bool(holding), "; ".join(holding or [sentence for _, sentence in outcomes])


def metrics(document: Document) -> dict[str, Figure]:
    """The figures a gate may name, in SI units; ``None`` when the document does not have one."""
    if isinstance(document, RunRecord):
        return _run_metrics(document)
    if isinstance(document, SearchResult):
        return {
            **_price_metrics(document.best.price),
            "gap": document.certificate.gap,
            "search_time": document.search_time_s,
        }
    if isinstance(document, BenchResult):
        names = ("median_abs_rel_error", "p90_abs_rel_error", "kendall_tau", "regret")
        return {name: getattr(document, name) for name in names}
    if isinstance(document, Plan):
        return (
            _price_metrics(PlanPrice.from_dict(document.predicted)) if document.predicted else {}
        )
    return {
        "parameters": float(document.parameter_count),
        "forward_flop": document.forward_flop.at(document.batch),
        "backward_flop": document.backward_flop.at(document.batch),
        "saved_activation_bytes": document.saved_bytes.at(document.batch),
        "uncounted": float(len(document.uncounted)),
    }


def _run_metrics(record: RunRecord) -> dict[str, Figure]:
    quantiles = record.step_time_quantiles_s if record.step_times_s else {}
    step = quantiles.get("median")
    peak = max(record.peak_memory_bytes, default=None)
    predicted = (
        _price_metrics(PlanPrice.from_dict(record.plan.predicted))
        if (record.plan.predicted)
        else {}
    )
    verify = record.verify
    return {
        "step_time": step,
        "step_time_p10": quantiles.get("p10"),
        "step_time_p90": quantiles.get("p90"),
        "step_time_rel": _relative(predicted.get("step_time"), step),
        "peak_memory": peak,
        "peak_memory_rel": _relative(predicted.get("peak_memory"), peak),
        "samples_per_s": record.plan.global_batch / step if step else None,
        "loss": record.losses[-1] if record.losses else None,
        "verify": "none" if verify is None else "passed" if verify.passed else "failed",
        "loss_rel": verify.loss_rel if verify else None,
        "grad_rel": verify.grad_rel if verify else None,
        "weight_rel": verify.weight_rel if verify else None,
        "warnings": float(len(record.warnings)),
        **_parts(record.breakdown.to_dict()),
    }


def _price_metrics(price: PlanPrice) -> dict[str, Figure]:
    return {
        "step_time": price.step_time_s.value,
        "peak_memory": price.peak_memory_bytes.value,
        "samples_per_s": price.samples_per_s,
        "mfu": price.mfu,
        "energy": price.energy_joule.value if price.energy_joule else None,
        "cost": price.cost_usd.value if price.cost_usd else None,
        **_parts(price.breakdown.to_dict()),
    }


def _parts(breakdown: dict[str, float]) -> dict[str, Figure]:
    return {key.removesuffix("_s"): value for key, value in breakdown.items() if key != "total_s"}


def _relative(predicted: Figure, measured: Figure) -> Figure:
    """|predicted / measured - 1|."""
    if isinstance(predicted, float | int) and isinstance(measured, float | int) and measured:
        return abs(predicted / measured - 1)
    return None


def _clause(clause: str, document: Document, baseline: Document | None) -> tuple[bool, str]:
    match = _COMPARISON.match(clause)
    if match is None:
        raise InputError(f"cannot read the condition '{clean(clause, 80)}'", hint=_EXAMPLE)
    name, symbol, text = match.groups()
    value = _figure(name, document)
    limit = _limit(name, text)
    if isinstance(limit.value, str) or isinstance(value, str):
        return _compare_words(name, symbol, value, limit)
    bound, words = limit.value, _show(name, limit.value)
    if limit.relative:
        if baseline is None:
            raise InputError(
                f"'{name}{symbol}{text}' compares with a second document and there is none",
                hint="pass two paths, or use a limit without a sign",
            )
        base = _figure(name, baseline)
        if isinstance(base, str):
            raise InputError(f"'{name}' is a word, not a number, in the second document")
        bound = base * (1 + limit.value) if limit.relative == "ratio" else base + limit.value
        words = f"{_show(name, bound)} ({_show(name, base)} {text})"
    holds = _OPERATORS[symbol](value, bound)
    change = signed_percent(value / bound - 1) if bound else "no ratio"
    verb = "is" if holds else "is not"
    return holds, f"{name} {_show(name, value)} {verb} {symbol} {words} [{change}]"


def _figure(name: str, document: Document) -> float | str:
    known = metrics(document)
    if name not in known:
        raise InputError(f"unknown figure '{name}'", hint=did_you_mean(name, list(known)))
    value = known[name]
    if value is None:
        raise InputError(
            f"'{name}' is not available in this document",
            hint="available: " + ", ".join(sorted(k for k, v in known.items() if v is not None)),
        )
    return value


def _limit(name: str, text: str) -> Limit:
    number = _NUMBER.match(text)
    if number is None:
        if re.fullmatch(r"[a-z_]+", text):
            return Limit(text)
        raise InputError(f"cannot read the limit '{clean(text, 40)}'", hint=_EXAMPLE)
    sign, digits, unit = number.groups()
    value = float(digits) * (-1 if sign == "-" else 1)
    if unit == "%":
        return Limit(value / 100, "ratio" if sign else "")
    relative = "delta" if sign else ""
    if not unit:
        return Limit(value, relative)
    if unit in _SECONDS and _is_time(name):
        return Limit(value * _SECONDS[unit], relative)
    if _is_size(name):
        return Limit(parse_bytes(f"{digits}{unit}") * (-1.0 if sign == "-" else 1.0), relative)
    raise InputError(f"'{unit}' is not a unit of {name}", hint=_EXAMPLE)


def _is_time(name: str) -> bool:
    return name in _TIMES or (name.startswith("step_time") and not name.endswith("_rel"))


def _is_size(name: str) -> bool:
    return name.endswith(("memory", "bytes"))


def _compare_words(name: str, symbol: str, value: float | str, limit: Limit) -> tuple[bool, str]:
    if symbol not in ("==", "!=") or not (isinstance(value, str) and isinstance(limit.value, str)):
        raise InputError(
            f"'{name}' compares with {'words' if isinstance(value, str) else 'numbers'} only",
            hint=_EXAMPLE,
        )
    holds = _OPERATORS[symbol](value, limit.value)
    return holds, f"{name} is {value}, the condition {symbol} {limit.value} " + (
        "holds" if holds else "does not hold"
    )


def _show(name: str, value: float) -> str:
    if _is_size(name):
        return format_bytes(value)
    if _is_time(name) and value:
        return format_seconds(value)
    return f"{value:.4g}"
