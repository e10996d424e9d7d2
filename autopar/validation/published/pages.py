"""The page that shows how far step times of published runs are predicted, and why some are not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from autopar.validation.published.causes import CAUSES
from autopar.validation.published.validate import Validation, choosing, validate
from autopar.validation.rows.rows import Row
from autopar.validation.step_time.predictor import Predictor
from autopar.validation.step_time.score import ChoiceScore, FamilyScore, family_scores

FEW = (20, 40)
"""Calibration rows of a source."""
DRAWS = 2
ENOUGH = 30
"""Rows a source needs to be split into calibration and test rows."""
TARGETS = {"vts": "mean 6, median 4", "vtm": "mean 6, median 4"}
OTHERS = {
    "vts": "vTrain 8.4 mean; calculon 38.9",
    "vtm": "vTrain 14.7 mean; calculon 15.3",
    "amp": "AMP 48 to 49 mean",
    "kor": "calculon 3.7 mean (its own table)",
    "sc21": "calculon 10.3 mean",
    "sailor": "Sailor 8.9 mean (homogeneous rows)",
}
"""Errors of known models on the same rows, percent, as published or rerun by others."""

LOOKED_UP = (
    "What a framework does unless told (gradients exchanged as float32, softmax that is not "
    "fused, batches binned by length, one gather a step, exchange beside the backward pass, "
    "autocast) was read in its code or documentation, or is known of it, and was entered after "
    "its rows missed; so was what networks without RDMA carry. A framework nobody looked up has "
    "none of these: AMP's mean was 36 before."
)


def time_page(csv: Path, found: Validation, progress: Callable[[str, int, int], None]) -> str:
    """``docs/validation.md``, from the rows alone.

    Args:
        csv: The rows.
        found: Their cross-validated predictions.
        progress: ``progress(stage, done, total)``.
    """
    zero = validate(csv, zero_shot=True)
    few = {count: few_shot(found.rows, count, progress) for count in FEW}
    return "\n".join(
        [
            "# Step time against published runs",
            "",
            "Written by `scripts/validate_published CSV --markdown docs`. No row is priced by a "
            "fit that saw its group (model, device, count); 10 folds. Errors in percent. The "
            "order of the formula's terms, the priors and the correction's lengths were chosen "
            "while looking at these rows, so the figures are somewhat optimistic.",
            "",
            _family_table(found, zero, few),
            "",
            "zero: default constants and the catalogue, nothing fitted; the defaults are global "
            "values of an earlier fit to these rows, so this column is optimistic. 20, 40: the "
            "source left out of the fit but for that many of its rows "
            f"(mean of {DRAWS} draws, median error "
            "of the rest). Runs of one plan on another software release differ by 3.3 to 3.6 % "
            "in the median: nothing below that means anything.",
            "",
            "## A source the fit never saw",
            "",
            unseen_table(unseen_sources(found.rows, progress)),
            "",
            LOOKED_UP,
            "",
            "## Choosing",
            "",
            _choice_table(found.choices),
            "",
            mixed_line(found.choices),
            "",
            "## Ranges",
            "",
            f"The 90 % range holds {_covered(found):.0%} of all held-out rows; by source in the "
            "last column. It is too narrow where a device and framework have one or two groups.",
            "",
            "## Why sources miss",
            "",
            *(f"- **{name}**: {text}." for name, text in CAUSES.items()),
            "",
        ]
    )


def few_shot(
    rows: Sequence[Row], count: int, progress: Callable[[str, int, int], None]
) -> dict[str, float]:
    """Median error of a source's rows when ``count`` of them calibrate, by source."""
    known = [row for row in rows if row.measured_s]
    result: dict[str, float] = {}
    families = sorted({row.family for row in known})
    for position, family in enumerate(families):
        mine = [row for row in known if row.family == family]
        if len(mine) < max(ENOUGH, count + 10):
            continue
        others = [row for row in known if row.family != family]
        errors = []
        for draw in range(DRAWS):
            order = np.random.default_rng(draw).permutation(len(mine))
            shown = [mine[i] for i in order[:count]]
            rest = [mine[i] for i in order[count:]]
            value = Predictor([*others, *shown]).predict(rest).value_s
            measured = np.array([row.measured_s or np.nan for row in rest])
            errors.append(float(np.median(np.abs(value / measured - 1))))
        result[family] = float(np.mean(errors))
        progress(f"{count} rows", position + 1, len(families))
    return result


