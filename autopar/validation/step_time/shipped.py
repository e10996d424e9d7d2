"""The fit that comes with autopar: factors, and residuals of rows whose licence allows it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from autopar.calibration import Calibration
from autopar.calibration.table import SHIPPED
from autopar.core.io import check_schema, read_json, write_document
from autopar.validation.rows.rows import Row
from autopar.validation.step_time.fit import Fit
from autopar.validation.step_time.predictor import Predictor
from autopar.validation.step_time.residual import (
    Residuals,
    plan_features,
    shape_features,
    stack_from,
    stack_of,
)

SCHEMA = "autopar.validation_anchors"
SCHEMA_VERSION = 1
ANCHORS = Path(__file__).with_name("anchors.json")
WITHHELD = frozenset({"amp", "bert", "ddl"})
"""Sources without a licence that allows their figures in a package; only constants fitted with
them are here."""
DIGITS = 4


def ship(rows: Sequence[Row], fitted_on: dict[str, Any]) -> None:
    """Fit all rows and write the two files."""
    known = [row for row in rows if row.measured_s]
    predictor = Predictor(known, corrected=False)
    predictor.fit.calibration(fitted_on).save(SHIPPED)
    left = predictor.left_over(known)
    stacks: dict[str, dict[str, Any]] = {}
    for row, residual in zip(known, left, strict=True):
        if row.family in WITHHELD:
            continue
        stack = stacks.setdefault(
            stack_of(row), {"groups": set(), "shapes": [], "plans": [], "residuals": []}
        )
        stack["groups"].add(row.group)
        stack["shapes"].append([round(x, DIGITS) for x in shape_features(row)])
        stack["plans"].append([round(x, DIGITS) for x in plan_features(row)])
        stack["residuals"].append(round(float(residual), DIGITS))
    body = {
        "stacks": {k: {**v, "groups": len(v["groups"])} for k, v in stacks.items()},
        "fingerprints": sorted(row.fingerprint for row in known),
    }
    write_document(ANCHORS, SCHEMA, SCHEMA_VERSION, body)


@cache
def _anchors() -> dict[str, Any]:
    data = read_json(ANCHORS)
    check_schema(data, ANCHORS, SCHEMA, SCHEMA_VERSION)
    return data


def seen(row: Row) -> bool:
    """True when the shipped fit saw this very configuration."""
    return row.fingerprint in _seen()


@cache
def _seen() -> frozenset[str]:
    return frozenset(_anchors()["fingerprints"])


def shipped_predictor() -> Predictor:
    """The shipped fit, ready to predict."""
    calibration = Calibration.shipped()
    pairs = [
        ((constant, key), float(np.log(factor)))
        for constant, known in calibration.factors.items()
        for key, factor in known.items()
    ]
    fit = Fit(
        names=tuple(name for name, _ in pairs),
        offsets=np.array([offset for _, offset in pairs]),
        covariance=np.zeros((len(pairs), len(pairs))),
    )
    stacks = {
        name: stack_from(
            np.array(stack["shapes"]),
            np.array(stack["plans"]),
            np.array(stack["residuals"]),
            int(stack["groups"]),
        )
        for name, stack in _anchors()["stacks"].items()
    }
    return Predictor.of(fit, Residuals(stacks))
