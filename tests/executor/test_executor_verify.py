"""What ``verify`` lets pass: rounding widens the bound of gradients in narrow precisions only."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import executor_helpers as helpers
import executor_models as models
import pytest

from autopar.core.errors import TrainingError
from autopar.executor.verifying import verify
from autopar.executor.verifying.reference import StepResult, reference_step


@pytest.mark.parametrize(("precision", "passes"), [("float32", False), ("bfloat16", True)])
def test_rounding_excuses_narrow_gradients_only(
    precision: str, passes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def off(*given: Any, **named: Any) -> StepResult:
        step = reference_step(*given, **named)
        return replace(step, gradients={n: 1.1 * g for n, g in step.gradients.items()})

    monkeypatch.setattr(verify, "reference_step", off)
    monkeypatch.setattr(verify, "own_rounding", lambda context, reference: 0.5)
    task = models.mlp()
    plan = helpers.make_plan(task, dp=2, precision=precision)
    found = helpers.run(plan, task, tmp_path, verify=True, steps=1, warmup=0).verify
    assert found is not None
    assert found.grad_rel == pytest.approx(0.1 / 1.1, rel=0.1)
    assert found.rounding_rel == 0.5
    assert found.passed is passes


def test_a_step_that_is_not_finite_cannot_be_compared(tmp_path: Path) -> None:
    base = models.mlp()
    task = replace(base, loss=lambda output, target: base.loss(output, target) / 0.0)
    plan = helpers.make_plan(task, dp=2)
    with pytest.raises(TrainingError, match=r"cannot compare loss, .* in float32: they are not"):
        helpers.run(plan, task, tmp_path, steps=1, warmup=0, verify=True)
