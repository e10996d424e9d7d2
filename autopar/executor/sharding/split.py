"""Sharded stages under schedules that run backward in two halves.

FSDP2's hooks sit on the inputs and outputs of a unit and take one backward to be all of it. Here
units are gathered around each half instead, and gradients are shared out after the second half, by
the calls that ``torch.distributed.pipelining`` makes in the same place. Gathers are not fetched
ahead, and ZeRO-3 gathers a third time, for the second half.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule, fully_shard

from autopar.executor.sharding.flags import Flags
from autopar.executor.stages.stage import StageProgram
from autopar.executor.stages.tape import Tape, Values


class SplitStage:
    """What the runner calls in place of a :class:`StageProgram` that keeps a tape.

    Args:
        root: Holds the weights that no unit holds alone; they stay gathered through a step.
        program: The stage.
        units: Its sharded units.
        flags: Say whether a backward is the last.
        reshards: Drop whole weights after each use (ZeRO-3).
    """

    def __init__(
        self,
        root: FSDPModule,
        program: StageProgram,
        units: Sequence[FSDPModule],
        flags: Flags,
        *,
        reshards: bool,
    ) -> None:
        self.exports = program.exports
        self._root = root
        self._program = program
        self._units = units
        self._flags = flags
        self._reshards = reshards
        for unit in program.units:
            unit.around = partial(self._gathered, unit)

    def forward(self, leaves: Sequence[torch.Tensor], imports: Values, microbatch: int) -> Values:
        """Not called under these schedules.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError("a schedule that splits backward calls keep()")

    def keep(
        self, leaves: Sequence[torch.Tensor], imports: Values, microbatch: int
    ) -> tuple[Values, Tape]:
        """As :meth:`StageProgram.keep`, weights gathered on the way."""
        _state(self._root)._lazy_init()
        values, tape = self._program.keep(leaves, imports, microbatch)
        tape.finished = lambda: self._share_out(microbatch)
        return values, tape

    @contextmanager
    def _gathered(self, unit: torch.nn.Module) -> Iterator[None]:
        self._root.unshard()
        if not isinstance(unit, FSDPModule):
            yield
            return
        unit.unshard()
        try:
            yield
        finally:
            if self._reshards:
                unit.reshard()

    def _share_out(self, microbatch: int) -> None:
        """Reduce the gradients that a microbatch left, or keep them, as the flags say."""
        last = self._flags.before_backward(self._program.index, microbatch)
        for module in (*self._units, self._root):
            for group in _state(module)._fsdp_param_groups:
                group.post_backward()
        if last:
            _state(self._root)._root_post_backward_final_callback()


def _state(module: FSDPModule) -> Any:
    """FSDP2's private state: it has no public call that shares out gradients."""
    return fully_shard.state(module)  # type: ignore[attr-defined]
