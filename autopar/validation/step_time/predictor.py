"""Predict step times of rows: fitted constants, residuals of near rows, and a range."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from autopar.calibration import SPECS
from autopar.calibration.constants import INDEX
from autopar.validation.rows.rows import Row
from autopar.validation.step_time.columns import columns
from autopar.validation.step_time.fit import Fit, fit, log_times, slopes_of
from autopar.validation.step_time.residual import NOISE_SD, Residuals, stack_of

Array = npt.NDArray[np.float64]

SPREAD = 2.34
"""Half-width of a 90 % range in standard deviations; 1.64 if residuals had normal tails."""
ASSUMED_NETWORK_SD = 0.7
"""Standard deviation of the logarithm of a network's rate that nothing states, where no run of the
software on the device was measured: twice or half of what the catalogue's machine has."""
FLOORS = ((3, 0.12), (1, 0.30), (0, 0.55))
"""Calibrated groups of the row's software stack -> least half-width of the range."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Step seconds of rows.

    Attributes:
        value_s: Best guess.
        low_s: Lower end of the 90 % range.
        high_s: Upper end.
    """

    value_s: Array
    low_s: Array
    high_s: Array


class Predictor:
    """Constants fitted to some rows, and what they leave over.

    Args:
        rows: Rows with measured step times; none for the default constants.
        corrected: Interpolate residuals of near rows too.
    """

    def __init__(self, rows: Sequence[Row], *, corrected: bool = True) -> None:
        known = tuple(row for row in rows if row.measured_s)
        self.fit = fit(known) if known else defaults()
        self.residuals: Residuals | None = None
        if known and corrected:
            self.residuals = Residuals.of(known, self.left_over(known))

    @classmethod
    def of(cls, found: Fit, residuals: Residuals | None) -> Predictor:
        """From parts that were fitted before."""
        predictor = cls(())
        predictor.fit, predictor.residuals = found, residuals
        return predictor

    def left_over(self, rows: Sequence[Row]) -> Array:
        """``log(formula) - log(measured)`` of measured rows."""
        measured = np.log([row.measured_s or np.nan for row in rows])
        return np.asarray(log_times(self.fit.logs(rows), columns(rows)) - measured)

    def predict(self, rows: Sequence[Row]) -> Prediction:
        """Step seconds of any rows."""
        if not rows:
            empty = np.zeros(0)
            return Prediction(value_s=empty, low_s=empty, high_s=empty)
        x, logs = columns(rows), self.fit.logs(rows)
        value = log_times(logs, x)
        slopes = slopes_of(logs, x)
        variance = self.fit.log_variance(rows, slopes) + NOISE_SD**2
        unsure = np.array([row.network_assumed and not self._groups(row) for row in rows])
        variance = variance + (ASSUMED_NETWORK_SD * slopes[:, INDEX["inter_share"]] * unsure) ** 2
        if self.residuals is not None:
            mean, own = self.residuals.correction(rows)
            value = value - mean
            variance = variance + own
        half = np.maximum(SPREAD * np.sqrt(variance), [self._floor(row) for row in rows])
        return Prediction(
            value_s=np.exp(value), low_s=np.exp(value - half), high_s=np.exp(value + half)
        )

    def _groups(self, row: Row) -> int:
        """Measured groups of the row's software stack."""
        return self.residuals.groups(stack_of(row)) if self.residuals else 0

    def _floor(self, row: Row) -> float:
        known = self._groups(row)
        return next(width for groups, width in FLOORS if known >= groups)


def defaults() -> Fit:
    """Default constants with the width of their priors."""
    names = tuple((spec.name, "global") for spec in SPECS if "global" in spec.widths)
    widths = [spec.widths["global"] for spec in SPECS if "global" in spec.widths]
    return Fit(names=names, offsets=np.zeros(len(names)), covariance=np.diag(np.square(widths)))
