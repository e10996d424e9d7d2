"""What computing a unit again costs beside its own work: hooks, contexts, Python per op."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from autopar.core.stats import rising_line
from autopar.profiler.counting.selective import contexts
from autopar.profiler.timing.blocks import time_call
from autopar.profiler.timing.payload import Contexts, Runner

_LAYERS = (1, 10)
"""Of the two chains that tell the cost of a unit from that of an op."""
_OPS = 2
"""Of a layer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecomputeCost:
    """Seconds that a unit takes longer than its work.

    Attributes:
        unit_s: Of every unit.
        op_s: Of every op in it.
    """

    unit_s: float
    op_s: float


def block_cost(runner: Runner, device: str, *, repeats: int) -> tuple[float, float]:
    """Seconds that recomputing a block takes besides its forward: in full, all but its products.

    The second counts the ops that run again: at the smallest microbatch, where blocks are timed
    so, they take little beside the Python dispatch mode that every op passes.
    """

    def step(forward: Callable[[], list[torch.Tensor]]) -> Callable[[], None]:
        def call() -> None:
            results = forward()
            if results:
                torch.autograd.backward(results, runner.seeds(results))
            runner.clear()

        return call

    def alone() -> None:
        runner.forward()

    calls = (
        alone,
        step(runner.forward),
        step(lambda: runner.recomputed(_nothing)),
        step(lambda: runner.recomputed(contexts)),
    )
    forward_s, plain_s, full_s, selective_s = (
        time_call(call, device, repeats=repeats) for call in calls
    )
    return max(full_s - plain_s - forward_s, 0.0), max(selective_s - plain_s, 0.0)


def full_cost(device: str, *, repeats: int) -> RecomputeCost:
    """The cost of recomputing all of a unit.

    Hooks around every saved tensor and a second entry into autograd are large beside small blocks.
    Two chains of tiny layers give the two numbers: forward and backward under
    :func:`torch.utils.checkpoint.checkpoint`, minus twice the forward and once the backward
    without.
    """
    return _cost(lambda chain: _extra_s(chain, chain, _nothing, device, repeats))


def selective_cost(device: str, *, repeats: int) -> RecomputeCost:
    """The same of recomputing all but products, as the executor does it.

    Every op passes through a Python dispatch mode, the first time and again: more than the ops
    themselves where these are small. Taken off are forward, backward and the cheap ops once more.
    """

    def extra_s(chain: torch.nn.Sequential) -> float:
        cheap = torch.nn.Sequential(*(p for p in chain if not isinstance(p, torch.nn.Linear)))
        return _extra_s(chain, cheap, contexts, device, repeats)

    return _cost(extra_s)


def _cost(extra_s: Callable[[torch.nn.Sequential], float]) -> RecomputeCost:
    seconds = [extra_s(_chain(layers)) for layers in _LAYERS]
    unit_s, op_s = rising_line([_OPS * layers for layers in _LAYERS], seconds)
    return RecomputeCost(unit_s=unit_s, op_s=op_s)


def _chain(layers: int) -> torch.nn.Sequential:
    parts: list[torch.nn.Module] = []
    for _ in range(layers):
        parts += [torch.nn.Linear(8, 8), torch.nn.GELU()]
    return torch.nn.Sequential(*parts)


def _nothing() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    return contextlib.nullcontext(), contextlib.nullcontext()


def _extra_s(
    chain: torch.nn.Sequential,
    again: torch.nn.Sequential,
    around: Contexts,
    device: str,
    repeats: int,
) -> float:
    """Forward and backward with recompute, over those without and the part that runs again."""
    chain.to(device)
    value = torch.randn(4, 8, device=device, requires_grad=True)

    def recomputed() -> None:
        kept = checkpoint(
            chain, value, use_reentrant=False, preserve_rng_state=False, context_fn=around
        )
        kept.sum().backward()

    def plain() -> None:
        chain(value).sum().backward()

    def part() -> None:
        again(value)

    calls = (recomputed, plain, part)
    recomputed_s, plain_s, part_s = (time_call(c, device, repeats=repeats) for c in calls)
    return recomputed_s - plain_s - part_s
