"""Receives are posted ahead of their use where a core is free to take messages in."""

from __future__ import annotations

from pathlib import Path

import executor_helpers as helpers
import executor_models as models
import pytest
import torch

from autopar.executor.stages import mailbox
from autopar.executor.stages.mailbox import LOOKAHEAD, lookahead


@pytest.mark.parametrize(
    ("cores", "threads", "expected"), [(1, 1, 0), (2, 1, 0), (3, 1, LOOKAHEAD), (3, 2, 0)]
)
def test_receives_are_posted_ahead_where_a_core_is_free(
    cores: int, threads: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mailbox, "usable_cores", lambda: cores)
    assert lookahead(torch.device("cpu"), 2, threads) == expected
    assert lookahead(torch.device("cuda", 0), 2, threads) == LOOKAHEAD


@pytest.mark.parametrize("cores", [1, 64])
@pytest.mark.parametrize("schedule", ["1f1b", "zero_bubble"])
def test_posted_ahead_or_not_the_step_is_the_same(
    cores: int, schedule: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mailbox, "usable_cores", lambda: cores)
    task = models.knotted()
    plan = helpers.make_plan(task, pp=2, schedule=schedule, microbatches=4)
    record = helpers.run(plan, task, tmp_path, verify=True, steps=2, warmup=0)
    assert record.verify is not None
    assert record.verify.passed, record.verify
