"""Header facts and verdict words shared by run and plan pages."""

from __future__ import annotations

from typing import Any

from autopar.core.units import format_bytes, format_seconds
from autopar.reporting.model import Fact, Tone
from autopar.reporting.sections import Subject
from autopar.reporting.text import (
    bytes_pair,
    bytes_range,
    clean,
    moment,
    percent,
    quantity,
    seconds_range,
    signed_percent,
)
from autopar.results import VerifyResult

GOOD_ERROR, BAD_ERROR = 0.10, 0.25
FULL = 0.9


def error_tone(error: float | None) -> Tone:
    """Good within 10 %, bad beyond 25 %."""
    if error is None:
        return "plain"
    return "good" if abs(error) <= GOOD_ERROR else "warn" if abs(error) <= BAD_ERROR else "bad"


def memory_tone(used: float, capacity: float | None) -> Tone:
    """Good below 90 % of the capacity, bad above all of it."""
    if not capacity:
        return "plain"
    return "bad" if used > capacity else "warn" if used > FULL * capacity else "good"


def fits_words(subject: Subject) -> str:
    """``"fits: 1.2 of 11 GiB"``, from the measured peak when there is one."""
    capacity = subject.price.capacity_bytes if subject.price else None
    used = subject.measured_peak_bytes
    if used is None and subject.price:
        used = subject.price.peak_memory_bytes.value
    if used is None:
        return ""
    if not capacity:
        return f"peak memory {format_bytes(used)}"
    return f"{'fits' if used <= capacity else 'DOES NOT FIT'}: {bytes_pair(used, capacity)}"


def subject_words(subject: Subject, provenance: dict[str, Any]) -> tuple[str, ...]:
    """Task, plan, cluster, when and with which version."""
    plan = subject.plan
    words = [clean(plan.task.name), plan.name]
    words.append(clean(plan.cluster) or f"{plan.world_size} ranks")
    if provenance.get("created"):
        words.append(moment(provenance["created"]))
    if provenance.get("autopar"):
        words.append(f"autopar {clean(provenance['autopar'], 40)}")
    return tuple(words)


def step_facts(subject: Subject) -> list[Fact]:
    """Measured and predicted step time, and their error."""
    facts = []
    record, price = subject.record, subject.price
    if record and subject.measured_step_s is not None:
        quantiles = record.step_time_quantiles_s
        facts.append(
            Fact(
                label="Step time, measured",
                value=format_seconds(subject.measured_step_s),
                note=f"{format_seconds(quantiles['p10'])} to {format_seconds(quantiles['p90'])}, "
                f"{len(record.step_times_s)} steps",
            )
        )
    if price:
        error = subject.step_error
        note = seconds_range(price.step_time_s)
        facts.append(
            Fact(
                label="Step time, predicted",
                value=format_seconds(price.step_time_s.value),
                note=note if error is None else f"{signed_percent(error)}; {note}",
                tone=error_tone(error),
            )
        )
    return facts


def memory_facts(subject: Subject) -> list[Fact]:
    """Peak memory against the capacity."""
    price, used = subject.price, subject.measured_peak_bytes
    capacity = price.capacity_bytes if price else None
    if used is not None:
        note = f"of {format_bytes(capacity)}" if capacity else "largest over ranks"
        if price and subject.memory_error is not None:
            note += (
                f"; predicted {format_bytes(price.peak_memory_bytes.value)} "
                f"({signed_percent(subject.memory_error)})"
            )
        tone = memory_tone(used, capacity)
        return [Fact(label="Peak memory", value=format_bytes(used), note=note, tone=tone)]
    if price is None:
        return []
    estimate = price.peak_memory_bytes
    note = f"of {format_bytes(price.capacity_bytes)}; {bytes_range(estimate)}"
    tone = memory_tone(estimate.high, capacity)
    return [Fact(label="Peak memory", value=format_bytes(estimate.value), note=note, tone=tone)]


def rate_facts(subject: Subject) -> list[Fact]:
    """Throughput, MFU, energy and money, as far as known."""
    price, step = subject.price, subject.measured_step_s
    facts = []
    if step:
        facts.append(_rate(subject.plan.global_batch / step, "measured"))
    elif price:
        facts.append(_rate(price.samples_per_s, "predicted"))
    if price and price.mfu is not None:
        scale = price.step_time_s.value / step if step else 1.0
        facts.append(
            Fact(
                label="MFU",
                value=percent(price.mfu * scale),
                note="at the measured step time" if step else "predicted",
            )
        )
    if price and price.energy_joule:
        facts.append(
            Fact(
                label="Energy per step",
                value=quantity(price.energy_joule.value, "J"),
                note=f"predicted, {price.energy_joule.source}",
            )
        )
    if price and price.cost_usd:
        facts.append(
            Fact(
                label="Cost per 1000 steps",
                value=f"${price.cost_usd.value * 1000:,.2f}",
                note=f"predicted, {price.cost_usd.source}",
            )
        )
    return facts


def _rate(value: float, note: str) -> Fact:
    shown = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    return Fact(label="Throughput", value=f"{shown} samples/s", note=note)


def verify_fact(verify: VerifyResult | None) -> Fact:
    """Equal to one process, or not, or not checked."""
    if verify is None:
        return Fact(label="Equal to one process", value="not checked", note="run with --verify")
    worst = max(verify.loss_rel, verify.grad_rel, verify.weight_rel, verify.buffer_rel)
    note = f"largest difference {worst:.1e}, tolerance {verify.tolerance:.0e}"
    if verify.passed:
        return Fact(label="Equal to one process", value="yes", note=note, tone="good")
    return Fact(label="Equal to one process", value="NO", note=note, tone="bad")


def worst(tones: list[Tone]) -> Tone:
    """The most alarming of several tones."""
    order: tuple[Tone, ...] = ("plain", "good", "warn", "bad")
    return max(tones, key=order.index, default="plain")
