"""Replicas that train on their own and average weights every few steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar

import torch

from autopar.executor.mesh_groups import Group
from autopar.executor.synchronising.averaging import Averager, make_reducer
from autopar.executor.synchronising.base import Synchroniser, Tensors
from autopar.executor.synchronising.check import average_error, mean_over
from autopar.executor.synchronising.replica_state import ReplicaState
from autopar.sync import Sync
from autopar.sync.modes.local import LocalSgd as Declared

if TYPE_CHECKING:
    from autopar.executor.lowering import Context, Lowering


class Periodic(Synchroniser):
    """Local steps; after every ``period``-th step of the run, counted from its first, an average.

    Float buffers (BatchNorm statistics) are averaged with the weights; integer ones are those of
    the first rank. Optimizer state stays a replica's own, as in the publications.

    Attributes:
        group: Ranks that average.
        reducer: How means of weights, or of their changes, are taken.
        anchors: Weights of the last average, where changes are what is averaged.
    """

    gain: ClassVar[float] = 1.0
    """How far new weights move when the mean change does, at the first average."""

    def __init__(self, context: Context, sync: Sync) -> None:
        super().__init__(context, sync)
        assert isinstance(sync.mode, Declared)
        self._period = sync.mode.period
        self.group = context.groups.data
        self.reducer = make_reducer(context, self.group)
        self._plain = make_reducer(context, self.group, "none")
        mesh = context.plan.mesh
        self._replica = context.groups.make(
            [mesh.group("pp", "tp", rank=r) for r in range(mesh.world_size)]
        )
        self.anchors: dict[str, torch.Tensor] = {}

    @property
    def period(self) -> int:
        """Steps between averages."""
        return self._period

    @property
    def anchored(self) -> bool:
        """True when what is averaged is the change since the last average."""
        return not self.sync.compression.exact

    def attach(self, lowering: Lowering) -> None:
        """Forget everything; the anchor is the weights as they are."""
        super().attach(lowering)
        self.reducer.load_state({})
        self._averager = Averager(self.reducer, lowering, gradients=False)
        self._buffers = Averager(self._plain, lowering, gradients=False)
        self._own = ReplicaState(lowering)
        self.set_anchors()

    def begin(self, done: int, stop: int) -> None:
        """Anchors that no state was loaded for are the weights that were."""
        super().begin(done, stop)
        if not self._own.loaded:
            self.set_anchors()

    def set_anchors(self) -> None:
        """From here on changes are counted."""
        if self.anchored:
            self.anchors = {n: p.detach().clone() for n, p in self.trained().items()}

    def trained(self) -> dict[str, torch.nn.Parameter]:
        """Parameters that replicas train."""
        return {n: p for n, p in self.lowering.parameters.items() if p.requires_grad}

    # a step

    def reduce(
        self, parameters: Mapping[str, torch.nn.Parameter], *, ragged: bool = False
    ) -> None:
        """Nothing between averages."""

    def share_buffers(self, buffers: Sequence[torch.Tensor]) -> None:
        """Nothing between averages."""

    def after_step(self) -> None:
        """Average after every ``period``-th step."""
        super().after_step()
        if self.done % self.period == 0:
            self.average()

    def finish(self) -> None:
        """One more average if steps were made since the last one."""
        if self.done % self.period:
            self.average()

    # an average

    @torch.no_grad()
    def average(self) -> None:
        """Replace the weights of all replicas by one set (collective)."""
        with self.context.recorder.span("sync"):
            weights = self.trained()
            if self.anchored:
                changes = {n: p.detach() - self.anchors[n] for n, p in weights.items()}
                for name, change in self._averager.mean(changes).items():
                    weights[name].copy_(self.moved(name, self.anchors[name], change))
            else:
                for name, mean in self._averager.mean(weights).items():
                    weights[name].copy_(mean)
            self.lowering.share_tied()
            self.lowering.weights_written()
            for name, anchor in self.anchors.items():
                anchor.copy_(weights[name].detach())
            buffers = self.lowering.buffers
            floats = {n: b for n, b in buffers.items() if b.is_floating_point()}
            for name, mean in self._buffers.mean(floats).items():
                buffers[name].copy_(mean)
            super().share_buffers([b for b in buffers.values() if not b.is_floating_point()])

    def moved(self, name: str, anchor: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
        """New weights from those of the last average and the mean change since."""
        return anchor + change

    # checkpoints

    def state(self) -> dict[str, torch.Tensor]:
        """This replica's weights, buffers and optimizer state, and what the average remembers."""
        return {
            **self._own.state(),
            **{f"anchor.{name}": value for name, value in self.anchors.items()},
            **{f"reducer.{name}": value for name, value in self.reducer.state().items()},
        }

    @torch.no_grad()
    def load_state(self, state: Tensors) -> None:
        """Inverse of :meth:`state`."""
        self._own.load_state(state)
        self.reducer.load_state(under("reducer.", state))
        for name, value in under("anchor.", state).items():
            self.anchors[name].copy_(value)

    @contextmanager
    def settled(self) -> Iterator[None]:
        """Weights, float buffers and optimizer state are means within, and put back after."""
        with self._own.averaged(self._buffers):
            yield

    # the check against one process

    @property
    def clip_group(self) -> Group | None:
        """The ranks of this replica: each replica clips its own gradients."""
        return self._replica

    def compared(self, gradients: Tensors) -> Tensors:
        """The mean of the replicas' own gradients, which need not be of the same weights."""
        everywhere = {n: gradients.get(n, torch.zeros_like(p)) for n, p in self.trained().items()}
        return mean_over(self.group, everywhere)

    def check_average(self) -> float:
        """An average of weights one step apart, against a plain mean of the same weights."""
        return average_error(self)

    @property
    def note(self) -> str:
        """What is compared."""
        text = (
            f"{self.sync.name}: the mean of the replicas' own gradients, each replica's own step, "
            "and an average after it were compared"
        )
        found = self.sync.compression.error_bound(self.group.size)
        if found is None:
            return f"{text}, what each keeps back added"
        return text if found == 0 else f"{text} (may differ by {found:.1e} of the changes)"


def under(prefix: str, state: Tensors) -> dict[str, torch.Tensor]:
    """Entries whose key begins with a prefix, without it."""
    return {
        key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)
    }
