"""Fit the constants to published rows: maximum a posteriori, robust, hierarchical.

A constant of a row is its default times factors for what the row belongs to (all rows, its
architecture, device, framework, framework on device); the logarithms of the factors have normal
priors. Residuals of log step time are Student-t, so that a run that was slow for no modelled
reason does not bend the constants. Solved by damped Gauss-Newton; the derivative by a factor is
that of the row's constant.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from autopar.calibration import SPECS, Calibration, Constants
from autopar.calibration.constants import NAMES, Scope
from autopar.calibration.table import architecture
from autopar.validation.rows.rows import Row
from autopar.validation.step_time.columns import Columns, columns
from autopar.validation.step_time.formula import step_seconds

Array = npt.NDArray[np.float64]

FREEDOM = 4.0
"""Degrees of freedom of the residuals' Student distribution."""
SCALE = 0.05
"""Its scale: step times of one plan differ by 3 to 9 % between runs."""
FAMILY_ROWS = 40.0
"""Rows of one source beyond which its weight grows with the root of their number only."""
STEPS = 14
"""Gauss-Newton iterations; the objective moves by less than 1e-4 after about ten."""
NUDGE = 1e-3
"""Relative step of the numerical derivative."""


def keys_of(row: Row) -> dict[Scope, str]:
    """Scope -> key of its factor for a row."""
    device = row.platform.device
    return {
        "global": "global",
        "architecture": f"architecture:{architecture(device)}",
        "device": f"device:{device}",
        "framework": f"framework:{row.framework}",
        "pair": f"pair:{row.framework}@{device}",
    }


class Design:
    """Which factors enter the constants of which rows.

    Args:
        rows: Rows to fit.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        names: dict[tuple[str, str], int] = {}
        widths: list[float] = []
        owners: list[int] = []
        members: list[list[int]] = []
        keys = [keys_of(row) for row in rows]
        for position, spec in enumerate(SPECS):
            for scope, width in spec.widths.items():
                for index, mine in enumerate(keys):
                    name = (spec.name, mine[scope])
                    if name not in names:
                        names[name] = len(names)
                        widths.append(width)
                        owners.append(position)
                        members.append([])
                    members[names[name]].append(index)
        self.names = list(names)
        self.precision = 1.0 / np.square(np.array(widths))
        self.owner = np.array(owners, dtype=np.intp)
        self.member = np.zeros((len(rows), len(names)))
        for column, indices in enumerate(members):
            self.member[indices, column] = 1.0

    def logs(self, offsets: Array) -> Array:
        """Logarithms of the constants ``[row, constant]``."""
        defaults = np.log([spec.default for spec in SPECS])
        result = np.tile(defaults, (self.member.shape[0], 1))
        for constant in range(len(SPECS)):
            mine = self.owner == constant
            result[:, constant] += self.member[:, mine] @ offsets[mine]
        return result


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Fitted factors and how sure they are.

    Attributes:
        names: ``(constant, key)`` of every factor.
        offsets: Their logarithms.
        covariance: Of the logarithms.
    """

    names: tuple[tuple[str, str], ...]
    offsets: Array
    covariance: Array

    @cached_property
    def _index(self) -> dict[tuple[str, str], int]:
        return {name: i for i, name in enumerate(self.names)}

    def calibration(self, fitted_on: dict[str, object] | None = None) -> Calibration:
        """The factors as a table."""
        factors: dict[str, dict[str, float]] = {}
        for (constant, key), offset in zip(self.names, self.offsets, strict=True):
            factors.setdefault(constant, {})[key] = float(np.exp(offset))
        return Calibration(factors=factors, fitted_on=fitted_on or {})

    def logs(self, rows: Sequence[Row]) -> Array:
        """Logarithms of the constants of any rows; factors that were not fitted are 1."""
        result = np.tile(np.log([spec.default for spec in SPECS]), (len(rows), 1))
        for index, row in enumerate(rows):
            keys = keys_of(row)
            for position, spec in enumerate(SPECS):
                for scope in spec.widths:
                    known = self._index.get((spec.name, keys[scope]))
                    if known is not None:
                        result[index, position] += self.offsets[known]
        return result

    def log_variance(self, rows: Sequence[Row], slopes: Array) -> Array:
        """Variance of log time from the constants: fitted factors, priors of unknown ones.

        Args:
            rows: Any rows.
            slopes: Derivative of log time by the logarithm of each constant ``[row, constant]``.
        """
        variance = np.zeros(len(rows))
        for index, row in enumerate(rows):
            keys = keys_of(row)
            weights: dict[int, float] = {}
            for position, spec in enumerate(SPECS):
                for scope, width in spec.widths.items():
                    known = self._index.get((spec.name, keys[scope]))
                    if known is None:
                        variance[index] += (slopes[index, position] * width) ** 2
                    else:
                        weights[known] = weights.get(known, 0.0) + slopes[index, position]
            chosen = np.array(list(weights), dtype=np.intp)
            vector = np.array(list(weights.values()))
            variance[index] += vector @ self.covariance[np.ix_(chosen, chosen)] @ vector
        return variance


