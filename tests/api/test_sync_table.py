"""The table of sync modes: measured beside declared."""

from __future__ import annotations

import torch
from torch import nn

from autopar.api.sync_table import COLUMNS, gradient_bytes, sync_table
from autopar.core.estimate import Estimate
from autopar.results import ConvergenceResult, ConvergenceRow
from autopar.tasks import Task


def row(name: str, sent: float, semantics: str = "lossy") -> ConvergenceRow:
    one = Estimate(value=1.5, low=1.0, high=2.0, source="measured")
    return ConvergenceRow(
        name=name,
        semantics=semantics,
        status="measured",
        steps=(30.0, None, 40.0),
        multiplier=one,
        time_to_loss_s=one,
        bytes_per_step=sent,
    )


def test_a_row_shows_what_was_sent_beside_what_is_declared() -> None:
    missed = ConvergenceRow(name="ps_async", semantics="stale", status="not reached")
    result = ConvergenceResult(
        task="t",
        key="k",
        ranks=4,
        global_batch=32,
        target_loss=1.0,
        window=5,
        probe_steps=100,
        seeds=3,
        rows=(row("all_reduce+fp16", 1.02 * 1500), row("hierarchical:10", 2300.0), missed),
    )
    lines = sync_table(result, 2000.0, nodes=2)
    assert len(lines) == 5
    assert all(line.count("|") == len(COLUMNS) + 1 for line in lines)
    # fp16 over 4 ranks: 2 * 3/4 of 1000 bytes; two ranks in a node: 2 * 1/2 of 2000 + 3000 / 10
    assert "| `all_reduce+fp16` | 30 to 40 | 1.50 |" in lines[2]
    assert lines[2].endswith("| +2.0% |")
    assert lines[3].endswith("| +0.0% |")
    assert "not reached" in lines[4]


def test_gradient_bytes_count_what_is_trained() -> None:
    def model() -> nn.Module:
        made = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        made[1].weight.requires_grad_(False)
        return made

    task = Task(
        name="t",
        model=model,
        batch=lambda n, g: (torch.zeros(n, 3), torch.zeros(n, 4)),
        loss=nn.functional.mse_loss,
        optimizer=lambda params: torch.optim.SGD(params, lr=0.1),
    )
    assert gradient_bytes(task) == 4 * (12 + 4 + 4)
