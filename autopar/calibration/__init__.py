"""Calibrated constants and the primitives they enter: matrix products, streams, launches."""

from autopar.calibration.constants import NAMES, SPECS, Constants
from autopar.calibration.table import Calibration

__all__ = ["NAMES", "SPECS", "Calibration", "Constants"]
