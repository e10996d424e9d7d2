"""When a server applies gradients and when it answers: synchronous, bounded, or at once."""

from __future__ import annotations

import abc
import asyncio

import torch

from autopar.core.errors import TrainingError
from autopar.executor.server.core import Core
from autopar.executor.server.protocol import ProtocolError
from autopar.executor.server.round import Round
from autopar.executor.server.shard import square_norm

EPSILON = 1e-6
"""As in ``torch.nn.utils.clip_grad_norm_``."""


class Rules(abc.ABC):
    """How pushes and pulls of the members are ordered.

    Args:
        core: What the server holds.
    """

    def __init__(self, core: Core) -> None:
        self.core = core

    @abc.abstractmethod
    async def push(self, rank: int, step: int, gradient: torch.Tensor, absent: set[int]) -> None:
        """Take the gradient of a rank's step; one that was taken before changes nothing."""

    @abc.abstractmethod
    async def pull(self, step: int, norm: float | None) -> torch.Tensor:
        """The weights that ``step`` starts from.

        Args:
            step: The step that the worker wants to start.
            norm: Norm of the whole model's gradient, where clipping needs it.
        """

    async def square(self, step: int) -> float:
        """Sum of squares of this shard's mean gradient of a step.

        Raises:
            ProtocolError: These rules have none.
        """
        raise ProtocolError(f"no norm of step {step} here: workers clip what they push")

    async def lost(self, ranks: list[int]) -> None:
        """Ranks are gone for good."""
        await self.core.notify()

    def reset(self) -> None:  # noqa: B027  # not all rules keep something
        """Weights were set from outside."""


class Bounded(Rules):
    """Every push is one update; with a bound, a step waits for the slowest member."""

    async def push(self, rank: int, step: int, gradient: torch.Tensor, absent: set[int]) -> None:
        """Apply at once."""
        core = self.core
        if step < core.applied.get(rank, 0):
            return
        core.applied[rank] = step + 1
        member = core.membership.members.get(rank)
        if member is not None:
            member.clock = max(member.clock, step + 1)
        shard = core.held()
        core.version += 1
        await core.compute(lambda: shard.apply(gradient, absent))
        await core.save_if_due(core.version)
        await core.notify()

    async def pull(self, step: int, norm: float | None) -> torch.Tensor:
        """Wait for the slowest if there is a bound."""
        core, bound = self.core, self.core.settings.bound
        await core.until(lambda: core.membership.may_start(step, bound))
        core.membership.started(step)
        return await core.weights()


class Synchronous(Rules):
    """One update a step, of the mean over all members.

    With clipping the update waits for the first pull that brings the norm over all servers. The
    sums of squares of the last two steps are kept: a member that lost its connection may ask
    again after a faster one has begun the next round.
    """

    def __init__(self, core: Core) -> None:
        super().__init__(core)
        self._round: Round | None = None
        self._squares: dict[int, float] = {}
        self._busy = asyncio.Lock()

    async def push(self, rank: int, step: int, gradient: torch.Tensor, absent: set[int]) -> None:
        """Add to the round; the last one of it makes the step.

        Raises:
            TrainingError: The server is not at this step.
        """
        core = self.core
        if step < core.version:
            return
        if step > core.version:
            raise TrainingError(
                f"a server is at step {core.version}, rank {rank} pushed step {step}: the server "
                "was restarted from an older checkpoint",
                hint="let servers write a checkpoint each step, or resume the run",
            )
        if self._round is None:
            self._round = Round(core.settings.ranks)
        self._round.add(rank, gradient, absent)
        await self._close_if_complete()

    async def _close_if_complete(self) -> None:
        core = self.core
        async with self._busy:
            current = self._round
            if current is None or current.mean is not None:
                return
            if not current.complete(core.membership.members):
                return
            mean = await core.compute(current.close)
            if core.settings.clips is None:
                await self._apply(current)
            else:
                square = await core.compute(lambda: square_norm(mean))
                self._squares = {
                    step: value
                    for step, value in self._squares.items()
                    if step == core.version - 1
                }
                self._squares[core.version] = square
        await core.notify()

    async def _apply(self, current: Round) -> None:
        """Step; the round stays the current one until its weights are safe and visible."""
        core = self.core
        shard, mean = core.held(), current.mean
        assert mean is not None
        await core.compute(lambda: shard.apply(mean, current.absent))
        await core.save_if_due(core.version + 1)
        core.version += 1
        self._round = None

    async def square(self, step: int) -> float:
        """Wait for the round."""
        await self.core.until(lambda: step in self._squares)
        return self._squares[step]

    async def pull(self, step: int, norm: float | None) -> torch.Tensor:
        """Wait for the weights after ``step - 1``."""
        core, limit = self.core, self.core.settings.clips
        await core.until(
            lambda: core.version >= step or (norm is not None and step - 1 in self._squares)
        )
        if limit is not None and norm is not None:
            async with self._busy:
                current = self._round
                if core.version < step and current is not None and current.mean is not None:
                    mean, scale = current.mean, min(1.0, limit / (norm + EPSILON))
                    if scale < 1.0:
                        await core.compute(lambda: mean.mul_(scale))
                    await self._apply(current)
            await core.notify()
        await core.until(lambda: core.version >= step)
        return await core.weights()

    async def lost(self, ranks: list[int]) -> None:
        """Fail, or close the round without them."""
        core = self.core
        if core.settings.on_loss == "fail":
            names = ", ".join(str(rank) for rank in ranks)
            await core.fail(f"rank {names} was lost in step {core.version}")
            return
        await self._close_if_complete()
        await core.notify()

    def reset(self) -> None:
        """Weights were set from outside."""
        self._round, self._squares = None, {}


def rules_of(core: Core) -> Rules:
    """The rules of the server's discipline."""
    return Synchronous(core) if core.settings.discipline == "sync" else Bounded(core)
