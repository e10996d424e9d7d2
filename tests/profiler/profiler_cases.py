"""Traced and counted zoo models, each made once a session."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import nn

from autopar.profiler.counting.dataflow import CountedGraph, count
from autopar.tasks import Task, resolve, small_target
from autopar.trace import TracedTask, trace


@dataclass(frozen=True)
class Case:
    task: Task
    traced: TracedTask
    graph: CountedGraph


@cache
def case(name: str, batch: int = 4) -> Case:
    task = resolve(small_target(name))
    traced = trace(task, batch, device="cpu")
    return Case(task, traced, count(traced))


def task_of(model, shape=(8,), classes=4, **changes) -> Task:
    """A classifier task around a model factory."""

    def batch(n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.randn(n, *shape, generator=generator), torch.randint(
            classes, (n,), generator=generator
        )

    fields = {
        "name": "test",
        "model": model,
        "batch": batch,
        "loss": nn.functional.cross_entropy,
        "optimizer": lambda params: torch.optim.AdamW(params, lr=1e-3),
        **changes,
    }
    return Task(**fields)
