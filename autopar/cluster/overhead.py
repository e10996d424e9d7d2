"""What the executor itself costs on a host: fixed seconds per action and per step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardCost:
    """Seconds of something done to a unit of weights.

    Attributes:
        unit_s: For a unit.
        weight_s: More of them for every weight (tensor) in it.
    """

    unit_s: float = 0.0
    weight_s: float = 0.0

    def seconds(self, units: float, weights: float) -> float:
        """For some units with so many weights in all."""
        return self.unit_s * units + self.weight_s * weights


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardOverhead:
    """What sharded weights cost beside bytes and arithmetic, with messages of almost no bytes.

    Attributes:
        visit: Forward or backward of a unit whose weights are there.
        gather: Gathering its weights before a forward.
        regather: The same before a backward, which fetches ahead; ``None`` in older files: as
            ``gather``.
        scatter: Sharing out its gradients.
        step_s_per_weight: Optimizer step on a weight's shard with at most one state, as SGD with
            momentum has.
        step_s_per_state: More of it for every further state; Adam has two in all.
    """

    visit: ShardCost = ShardCost()
    gather: ShardCost = ShardCost()
    scatter: ShardCost = ShardCost()
    regather: ShardCost | None = None
    step_s_per_weight: float = 0.0
    step_s_per_state: float = 0.0

    def step_s(self, weights: float, states: float) -> float:
        """Optimizer step on the shards of so many weights with so many states each."""
        further = max(states - 1.0, 0.0)
        return weights * (self.step_s_per_weight + further * self.step_s_per_state)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ShardOverhead:
        """Inverse of ``asdict``."""
        names = ("visit", "gather", "scatter", "regather")
        costs = {name: ShardCost(**data[name]) for name in names if data.get(name)}
        return cls(**{**data, **costs})


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitOverhead:
    """What a stage's backward in two halves takes more than one in one go.

    Attributes:
        first: Half that gives the gradients of inputs.
        second: Half that gives those of weights.
    """

    first: ShardCost = ShardCost()
    second: ShardCost = ShardCost()

    def seconds(self, weights: int) -> tuple[float, float]:
        """Of both halves, for a stage with so many weights."""
        return self.first.seconds(1, weights), self.second.seconds(1, weights)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> SplitOverhead:
        """Inverse of ``asdict``."""
        return cls(**{name: ShardCost(**data[name]) for name in ("first", "second")})


@dataclass(frozen=True, slots=True, kw_only=True)
class HostOverhead:
    """Fixed costs of the executor, measured by running plans of almost no work.

    Attributes:
        forward_action_s: A stage's forward for one microbatch: autograd, hand over.
        backward_action_s: The same for its backward.
        split: What halves of a backward take more.
        receive_s: What taking in a message takes longer than the cluster's curve says, where ranks
            leave no core free and receive when they need it; ``None`` where messages come in while
            they compute.
        step_s: A step outside its passes and its optimizer: bookkeeping.
        microbatch_s: The same for every microbatch of a rank without a pipeline; with one, it is
            in the actions.
        shards: What sharded weights cost; ``None`` when not measured.
        rank_bytes: Resident memory of a training rank beside that of a process that has only
            traced the model: executor, process groups, allocator.
    """

    forward_action_s: float
    backward_action_s: float
    step_s: float
    shards: ShardOverhead | None = None
    rank_bytes: float = 0.0
    split: SplitOverhead = SplitOverhead()
    receive_s: float | None = None
    microbatch_s: float = 0.0

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> HostOverhead:
        """Inverse of ``asdict``; older files lack parts that were not measured then."""
        shards, split = data.get("shards"), data.get("split")
        parts = {
            "shards": ShardOverhead.from_dict(shards) if shards else None,
            "split": SplitOverhead.from_dict(split) if split else SplitOverhead(),
        }
        return cls(**{**data, **parts})


NO_OVERHEAD = HostOverhead(forward_action_s=0.0, backward_action_s=0.0, step_s=0.0)
