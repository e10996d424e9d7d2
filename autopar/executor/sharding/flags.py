"""When FSDP2 gathers, keeps and scatters during the actions of one step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch.distributed.fsdp import FSDPModule

from autopar.schedules import Action


class Flags:
    """Turns FSDP2's switches at the last backward of each stage, and back when a step starts.

    Args:
        root: The module around all stages of this rank.
        units: Virtual stage -> its sharded units.
        zero: What is shared out.
        replicas: Copies of each shard.
        actions: This rank's actions of one step, in order.
    """

    def __init__(
        self,
        root: FSDPModule,
        units: Mapping[int, Sequence[FSDPModule]],
        *,
        zero: int,
        replicas: int,
        actions: Iterable[Action],
    ) -> None:
        self._root = root
        self._units = units
        self._zero = zero
        self._replicas = replicas
        kinds = ("backward", "backward_weight")
        backwards = [(a.stage, a.microbatch) for a in actions if a.kind in kinds]
        self._last = dict(backwards)
        self._final = backwards[-1]
        self._switches = len(backwards) > 1

    def begin(self) -> None:
        """A step starts: hold back what happens once a step."""
        if not self._switches:
            return
        self._root.set_is_last_backward(False)
        self._set([self._root, *(m for units in self._units.values() for m in units)], False)

    def before_backward(self, stage: int, microbatch: int) -> bool:
        """A backward starts; returns whether it is this rank's last in the step."""
        last = (stage, microbatch) == self._final
        if self._switches and self._last[stage] == microbatch:
            self._set(self._units[stage], True)
            if last:
                self._set([self._root], True)
                self._root.set_is_last_backward(True)
        return last

    def _set(self, modules: Iterable[FSDPModule], last: bool) -> None:
        for module in modules:
            if self._zero == 1:
                module.set_requires_gradient_sync(last, recurse=False)
            elif self._replicas > 1:
                module.set_requires_all_reduce(last, recurse=False)
            if self._zero < 3:
                module.set_reshard_after_backward(last, recurse=False)
