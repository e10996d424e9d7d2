"""Mean gradients on every rank, every step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, final

import torch
import torch.distributed as dist

from autopar.executor.division.keeping import average_over_data
from autopar.executor.mesh_groups import Group
from autopar.executor.synchronising.averaging import Averager, make_reducer
from autopar.executor.synchronising.base import Hook, Synchroniser, Tensors
from autopar.executor.synchronising.reducers.base import Layout
from autopar.sync import Sync

if TYPE_CHECKING:
    from autopar.executor.lowering import Context, Lowering


@final
class AllReduce(Synchroniser):
    """Averages gradients over the data ranks, compressed if the plan says so.

    A compression with one layer of collectives runs in DDP's hook beside backward, the others
    after it.
    """

    def __init__(self, context: Context, sync: Sync) -> None:
        super().__init__(context, sync)
        self._reducer = make_reducer(context, context.groups.data)
        self._plain = sync.compression.exact
        self._names: dict[int, str] = {}

    @property
    def ddp_group(self) -> Group | None:
        """All data ranks, if the compression may run beside backward."""
        whole = self._reducer.alike or self.context.plan.mesh.tp == 1
        return self.context.groups.data if self._reducer.streams and whole else None

    def hook(self) -> Hook | None:
        """The reducer on DDP's buckets."""
        if self._plain:
            return None
        # torch refuses an annotation of ``bucket`` that is a string, as all are in this module
        return lambda state, bucket: self._reduce_bucket(bucket)

    def _reduce_bucket(self, bucket: Any) -> torch.futures.Future[torch.Tensor]:
        flat, parameters = bucket.buffer(), bucket.parameters()
        layout = Layout(
            names=tuple(self._names[id(p)] for p in parameters),
            sizes=tuple(p.numel() for p in parameters),
        )
        if flat.dtype == torch.float32:
            return self._reducer.launch(flat, layout)
        future = self._reducer.launch(flat.float(), layout)
        return future.then(lambda mean: flat.copy_(mean.value()))

    def attach(self, lowering: Lowering) -> None:
        """Forget errors that were to be fed back."""
        super().attach(lowering)
        self._names = {id(p): name for name, p in lowering.parameters.items()}
        self._reducer.load_state({})
        self._averager = Averager(self._reducer, lowering, gradients=True)

    def reduce(
        self, parameters: Mapping[str, torch.nn.Parameter], *, ragged: bool = False
    ) -> None:
        """Bucket by bucket, or all at once, after backward."""
        context = self.context
        if self._plain:
            average_over_data(
                parameters,
                self.lowering.cuts,
                context.groups,
                bucket_bytes=context.plan.bucket_bytes,
                traffic=context.traffic,
            )
            return
        if context.groups.data.size == 1:
            return
        if ragged:
            self._fill(parameters)
        live = {name: p.grad for name, p in parameters.items() if p.grad is not None}
        for name, mean in self._averager.mean(live).items():
            parameters[name].grad = mean

    def _fill(self, parameters: Mapping[str, torch.nn.Parameter]) -> None:
        """Zeros where only other ranks have a gradient, as DDP does."""
        group, members = self.context.groups.data, list(parameters.values())
        used = torch.tensor([p.grad is not None for p in members], dtype=torch.uint8)
        used = used.to(self.context.device)
        dist.all_reduce(used, op=dist.ReduceOp.MAX, group=group.handle)
        self.context.traffic.all_reduce(used.numel(), group.size)
        for parameter, anywhere in zip(members, used.tolist(), strict=True):
            if anywhere and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)

    def state(self) -> dict[str, torch.Tensor]:
        """What the compression remembers."""
        return self._reducer.state()

    def load_state(self, state: Tensors) -> None:
        """Inverse of :meth:`state`."""
        self._reducer.load_state(state)

    @property
    def bound(self) -> float:
        """The compression's, for every term of a gradient."""
        found = self.sync.compression.error_bound(self.context.groups.data.size)
        return 0.0 if found is None else found * self.context.plan.mesh.tp

    def compared(self, gradients: Tensors) -> Tensors:
        """Gradients, and what of them is sent later."""
        if not self._reducer.feeds_back:
            return gradients
        errors = mean_errors(self.lowering, self._reducer.feedback.errors)
        return {name: value + errors[name] for name, value in gradients.items()}

    @property
    def note(self) -> str:
        """How a compression is compared."""
        if self._plain:
            return ""
        if self._reducer.feeds_back:
            return (
                f"{self.sync.name}: gradients plus the mean of what each replica keeps back were "
                "compared with the true mean gradients"
            )
        return (
            f"{self.sync.name}: gradients may differ by {self.bound:.1e} of the root mean square "
            "norm of the replicas' own gradients"
        )


def mean_errors(lowering: Lowering, errors: Tensors) -> dict[str, torch.Tensor]:
    """Mean over data ranks of what each keeps back, added up like gradients (collective)."""
    group = lowering.context.groups.data
    kept = {name: p.grad for name, p in lowering.parameters.items()}
    for name, parameter in lowering.parameters.items():
        if kept[name] is None:
            continue
        error = errors.get(name)
        whole = torch.zeros_like(parameter) if error is None else error.view_as(parameter).clone()
        dist.all_reduce(whole, group=group.handle)
        parameter.grad = whole.div_(group.size).to(parameter.dtype)
    lowering.sum_terms()
    result = {
        name: p.grad
        for name, p in lowering.parameters.items()
        if p.grad is not None and kept[name] is not None
    }
    for name, parameter in lowering.parameters.items():
        parameter.grad = kept[name]
    return result
