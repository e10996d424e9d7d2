"""What a server holds, and the one thread that computes on it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch

from autopar.core.errors import TrainingError
from autopar.executor.server.checkpoint import read_frame, write_frame
from autopar.executor.server.clock import Membership
from autopar.executor.server.layout import pieces_from_json
from autopar.executor.server.protocol import Frame, Kind, ProtocolError, whole
from autopar.executor.server.settings import ServerSettings
from autopar.executor.server.shard import MakeOptimizer, Shard, StateImage

log = logging.getLogger("autopar.server")
T = TypeVar("T")


class Core:
    """Weights, clocks and the thread that steps the weights.

    All attributes but the shard's tensors belong to the event loop. The shard is touched by the
    compute thread only, job after job in the order of submission: network and arithmetic run
    side by side, and what is sent is never half updated.

    Args:
        settings: How this server works.
        make_optimizer: The task's optimizer.

    Attributes:
        generation: How often the weights were set from outside; a frame of another generation
            is early or late.
        version: Updates of the weights so far (``ps_sync``: steps).
        applied: Rank -> steps of it that were applied.
        failure: Why the run cannot go on, if so.
    """

    def __init__(self, settings: ServerSettings, make_optimizer: MakeOptimizer) -> None:
        self.settings = settings
        self.membership = Membership()
        self.membership.expect(settings.ranks, 0)
        self.shard: Shard | None = None
        self.generation = 0
        self.version = 0
        self.applied: dict[int, int] = {}
        self.failure: str | None = None
        self._make_optimizer = make_optimizer
        self._condition = asyncio.Condition()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="shard")
        self._image: tuple[int, torch.Tensor] | None = None
        self._pieces: list[Any] = []
        self._share = 1.0
        self._saved = 0
        self._saving = asyncio.Lock()

    # waiting

    async def notify(self) -> None:
        """Let everybody who waits look again."""
        async with self._condition:
            self._condition.notify_all()

    async def until(self, ready: Callable[[], bool]) -> None:
        """Wait for a condition.

        Raises:
            TrainingError: The run cannot go on.
        """
        async with self._condition:
            await self._condition.wait_for(lambda: self.failure is not None or ready())
        if self.failure is not None:
            raise TrainingError(self.failure)

    async def fail(self, why: str) -> None:
        """Nothing that waits will be answered with anything but this."""
        log.error("%s", why)
        self.failure = self.failure or why
        await self.notify()

    # the shard

    async def compute(self, job: Callable[[], T]) -> T:
        """Run a job on the compute thread, after those before it."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, job)

    def held(self) -> Shard:
        """The shard.

        Raises:
            ProtocolError: It was not set.
        """
        if self.shard is None:
            raise ProtocolError("weights were asked for before they were set")
        return self.shard

    async def expect_generation(self, generation: int) -> None:
        """Wait until weights of a generation are here.

        Raises:
            ProtocolError: A newer one is.
        """
        await self.until(lambda: self.generation >= generation)
        if self.generation != generation:
            raise ProtocolError(f"generation {generation} is over, this is {self.generation}")

    async def set_weights(self, frame: Frame) -> None:
        """Take weights and optimizer state from outside; a repeated frame changes nothing."""
        generation = whole(frame.header, "generation")
        if generation <= self.generation:
            return
        shard = await self.compute(lambda: self._build(frame))
        step = whole(frame.header, "step")
        self.shard = shard
        self.version = self._saved = step
        self.applied = dict.fromkeys(self.settings.ranks, step)
        self.membership.restart(step)
        self.generation = generation
        self._image = None
        await self.notify()

    def _build(self, frame: Frame) -> Shard:
        header = frame.header
        share = header.get("share", 1.0)
        rows = header.get("state", [])
        if not isinstance(share, float) or not 0.0 < share <= 1.0 or not isinstance(rows, list):
            raise ProtocolError("weights came with a wrong 'share' or 'state'")
        if not frame.tensors:
            raise ProtocolError("no weights came")
        self._pieces, self._share = header.get("pieces", []), share
        pieces = pieces_from_json(self._pieces)
        shard = Shard(pieces, frame.tensors[0].clone(), self._make_optimizer, share)
        shard.load_state(StateImage(rows=rows, tensors=[t.clone() for t in frame.tensors[1:]]))
        return shard

    async def weights(self) -> torch.Tensor:
        """The weights as they are after all updates so far; must not be written."""
        shard, version = self.held(), self.version
        if self._image is None or self._image[0] != version:
            self._image = (version, await self.compute(shard.weights.clone))
        return self._image[1]

    async def state_frame(self, version: int) -> Frame:
        """Everything that :meth:`set_weights` needs, after ``version`` updates."""
        shard = self.held()
        header = {
            "generation": self.generation,
            "step": version,
            "share": self._share,
            "pieces": self._pieces,
            "applied": [[rank, step] for rank, step in self.applied.items()],
        }

        def image() -> Frame:
            state = shard.state()
            return Frame(
                kind=Kind.INIT,
                header={**header, "state": state.rows},
                tensors=[shard.weights.clone(), *state.tensors],
            )

        return await self.compute(image)

    # checkpoints

    async def save_if_due(self, version: int) -> None:
        """Write the checkpoint when enough updates have passed.

        A full disk is told in the log and does not stop the run; the old file is kept.

        Args:
            version: Updates that the shard has had.
        """
        every, path = self.settings.checkpoint_every, self.settings.checkpoint
        if not every or path is None or version - self._saved < every:
            return
        self._saved = version
        async with self._saving:
            frame = await self.state_frame(version)
            try:
                await asyncio.get_running_loop().run_in_executor(None, write_frame, path, frame)
            except OSError as error:
                log.warning("cannot write server checkpoint %s: %s", path, error)

    async def restore(self, path: Path) -> None:
        """Go on from a checkpoint.

        Raises:
            InputError: It is damaged.
        """
        frame = read_frame(path)
        await self.set_weights(frame)
        back_s = asyncio.get_running_loop().time() + self.settings.return_s
        for rank, step in frame.header["applied"]:
            self.applied[rank] = step
            if rank in self.membership.members:
                self.membership.members[rank].clock = step
                self.membership.disconnect(rank, back_s)
        log.warning("went on from checkpoint %s at version %d", path, self.version)

    def close(self) -> None:
        """End the compute thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)
