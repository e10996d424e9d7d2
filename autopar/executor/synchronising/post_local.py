"""All-reduce first, local SGD later (Lin et al. 2020)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, final

import torch

from autopar.executor.mesh_groups import Group
from autopar.executor.synchronising.all_reduce import AllReduce
from autopar.executor.synchronising.base import Hook, Synchroniser, Tensors
from autopar.executor.synchronising.local import LocalSgd
from autopar.executor.synchronising.periodic import under
from autopar.sync import Sync
from autopar.sync.modes.local import PostLocalSgd as Declared

if TYPE_CHECKING:
    from autopar.executor.lowering import Context, Lowering


@final
class PostLocalSgd(Synchroniser):
    """Two synchronisers one after the other; the second begins at ``start`` of the run's steps.

    A run that is resumed counts the steps before it: ``start`` is a share of all steps up to the
    end of the run at hand.
    """

    def __init__(self, context: Context, sync: Sync) -> None:
        super().__init__(context, sync)
        assert isinstance(sync.mode, Declared)
        self._share = sync.mode.start
        self._first, self._second = AllReduce(context, sync), LocalSgd(context, sync)

    @property
    def _local(self) -> bool:
        """True from the step on at which replicas part."""
        return self.done >= self._share * self.stop and (self.stop > 0 or self._share == 0)

    @property
    def _now(self) -> AllReduce | LocalSgd:
        return self._second if self._local else self._first

    @property
    def ddp_group(self) -> Group | None:
        """As all-reduce; in the second phase DDP is told not to."""
        return self._first.ddp_group

    def hook(self) -> Hook | None:
        """As all-reduce."""
        return self._first.hook()

    @property
    def in_backward(self) -> bool:
        """Only in the first phase."""
        return not self._local and self._first.in_backward

    def attach(self, lowering: Lowering) -> None:
        """Both forget everything."""
        super().attach(lowering)
        self._first.attach(lowering)
        self._second.attach(lowering)

    def begin(self, done: int, stop: int) -> None:
        """The phase follows from the steps done and to do."""
        super().begin(done, stop)
        self._first.begin(done, stop)
        self._second.begin(done, stop)

    def reduce(
        self, parameters: Mapping[str, torch.nn.Parameter], *, ragged: bool = False
    ) -> None:
        """As the phase does."""
        self._now.reduce(parameters, ragged=ragged)

    def share_buffers(self, buffers: Sequence[torch.Tensor]) -> None:
        """As the phase does."""
        self._now.share_buffers(buffers)

    def update(self, step: Callable[[], None]) -> None:
        """As the phase does."""
        self._now.update(step)

    def after_step(self) -> None:
        """As the phase does; when it ends, weights are the anchor of the next."""
        phase = self._now
        super().after_step()
        phase.after_step()
        if phase is self._first:
            self._second.done = self.done
            self._second.set_anchors()

    @property
    def period(self) -> int:
        """As local SGD."""
        return self._second.period

    def finish(self) -> None:
        """As the phase does."""
        self._now.finish()

    def state(self) -> dict[str, torch.Tensor]:
        """That of the phase."""
        name = "second." if self._local else "first."
        return {f"{name}{key}": value for key, value in self._now.state().items()}

    def load_state(self, state: Tensors) -> None:
        """Inverse of :meth:`state`."""
        self._first.load_state(under("first.", state))
        own = under("second.", state)
        if own:
            self._second.load_state(own)

    @contextmanager
    def settled(self) -> Iterator[None]:
        """As the phase does."""
        with self._now.settled():
            yield

    @property
    def clip_group(self) -> Group | None:
        """As the phase does."""
        return self._now.clip_group

    @property
    def bound(self) -> float:
        """As the phase does."""
        return self._now.bound

    def compared(self, gradients: Tensors) -> Tensors:
        """As the phase does."""
        return self._now.compared(gradients)

    def check_average(self) -> float:
        """As local SGD does, whatever the phase."""
        return self._second.check_average()

    @property
    def note(self) -> str:
        """What is compared in the phase, and the average."""
        if self._local:
            return self._second.note
        first = self._first.note or f"{self.sync.name}: a step of the first phase was compared"
        return f"{first}; so was an average of weights"
