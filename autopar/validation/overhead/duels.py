"""The duels: which of our steps is set against which hand-written one, on which models."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from autopar.executor.data import Microbatch
from autopar.executor.lowering import lower
from autopar.executor.measuring.clock import Recorder, Silent
from autopar.executor.own_loop.options import SessionOptions
from autopar.executor.own_loop.session import Session
from autopar.executor.session import Loop, make_context
from autopar.plans import Plan
from autopar.tasks import Task
from autopar.validation.overhead import handwritten

BATCHES = 4
"""Different global batches that the timed steps take in turn."""
SEED = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """A GPT and how long it is watched.

    Attributes:
        name: Its heading.
        target: The task.
        samples: In a microbatch.
        steps: In a block.
        note: What it stands for.
    """

    name: str
    target: str
    samples: int
    steps: int
    note: str


SIZES = (
    Size(
        name="tiny",
        target="zoo:gpt?layers=4&hidden=64&heads=4&vocab=256&seq=32",
        samples=4,
        steps=6,
        note="nothing but calls",
    ),
    Size(
        name="medium",
        target="zoo:gpt?layers=4&hidden=256&heads=4&vocab=2048&seq=128",
        samples=4,
        steps=3,
        note="ops that take as long as those of a model worth training",
    ),
)
OneStep = Callable[[int], torch.Tensor | None]
"""A training step on the batch of a number; returns the loss where it is known."""


@dataclass(frozen=True, kw_only=True)
class Duel:
    """Two ways to do one step.

    Attributes:
        name: Its heading.
        mesh: Of our plan.
        theirs: Makes the other side.
        ours: Makes our side.
        microbatches: Per replica.
        changes: Other fields of the plan.
        bound: The ratio that must not be passed.
    """

    name: str
    mesh: dict[str, int]
    theirs: Callable[[Bench], OneStep]
    ours: Callable[[Bench], OneStep] = lambda bench: bench.lowered()
    microbatches: int = 1
    changes: dict[str, Any] = field(default_factory=dict)
    bound: float = 1.02


class Bench:
    """What both sides of a duel are built from, on one rank.

    Args:
        task: The task.
        plan: Our plan.
    """

    def __init__(self, task: Task, plan: Plan) -> None:
        self.task = task
        self.plan = plan
        self.context = make_context(plan, task, torch.device("cpu"))
        replica = self.context.groups.replica
        self.batches: list[list[Microbatch]] = [
            self.context.data.microbatches(step, replica) for step in range(BATCHES)
        ]
        self.whole = [
            tuple(torch.cat(parts) for parts in zip(*batch, strict=True)) for batch in self.batches
        ]

    def lowered(self, recorder: Recorder | None = None) -> OneStep:
        """The step of ``autopar run``; it takes times for the timeline unless told otherwise."""
        context = make_context(self.plan, self.task, torch.device("cpu"), recorder=recorder)
        lowering = lower(context)

        def step(number: int) -> torch.Tensor | None:
            context.recorder.begin()
            return lowering.step(self.batches[number])

        return step

    def session(self) -> OneStep:
        """The step of a script's own loop."""
        session = Session(self.plan, self.task, SessionOptions())
        return lambda number: torch.tensor(session.step(*self.whole[number]))

    def loop(self) -> OneStep:
        """A step of the whole loop of ``autopar run``: data, step, times and losses of all."""
        loop = Loop(self.context, lower(self.context), range(2**40))
        counter = itertools.count()
        return lambda _: torch.tensor(loop.step(next(counter))[1])

    def loop_by_hand(self, step: handwritten.Step) -> OneStep:
        """The same of a script: the batch is made, the mean loss told to all."""
        logged, counter = handwritten.with_mean_loss(step), itertools.count()

        def whole(_: int) -> torch.Tensor | None:
            replica = self.context.groups.replica
            ((inputs, target),) = self.context.data.microbatches(next(counter), replica)
            return logged(inputs, target)

        return whole

    def by_hand(self, step: handwritten.Step) -> OneStep:
        """A hand-written one."""
        return lambda number: step(*self.whole[number])


def _ddp(bench: Bench) -> OneStep:
    return bench.by_hand(handwritten.data_parallel(bench.task, SEED))


def _logged_ddp(bench: Bench) -> OneStep:
    step = handwritten.data_parallel(bench.task, SEED)
    return bench.by_hand(handwritten.with_mean_loss(step))


def _silent(bench: Bench) -> OneStep:
    return bench.lowered(Silent())


_REPLICAS: dict[str, Any] = {"mesh": {"dp_replicate": 2}}
_SHARDS: dict[str, Any] = {"mesh": {"dp_shard": 2}, "changes": {"zero": 3}}
_STAGES: dict[str, Any] = {
    "mesh": {"pp": 2},
    "microbatches": 4,
    "changes": {"schedule": "1f1b"},
}
BY_HAND = (
    Duel(name="DDP", theirs=_ddp, **_REPLICAS),
    Duel(
        name="FSDP2",
        theirs=lambda bench: bench.by_hand(handwritten.sharded(bench.task, SEED)),
        **_SHARDS,
    ),
    Duel(
        name="FSDP2, tuned by hand",
        theirs=lambda bench: bench.by_hand(handwritten.sharded(bench.task, SEED, tuned=True)),
        **_SHARDS,
    ),
    Duel(
        name="1F1B",
        theirs=lambda bench: bench.by_hand(
            handwritten.pipelined(bench.task, SEED, microbatches=bench.plan.microbatches)
        ),
        **_STAGES,
    ),
    Duel(
        name="own loop",
        ours=lambda bench: bench.session(),
        theirs=_logged_ddp,
        **_REPLICAS,
    ),
    Duel(
        name="autopar run",
        ours=lambda bench: bench.loop(),
        theirs=lambda bench: bench.loop_by_hand(handwritten.data_parallel(bench.task, SEED)),
        **_REPLICAS,
    ),
)
"""The step of a plan beside what one writes for it by hand."""
TIMELINE = (
    Duel(name="DDP", theirs=_silent, bound=1.01, **_REPLICAS),
    Duel(name="FSDP2", theirs=_silent, bound=1.01, **_SHARDS),
    Duel(name="1F1B", theirs=_silent, bound=1.01, **_STAGES),
)
"""Our step with and without taking times."""
