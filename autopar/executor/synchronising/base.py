"""The seam between a step and what keeps replicas together.

A lowering computes gradients of its own replica. Everything between that and the next step that
depends on ``plan.sync`` goes through one :class:`Synchroniser`:

1. :meth:`~Synchroniser.reduce`, after the last backward: what the optimizer steps with. On the
   module path :attr:`~Synchroniser.ddp_group` and :meth:`~Synchroniser.hook` let
   DistributedDataParallel do it beside backward instead.
2. :meth:`~Synchroniser.update`: the optimizer step, or what replaces it.
3. :meth:`~Synchroniser.after_step`: what follows it, such as an average of weights.

A mode is one file with a subclass and one line in :mod:`autopar.executor.synchronising.registry`,
under the name it has in :data:`autopar.sync.SYNC_MODES`.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from autopar.executor.mesh_groups import Group
from autopar.executor.optimizing.gradients import broadcast_buffers
from autopar.sync import Sync

if TYPE_CHECKING:
    from autopar.executor.lowering import Context, Lowering

Tensors = Mapping[str, torch.Tensor]
Hook = Callable[[Any, Any], Any]
"""A communication hook of DistributedDataParallel: ``(state, bucket) -> future of the mean``."""


class Synchroniser(abc.ABC):
    """What one rank does so that replicas train one model.

    Attributes:
        done: Optimizer steps done, those before a resume included.
        stop: Steps that will be done when the run ends.
        lowering: What is trained.

    Args:
        context: The run.
        sync: Mode and compression of its plan.
    """

    def __init__(self, context: Context, sync: Sync) -> None:
        self.context = context
        self.sync = sync
        self.done = 0
        self.stop = 0
        self.lowering: Lowering

    # while the lowering is built

    @property
    def ddp_group(self) -> Group | None:
        """Ranks over which DDP averages in backward; ``None`` when nothing is sent there."""
        return None

    def hook(self) -> Hook | None:
        """What DDP does with a bucket; ``None`` for its own all-reduce."""
        return None

    def attach(self, lowering: Lowering) -> None:
        """Take what is trained, with weights as at the start; forgets all state."""
        self.lowering = lowering
        self.done = self.stop = 0

    def begin(self, done: int, stop: int) -> None:
        """Training starts: weights and state are loaded (collective).

        Args:
            done: Steps done before.
            stop: Steps done at the end.
        """
        self.done, self.stop = done, stop

    # a step

    @property
    def in_backward(self) -> bool:
        """True when DDP averages in this step's last backward."""
        return self.ddp_group is not None

    @abc.abstractmethod
    def reduce(
        self, parameters: Mapping[str, torch.nn.Parameter], *, ragged: bool = False
    ) -> None:
        """Exchange gradients after the last backward (collective).

        Not called when DDP did it.

        Args:
            parameters: Model name -> parameter, the lowering's in its order.
            ragged: Some parameters have a gradient on some ranks only.
        """

    def share_buffers(self, buffers: Sequence[torch.Tensor]) -> None:
        """Give all ranks the buffers (BatchNorm statistics) of the first one."""
        broadcast_buffers(buffers, self.context.groups.data, self.context.traffic)

    def update(self, step: Callable[[], None]) -> None:
        """One optimizer step.

        Args:
            step: Clips, steps the rank's own optimizer and clears gradients.
        """
        with self.context.recorder.span("optimizer"):
            step()

    def after_step(self) -> None:
        """What follows an optimizer step (collective); subclasses call this first."""
        self.done += 1

    @property
    def period(self) -> int:
        """Steps after which the work of a step repeats; 1 when all are alike."""
        return 1

    # the end of a run, and checkpoints

    def finish(self) -> None:  # noqa: B027  # most modes have nothing to do
        """After the last step: all replicas hold the one model that was trained (collective)."""

    def close(self) -> None:  # noqa: B027  # most modes have nothing to do
        """Let go of connections and threads."""

    def state(self) -> dict[str, torch.Tensor]:
        """This rank's own tensors that a run needs to continue as if never interrupted."""
        return {}

    def load_state(self, state: Tensors) -> None:  # noqa: B027  # as above
        """Take back what :meth:`state` gave; weights and optimizer are loaded already."""

    @contextmanager
    def settled(self) -> Iterator[None]:
        """Within it weights, buffers and optimizer state are those of one model (collective).

        A checkpoint is written inside, after :meth:`state` was taken outside.
        """
        yield

    # the check against one process

    @property
    def clip_group(self) -> Group | None:
        """Ranks of one replica when each replica clips on its own, else ``None``."""
        return None

    @property
    def bound(self) -> float:
        """Rounding that the compression may add to gradients, 0 for none.

        Relative to the root mean square, over replicas, of the norm of their own gradients.
        """
        return 0.0

    def compared(self, gradients: Tensors) -> Tensors:
        """What must equal the mean gradients of the global batch (collective).

        Args:
            gradients: This rank's after :meth:`reduce`.
        """
        return gradients

    def stepped(self, gradients: Tensors) -> Tensors | None:
        """Gradients of which one process's optimizer makes this rank's weights (collective).

        ``None`` when weights depend on what other ranks happen to do first.
        """
        return gradients

    def check_average(self) -> float:
        """Average weights now; relative error of that, 0 where weights are never averaged."""
        return 0.0

    @property
    def note(self) -> str:
        """What the check compares when it is not simply gradients and weights."""
        return ""