def unseen_sources(
    rows: Sequence[Row], progress: Callable[[str, int, int], None]
) -> list[FamilyScore]:
    """Errors of every large source by a fit of all the others: what a new user meets."""
    known = [row for row in rows if row.measured_s]
    counts = Counter(row.family for row in known)
    large = sorted(family for family, count in counts.items() if count >= ENOUGH)
    scores = []
    for position, family in enumerate(large):
        mine = [row for row in known if row.family == family]
        seen = Predictor([row for row in known if row.family != family])
        scores.append(family_scores(mine, seen.predict(mine))[0])
        progress("unseen sources", position + 1, len(large))
    return scores


def unseen_table(scores: Sequence[FamilyScore]) -> str:
    """Markdown table of :func:`unseen_sources`."""
    lines = ["| source | n | median | mean | p90 | in range | mean <= 20 |", "|" + "---|" * 7]
    for score in scores:
        figures = (score.median, score.mean, score.p90)
        cells = [score.family, str(score.rows), *(f"{100 * x:.1f}" for x in figures)]
        cells += [f"{score.covered:.0%}", "met" if score.mean <= 0.2 else "missed"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _family_table(found: Validation, zero: Validation, few: dict[int, dict[str, float]]) -> str:
    by_zero = {score.family: score for score in zero.families}
    head = "| source | n | median | mean | p90 | worst | zero: median / mean |"
    head += "".join(f" {count} rows |" for count in few)
    lines = [head + " known models, % | target | in range |"]
    lines.append("|" + "---|" * (10 + len(few)))
    for score in found.families:
        blind = by_zero[score.family]
        figures = (score.median, score.mean, score.p90, score.worst)
        cells = [score.family, str(score.rows), *(f"{100 * x:.1f}" for x in figures)]
        cells.append(f"{100 * blind.median:.1f} / {100 * blind.mean:.1f}")
        for table in few.values():
            cells.append(f"{100 * table[score.family]:.1f}" if score.family in table else "")
        cells += [OTHERS.get(score.family, ""), _target(score.family, figures)]
        lines.append("| " + " | ".join([*cells, f"{score.covered:.0%}"]) + " |")
    return "\n".join(lines)


def _target(family: str, figures: tuple[float, ...]) -> str:
    median, mean, p90, _ = figures
    if family == "all":
        return ""
    if family in TARGETS:
        return "met" if mean <= 0.06 and median <= 0.04 else f"missed ({TARGETS[family]})"
    return "met" if median <= 0.06 and p90 <= 0.15 else "missed (median 6, p90 15)"


def _choice_table(choices: Sequence[ChoiceScore]) -> str:
    lines = [
        "| source | sets | regret mean | p90 | best in top 3 | Kendall tau | rule: mean | p90 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    families = sorted({choice.family for choice in choices})
    for family in [*families, "all"]:
        some = [c for c in choices if family in (c.family, "all")]
        if not some:
            continue
        s = choosing(some)
        lines.append(
            f"| {family} | {s['groups']} | {s['regret_mean']:.1%} | {s['regret_p90']:.1%} "
            f"| {s['best_in_top3']:.0%} | {s['kendall_tau_median']:.2f} "
            f"| {s['rule_regret_mean']:.1%} | {s['rule_regret_p90']:.1%} |"
        )
    lines.append("")
    lines.append(
        "Sets of at least 5 measured plans of the same model, devices, batch, precision and "
        "framework; rule: most data parallel, then the largest microbatch."
    )
    return "\n".join(lines)


def mixed_line(choices: Sequence[ChoiceScore]) -> str:
    """How far the chosen plan of every mixed cluster is from the best measured one."""
    mixed = [c for c in choices if "+" in c.device]
    if not mixed:
        return "No set of plans was measured on a mixed cluster."
    parts = [
        f"{c.devices} devices of {c.device}, {c.model}: the chosen one of {c.plans} measured "
        f"plans takes {c.regret:.1%} longer than the best (target 10 %)"
        for c in mixed
    ]
    return "Mixed clusters: " + "; ".join(parts) + "."


def _covered(found: Validation) -> float:
    return next((score.covered for score in found.families if score.family == "all"), 0.0)
