"""Selective recompute: what it keeps, and that the numbers stay those of one process."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import executor_helpers as helpers
import executor_models as models
import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from autopar.executor.measuring.clock import CpuClock, Recorder
from autopar.executor.stages.stage import Running, StageProgram
from autopar.plans import Stage
from autopar.tasks import Task
from autopar.tasks.resolve import resolve
from autopar.trace import TracedTask, extract, trace

ZOO = {
    "gpt": "zoo:gpt?layers=2&hidden=16&heads=2&vocab=32&seq=8",
    "bert": "zoo:bert?layers=2&hidden=16&heads=2&vocab=32&seq=8",
    "resnet50": "zoo:resnet50?channels=4&depths=1-1&image=16&classes=4",
}


def task_of(name: str) -> Task:
    if name == "knotted":
        return models.knotted()
    pytest.importorskip("transformers")
    return resolve(ZOO[name])


@cache
def traced(name: str) -> TracedTask:
    return helpers.traced_of(task_of(name))


class Alive(TorchDispatchMode):
    """Bytes of results of ops that something still holds."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                ref = StorageWeakRef(storage)
                self.seen[ref.cdata] = (ref, storage.nbytes())
        return out

    def bytes(self) -> int:
        return sum(size for ref, size in self.seen.values() if not ref.expired())


def kept_bytes(task: Task, batch: int, ranges: dict[str, Any], splits: bool = False) -> int:
    """Bytes a forward of the whole graph leaves behind for backward."""
    graph = trace(task, batch)
    count = len(graph.nodes)
    stage = Stage(first_op=0, stop_op=count, pp=0, **ranges)
    program = StageProgram(
        graph,
        stage,
        0,
        extract(graph, 0, count),
        torch.device("cpu"),
        Recorder(CpuClock()),
        Running(splits=splits),
    )
    leaves = graph.flatten(*task.batch(batch, torch.Generator().manual_seed(0)))
    mode = Alive()
    with mode:
        held = program.keep(leaves, {}, 0) if splits else program.forward(leaves, {}, 0)
    size = mode.bytes()
    del held
    return size


@pytest.mark.parametrize("splits", [False, True])
def test_keeps_less_than_all_and_more_than_the_border(splits: bool) -> None:
    task = resolve("zoo:gpt?layers=1&hidden=32&heads=4&vocab=64&seq=64")
    graph = helpers.traced_of(task, 4)
    first, stop = min(graph.cuts), max(graph.cuts)
    everything = kept_bytes(task, 4, {}, splits)
    selective = kept_bytes(task, 4, {"selective": ((first, stop),)}, splits)
    full = kept_bytes(task, 4, {"recompute": ((first, stop),)}, splits)
    assert full < 0.75 * selective
    assert selective < 0.75 * everything


SHAPES: list[dict[str, Any]] = [
    {"microbatches": 2},
    {"pp": 2, "dp": 2, "microbatches": 2},
    {"pp": 2, "schedule": "zero_bubble", "microbatches": 4},
]


@pytest.mark.parametrize("shape", SHAPES, ids=["one", "dp2pp2", "split"])
@pytest.mark.parametrize("name", ["knotted", *ZOO])
def test_equals_one_process(name: str, shape: dict[str, Any], tmp_path: Path) -> None:
    task, graph = task_of(name), traced(name)
    pp = shape.get("pp", 1)
    edges = [0, *helpers.even_cuts(graph, pp), len(graph.nodes)]
    selective = {s: ((edges[s], edges[s + 1]),) for s in range(pp)}
    plan = helpers.make_plan(task, traced=graph, selective=selective, **shape)
    assert "sel" in plan.name
    record = helpers.run(plan, task, tmp_path, verify=True, steps=1, warmup=0)
    assert record.verify is not None
    assert record.verify.passed, record.verify
    assert record.breakdown.recompute_s > 0


def test_dropout_and_both_kinds_of_recompute_in_one_stage(tmp_path: Path) -> None:
    """Losses of several steps with dropout on equal those of a run that keeps everything."""
    task = models.knotted(dropout=0.3)
    graph = helpers.traced_of(task)
    first, middle, last = helpers.even_cuts(graph, 4)
    plans = [
        helpers.make_plan(task, traced=graph, microbatches=2),
        helpers.make_plan(
            task,
            traced=graph,
            microbatches=2,
            selective={0: ((first, middle),)},
            recompute={0: ((middle, last),)},
        ),
    ]
    curves = [
        helpers.run(plan, task, tmp_path / str(i), steps=3).losses for i, plan in enumerate(plans)
    ]
    assert curves[1] == pytest.approx(curves[0], rel=1e-5)
