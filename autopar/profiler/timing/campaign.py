"""What a measurement is about: a task's blocks, the sizes they are timed at, and what fits."""

from __future__ import annotations

from dataclasses import dataclass, field

import psutil
import torch

from autopar.graph import Block
from autopar.profiler import host
from autopar.profiler.counting.dataflow import CountedGraph, Progress
from autopar.profiler.optimizer import optimizer_state, pickle_optimizer
from autopar.profiler.timing.host_load import Load
from autopar.profiler.timing.points import PointStore
from autopar.profiler.timing.policy import MeasurePolicy, microbatch_sizes
from autopar.trace import TracedTask


@dataclass(kw_only=True)
class Campaign:
    """A task to be timed block by block.

    Attributes:
        traced: The task at its profiled batch size.
        graph: Its counted ops.
        blocks: Its blocks.
        smallest: Fewest samples the model trains on.
        load: Device and busy ranks.
        policy: How to time.
        store: Known results.
        progress: Called with stage, done, total.
        warnings: What was skipped or assumed.
        unique: One block of each signature, in order.
        pickled: The optimizer, ``None`` when it cannot be pickled.
        sizes: Microbatch sizes, ascending.
        available: Bytes that a rank may use.
    """

    traced: TracedTask
    graph: CountedGraph
    blocks: tuple[Block, ...]
    smallest: int
    load: Load
    policy: MeasurePolicy
    store: PointStore
    progress: Progress | None
    warnings: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.unique = list({b.signature: b for b in reversed(self.blocks)}.values())[::-1]
        self.pickled = pickle_optimizer(self.traced.task)
        self._state_ratio = optimizer_state(self.traced.task).state_bytes_per_parameter_byte
        self.sizes = microbatch_sizes(self.smallest, self.traced.batch)
        self.available = _available_bytes() * self.policy.memory_share / self.load.ranks

    def flop_share(self, unique: list[Block]) -> float:
        """Share of the model's FLOPs in blocks with these signatures."""
        keys = {block.signature for block in unique}
        total = [b.forward_flop.at(1) for b in self.blocks]
        part = [f for b, f in zip(self.blocks, total, strict=True) if b.signature in keys]
        return sum(part) / sum(total) if sum(total) else 1.0

    def fits(self, block: Block, samples: int) -> bool:
        """Whether a pass over a block fits beside those of the other busy ranks."""
        if self.load.device != "cpu":
            return True
        need = (
            2 * block.parameter_bytes
            + block.saved_bytes.at(samples)
            + 2 * block.boundary_bytes.at(samples)
            + 3 * block.peak_transient_bytes.at(samples)
        )
        return need * self.policy.memory_factor < self.available

    def whole_fits(self, samples: int) -> bool:
        """The same of a step of the whole model."""
        if self.load.device != "cpu":
            return True
        saved = sum(b.saved_bytes.at(samples) for b in self.blocks)
        transient = max(b.peak_transient_bytes.at(samples) for b in self.blocks)
        state = self._state_ratio
        need = (2 + state) * parameter_bytes(self.traced) + saved + 3 * transient
        return need * self.policy.memory_factor < self.available


def parameters(traced: TracedTask) -> list[torch.nn.Parameter]:
    """Parameters of a task, tied ones once."""
    found: dict[str, torch.nn.Parameter] = {}
    for attribute, name in traced.parameter_names.items():
        found.setdefault(name, traced.module.get_parameter(attribute))
    return list(found.values())


def parameter_bytes(traced: TracedTask) -> int:
    """Their bytes."""
    return sum(p.numel() * p.element_size() for p in parameters(traced))


def _available_bytes() -> float:
    return float(min(psutil.virtual_memory().available, host.memory_bytes()))
