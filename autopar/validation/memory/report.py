"""Score the memory model on rows it has not seen, derive its range, write the page about it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from autopar.calibration.memory import MEMORY_SPECS, MemoryConstants
from autopar.core.units import GIB
from autopar.validation.memory.facts import HABITS
from autopar.validation.memory.fit import fit_memory, usable_rows
from autopar.validation.memory.oom import NOT_MEMORY, unjudged, usable_bytes
from autopar.validation.memory.peak import peak_memory, predict
from autopar.validation.rows.rows import Row
from autopar.validation.step_time.held_out import fold_of

Array = npt.NDArray[np.float64]

RANGE_TAIL = 0.05
"""Part of held-out peaks on either side of the range."""
FEW = 20
"""Below this many held-out peaks their quantiles say nothing; the assumed range stays."""


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Predictions of rows by fits that saw no row of their group.

    Attributes:
        rows: The rows, in the order of the arrays.
        value: Central estimate in bytes as the source counts.
        whole: The same for the whole device.
        usable: Bytes that a device leaves.
    """

    rows: tuple[Row, ...]
    value: Array
    whole: Array
    usable: Array


@dataclass(frozen=True, slots=True, kw_only=True)
class PeakScore:
    """Relative errors of predicted peaks, all as fractions.

    Attributes:
        n: Peaks.
        median: Of the absolute error.
        mean: Of the absolute error.
        p90: Of the absolute error.
        worst_under: The most that a peak was predicted too low, negative.
        under: Part of the peaks predicted more than 10 % too low.
        upper_under: The same for the upper end of the range.
        covered: Part of the peaks inside the range.
    """

    n: int
    median: float
    mean: float
    p90: float
    worst_under: float
    under: float
    upper_under: float
    covered: float


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomeScore:
    """Verdicts on runs that fitted or not.

    Attributes:
        failed: Runs that failed for memory.
        caught: Of those, called infeasible.
        ran: Runs that fitted.
        passed: Of those, called feasible.
    """

    failed: int
    caught: int
    ran: int
    passed: int

    @property
    def balanced(self) -> float:
        """Mean of both shares; NaN without rows of one kind."""
        if not self.failed or not self.ran:
            return float("nan")
        return (self.caught / self.failed + self.passed / self.ran) / 2


def hold_out(rows: Sequence[Row], *, by_family: bool = False) -> HeldOut:
    """Predict every usable row by a fit without its group.

    Args:
        rows: Complete rows.
        by_family: Leave out whole families instead of groups of model, device and count.
    """
    chosen = usable_rows(rows)
    keys = [row.family if by_family else row.group for row in chosen]
    part = {key: key if by_family else str(fold_of(key)) for key in keys}
    value, whole = np.zeros(len(chosen)), np.zeros(len(chosen))
    for fold in sorted(set(part.values())):
        inside = [i for i, key in enumerate(keys) if part[key] == fold]
        held = [chosen[i] for i in inside]
        c = fit_memory([row for row, key in zip(chosen, keys, strict=True) if part[key] != fold])
        value[inside] = predict(c, held)
        whole[inside] = predict(c, held, whole_device=True)
    return HeldOut(rows=tuple(chosen), value=value, whole=whole, usable=usable_bytes(chosen))


def calibrate(rows: Sequence[Row]) -> MemoryConstants:
    """Fit the constants on all rows, and the range on what held-out rows missed by.

    Args:
        rows: Complete rows.
    """
    held = hold_out(rows)
    counts = Counter(row.family for row in held.rows if row.measured_memory_bytes is not None)
    outcomes = Counter(row.family for row in held.rows if row.measured_memory_bytes is None)
    ratio = f"{RANGE_TAIL:.0%} and {1 - RANGE_TAIL:.0%} quantiles of measured over predicted"
    about = {
        "peaks": dict(sorted(counts.items())),
        "outcomes": dict(sorted(outcomes.items())),
        "fingerprints": sorted({row.fingerprint for row in held.rows}),
        "range": f"{ratio}, groups held out, {sum(counts.values())} peaks",
    }
    low, high = unseen_range(hold_out(rows, by_family=True))
    fitted = replace(ranged(fit_memory(rows), held), fitted_on=about)
    return replace(fitted, unseen_low_factor=low, unseen_high_factor=high)


