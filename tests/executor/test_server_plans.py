"""Plans with parameter servers, run by the executor."""

from __future__ import annotations

from pathlib import Path

import executor_helpers as helpers
import executor_models as models
import pytest


@pytest.mark.parametrize(
    ("sync", "dp", "clip"),
    [("ps_sync", 2, None), ("ps_sync:1", 2, 0.05), ("ps_sync", 4, 0.05)],
)
@pytest.mark.parametrize("name", ["mlp", "knotted", "unet"])
def test_synchronous_servers_equal_one_process(name, sync, dp, clip, tmp_path: Path) -> None:
    task = getattr(models, name)()
    traced = helpers.traced_of(task)
    plan = helpers.make_plan(task, traced=traced, dp=dp, sync=sync, clip_norm=clip, microbatches=2)
    record = helpers.run(plan, task, tmp_path, verify=True, steps=3)
    assert record.verify is not None
    assert record.verify.passed, record.verify


@pytest.mark.parametrize("sync", ["ps_stale:2", "ps_async", "ps_async:1"])
def test_stale_servers_learn(sync, tmp_path: Path) -> None:
    task = models.mlp()
    plan = helpers.make_plan(task, dp=2, sync=sync)
    record = helpers.run(plan, task, tmp_path, verify=True, steps=40)
    assert record.verify is not None
    assert record.verify.passed, record.verify
    assert len(record.losses) == 41
    assert sum(record.losses[-5:]) < sum(record.losses[:5])
