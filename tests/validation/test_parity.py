"""Cells of the parity matrix at small size, the wrong and the left-out ones too."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest

from autopar.results import VerifyResult
from autopar.tasks.zoo.small import SMALL
from autopar.validation.parity.cases import (
    BFLOAT16,
    COMPOSED,
    DATA,
    EIGHT,
    FLOAT16,
    SCHEDULED,
    Case,
)
from autopar.validation.parity.matrix import Cell, Model, example, judge, table

NAMES = list(SMALL)
SEQUENCES = ["bert", "gpt", "llama", "transformer"]
ALL = (*DATA, *SCHEDULED, *COMPOSED, *EIGHT, *BFLOAT16, *FLOAT16)


def slices() -> dict[str, list[Case]]:
    """Every column once, on models that have what it divides; docs/parity.md has all cells."""
    found: dict[str, list[Case]] = {name: [] for name in NAMES}
    able = {"cp": SEQUENCES, "sp": SEQUENCES, "ep": ["moe"]}
    for index, case in enumerate(ALL):
        axis = "sp" if "sequence_parallel" in case.changes else ""
        axis = axis or next((axis for axis in ("cp", "ep") if axis in case.mesh), "")
        names = able.get(axis, NAMES)
        turned = sorted(names, key=lambda name, by=index: (NAMES.index(name) + by) % len(NAMES))
        found[min(turned, key=lambda name: len(found[name]))].append(case)
    return found


@cache
def model_of(name: str) -> Model:
    return example(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_slice_of_the_matrix(name: str) -> None:
    if name in (*SEQUENCES, "moe", "vit"):
        pytest.importorskip("transformers")
    model = model_of(name)
    for case in slices()[name]:
        cell = model.cell(case)
        assert cell.kind in ("exact", "within bound"), (case.name, cell)
        narrow = "precision" in case.changes
        assert narrow or cell.kind == "exact" or name == "efficientnet_b0", (case.name, cell)
    _check_space(model)


def test_slices_hold_every_column() -> None:
    found = slices()
    assert sum(map(len, found.values())) == len(ALL)
    assert min(map(len, found.values())) >= 2


def _check_space(model: Model) -> None:
    """Points that are unsupported are not in the plan space, all others are."""
    for case in (*DATA, *SCHEDULED, *COMPOSED, *EIGHT):
        reason = model.why_not(case)
        if case.offered:
            assert model.offers(case) == (reason is None), (case.name, reason)
        assert reason is None or case not in SCHEDULED


def test_an_offer_that_cannot_run_is_a_bad_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("mlp")
    monkeypatch.setattr(model, "why_not", lambda case: "no")
    cell = model.cell(DATA[0])
    assert (cell.kind, cell.good) == ("failed", False)
    assert "offers it" in cell.reason


def test_a_plan_that_cannot_run_is_a_bad_cell() -> None:
    odd = replace(DATA[0], changes={"precision": "float8"})
    cell = model_of("mlp").cell(odd)
    assert cell.kind == "failed"
    assert not cell.good


@pytest.mark.parametrize(
    ("differences", "kind"),
    [
        ({"grad_rel": 9e-6}, "exact"),
        ({"grad_rel": 5e-4}, "within bound"),
        ({"grad_rel": 5e-3}, "differs"),
        ({"grad_rel": 5e-4, "loss_rel": 2e-5}, "differs"),
    ],
)
def test_rounding_explains_gradients_only(differences: dict[str, float], kind: str) -> None:
    zero = dict.fromkeys(("loss_rel", "grad_rel", "weight_rel", "buffer_rel"), 0.0)
    passed = kind == "exact"
    found = VerifyResult(passed=passed, tolerance=1e-5, rounding_rel=1e-3, **zero | differences)
    assert judge(found).kind == kind


def test_reasons_stand_below_the_table() -> None:
    cells = {
        "dp2": Cell(kind="exact", difference=0.0),
        "uneven 3+5": Cell(kind="unsupported", reason="no"),
        "ps_sync": Cell(kind="differs", difference=0.1, reason="far"),
    }
    text = table({"mlp": cells}, DATA[:3])
    assert "| mlp | 0e+00 | - (1) | **x** 1e-01 (2) |" in text
    assert "1. unsupported: no" in text