def unseen_range(held: HeldOut) -> tuple[float, float]:
    """Tails of measured over predicted peaks, every family with the same weight.

    Args:
        held: Predictions by fits that saw no row of the family.
    """
    found = [
        (row.measured_memory_bytes / value, row.family)
        for row, value in zip(held.rows, held.value, strict=True)
        if row.measured_memory_bytes is not None
    ]
    assumed = MemoryConstants.defaults()
    if len(found) < FEW:
        return assumed.unseen_low_factor, assumed.unseen_high_factor
    counts = Counter(family for _, family in found)
    found.sort()
    reached = np.cumsum([1 / counts[family] for _, family in found]) / len(counts)
    low, high = (
        found[int(np.searchsorted(reached, tail))][0] for tail in (RANGE_TAIL, 1 - RANGE_TAIL)
    )
    return min(float(low), 1.0), max(float(high), 1.0)


def ranged(
    fitted: MemoryConstants, held: HeldOut, *, without: int | None = None
) -> MemoryConstants:
    """Constants with the range of held-out peaks.

    Args:
        fitted: Constants; they keep their range where there are too few peaks.
        held: Held-out predictions.
        without: A fold whose peaks do not count.
    """
    ratios = [
        row.measured_memory_bytes / value
        for row, value in zip(held.rows, held.value, strict=True)
        if row.measured_memory_bytes is not None and fold_of(row.group) != without
    ]
    if len(ratios) < FEW:
        return fitted
    low, high = np.quantile(ratios, [RANGE_TAIL, 1 - RANGE_TAIL])
    return fitted.with_range(min(float(low), 1.0), max(float(high), 1.0))


def peak_scores(held: HeldOut, c: MemoryConstants) -> dict[str, PeakScore]:
    """Scores by family and over all (``ALL``); the range is that of ``c``."""
    families = sorted({r.family for r in held.rows if r.measured_memory_bytes is not None})
    return {name: _peak_score(held, c, name) for name in [*families, "ALL"]}


def _peak_score(held: HeldOut, c: MemoryConstants, family: str) -> PeakScore:
    inside = [
        i
        for i, row in enumerate(held.rows)
        if row.measured_memory_bytes is not None and family in (row.family, "ALL")
    ]
    rows = [held.rows[i] for i in inside]
    measured = np.array([row.measured_memory_bytes for row in rows], float)
    value = held.value[inside]
    central, low, high = peak_memory(rows, c)
    low, high = low / central * value, high / central * value  # spans of unstated facts too
    error = value / measured - 1
    return PeakScore(
        n=len(rows),
        median=float(np.median(abs(error))),
        mean=float(np.mean(abs(error))),
        p90=float(np.quantile(abs(error), 0.9)),
        worst_under=float(min(0.0, error.min())),
        under=float(np.mean(error < -0.1)),
        upper_under=float(np.mean(high / measured < 0.9)),
        covered=float(np.mean((low <= measured) & (measured <= high))),
    )


def outcome_scores(held: HeldOut, factor: float) -> dict[str, OutcomeScore]:
    """Verdicts with predictions times ``factor``.

    Returns:
        Scores by family that prints failures, over these (``ALL``), and over runs of the other
        families (``others``), which all ran.
    """
    families = sorted({row.family for row in held.rows if row.out_of_memory})
    fits = held.whole * factor <= held.usable
    scores = {}
    for name in [*families, "ALL", "others"]:
        wanted = {"ALL": families, "others": None}.get(name, [name])
        inside = [
            (row.out_of_memory, bool(fit))
            for row, fit in zip(held.rows, fits, strict=True)
            if (row.family not in families if wanted is None else row.family in wanted)
        ]
        scores[name] = OutcomeScore(
            failed=sum(failed for failed, _ in inside),
            caught=sum(failed and not fit for failed, fit in inside),
            ran=sum(not failed for failed, _ in inside),
            passed=sum(fit and not failed for failed, fit in inside),
        )
    return scores