def log_times(logs: Array, x: Columns) -> Array:
    """Logarithm of the step time."""
    return np.log(step_seconds(Constants.of_logs(logs), x).total_s)


def slopes_of(logs: Array, x: Columns) -> Array:
    """Derivative of log time by the logarithm of each constant ``[row, constant]``."""
    base = log_times(logs, x)
    result = np.empty_like(logs)
    for position in range(len(NAMES)):
        moved = logs.copy()
        moved[:, position] += NUDGE
        result[:, position] = (log_times(moved, x) - base) / NUDGE
    return result


def row_weights(rows: Sequence[Row]) -> Array:
    """How much each row counts: completeness, and large sources not in proportion."""
    counts = Counter(row.family for row in rows)
    return np.array(
        [row.weight * min(1.0, (FAMILY_ROWS / counts[row.family]) ** 0.5) for row in rows]
    )


def fit(rows: Sequence[Row]) -> Fit:
    """Fit the constants to rows with a measured step time."""
    design, x = Design(rows), columns(rows)
    measured = np.log([row.measured_s or np.nan for row in rows])
    weight = row_weights(rows)
    offsets = np.zeros(len(design.names))
    best = _objective(design, offsets, x, measured, weight)
    normal = np.diag(design.precision)
    for _ in range(STEPS):
        logs = design.logs(offsets)
        residual = log_times(logs, x) - measured
        robust = weight * (FREEDOM + 1) / (FREEDOM * SCALE**2 + residual**2)
        jacobian = design.member * slopes_of(logs, x)[:, design.owner]
        weighted = jacobian * robust[:, None]
        normal = jacobian.T @ weighted + np.diag(design.precision)
        gradient = weighted.T @ residual + design.precision * offsets
        step = np.linalg.solve(normal, gradient)
        damping = 1.0
        while damping > 1e-3:
            trial = offsets - damping * step
            value = _objective(design, trial, x, measured, weight)
            if value < best:
                break
            damping /= 2
        else:
            break
        improved = best - value
        offsets, best = trial, value
        if improved < 1e-4 * abs(best):
            break
    return Fit(names=tuple(design.names), offsets=offsets, covariance=np.linalg.inv(normal))


def _objective(
    design: Design, offsets: Array, x: Columns, measured: Array, weight: Array
) -> float:
    """Negative logarithm of the posterior, up to a constant."""
    residual = log_times(design.logs(offsets), x) - measured
    if not np.isfinite(residual).all():
        return np.inf
    loss = (FREEDOM + 1) / 2 * np.log1p(residual**2 / (FREEDOM * SCALE**2))
    return float((weight * loss).sum() + (design.precision * offsets**2).sum() / 2)