def markdown(rows: Sequence[Row]) -> str:
    """The page ``docs/validation-memory.md``, from the rows alone.

    Args:
        rows: Complete rows.
    """
    held = hold_out(rows)
    c = calibrate(rows)
    blind = hold_out(rows, by_family=True)
    parts = [
        "# Peak memory against published runs\n",
        "Written by `scripts/validate_published --markdown`. Every figure is of rows whose group "
        "(model, device, count) no fit had seen. The facts in the last table were read in the "
        "frameworks' code, or inferred where it says so while looking at these rows, so the "
        "figures are somewhat optimistic for a framework that is not listed.\n",
        "## Peaks\n",
        _peak_table(held, c),
        f"\nRange: {c.low_factor:.2f} to {c.high_factor:.2f} times the central value, the "
        f"{RANGE_TAIL:.0%} and {1 - RANGE_TAIL:.0%} quantiles of held-out rows; where a source "
        "does not state recompute it spans none to full. Predicted without any row of the family: "
        f"median {peak_scores(blind, c)['ALL'].median:.1%}, measured over predicted "
        f"{c.unseen_low_factor:.2f} to {c.unseen_high_factor:.2f} with equal weight of families. "
        "That is the range of `autopar plan`, whose own runs on accelerators are not among these "
        "rows; it uses the constants below and decides by the upper end.\n",
        "## Fits or fails\n",
        _outcome_table(held, c),
        _outcome_text(rows, held, c),
        "## Largest misses\n",
        _misses(held),
        "\n## Not judged\n",
        _skipped(rows),
        "\n## Constants\n",
        _constants_table(c),
        "\n## What frameworks keep\n",
        _habits_table(),
    ]
    return "\n".join(parts)


def _table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = ["---"] * len(header)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *lines)) + "\n"


def _peak_table(held: HeldOut, c: MemoryConstants) -> str:
    header = (
        "family", "n", "median", "mean", "p90", "worst under", "> 10 % under",
        "upper end > 10 % under", "in range",
    )  # fmt: skip
    lines = [
        [
            name,
            str(s.n),
            *(f"{x:.1%}" for x in (s.median, s.mean, s.p90, s.worst_under)),
            *(f"{x:.0%}" for x in (s.under, s.upper_under, s.covered)),
        ]
        for name, s in peak_scores(held, c).items()
    ]
    return _table(header, lines)


def _outcome_table(held: HeldOut, c: MemoryConstants) -> str:
    upper, central = outcome_scores(held, c.high_factor), outcome_scores(held, 1.0)
    lines = [
        [
            name,
            f"{s.caught} of {s.failed}",
            f"{s.passed} of {s.ran}",
            "-" if np.isnan(s.balanced) else f"{s.balanced:.1%}",
            "-" if np.isnan(s.balanced) else f"{central[name].balanced:.1%}",
        ]
        for name, s in upper.items()
    ]
    header = ("family", "failures caught", "runs passed", "balanced", "balanced, central value")
    return _table(header, lines)


def _outcome_text(rows: Sequence[Row], held: HeldOut, c: MemoryConstants) -> str:
    score = outcome_scores(held, c.high_factor)["ALL"]
    other = sum(reason == NOT_MEMORY for reason in unjudged(rows).values())
    shares = (score.caught / max(1, score.failed + other), score.passed / max(1, score.ran))
    return (
        "\nThe verdict uses the upper end of the range against the device's memory less what the "
        "driver keeps; the central value is shown beside it. Runs of other families are those "
        "whose source states the whole plan; most fill the device on purpose. "
        f"{other} failures are not memory (below); were they counted as missed, the balanced "
        f"accuracy would be {sum(shares) / 2:.1%}.\n"
    )


def _misses(held: HeldOut, count: int = 8) -> str:
    found = [
        (value / row.measured_memory_bytes - 1, row)
        for row, value in zip(held.rows, held.value, strict=True)
        if row.measured_memory_bytes is not None
    ]
    found.sort(key=lambda pair: -abs(pair[0]))
    lines = [
        [row.id, f"{row.measured_memory_bytes / GIB:.1f}", f"{error:+.0%}", row.recompute]
        for error, row in found[:count]
        if row.measured_memory_bytes is not None
    ]
    return _table(("run", "measured, GiB", "error", "recompute"), lines)


def _skipped(rows: Sequence[Row]) -> str:
    reasons: dict[str, list[str]] = {}
    for name, reason in unjudged(rows).items():
        reasons.setdefault(reason, []).append(name)
    return "\n".join(f"- {reason}: {', '.join(names)}" for reason, names in reasons.items()) + "\n"


def _constants_table(c: MemoryConstants) -> str:
    lines = [
        [f"`{s.name}`", s.unit, _short(s.default), _short(getattr(c, s.name)), s.text, s.source]
        for s in MEMORY_SPECS
    ]
    return _table(("constant", "unit", "default", "fitted", "meaning", "source of default"), lines)


def _short(value: float) -> str:
    return f"{value:.3g}"


def _habits_table() -> str:
    lines = [[name, habits.source] for name, habits in HABITS.items()]
    return _table(("framework", "facts and their source"), lines)
