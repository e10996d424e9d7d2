"""The cost of one op alone: run it forward and backward on fake tensors and watch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from autopar.graph import Amount
from autopar.profiler.counting.tally import (
    KernelCall,
    Tally,
    Work,
    amount,
    storage_key,
    summarise,
)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor without data: layout, and how it stands to batch and autograd.

    Attributes:
        shape: Sizes.
        stride: Strides, in elements.
        dtype: Element type.
        requires_grad: True when a gradient flows to it.
        scales: True when it depends on the batch, so that its bytes are per sample.
    """

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    requires_grad: bool
    scales: bool

    @property
    def size_bytes(self) -> int:
        """Bytes of its elements."""
        count = 1
        for size in self.shape:
            count *= size
        return count * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Output:
    """One result tensor of an op.

    Attributes:
        spec: Its layout.
        alias: Position of the input tensor whose storage it shares, ``None`` for new storage.
        storage_bytes: Bytes of its storage.
    """

    spec: TensorSpec
    alias: int | None
    storage_bytes: float


Saved = tuple[str, int, Amount]
"""``("input", position, _)``, ``("output", position, _)`` or ``("own", _, bytes)``."""


@dataclass(frozen=True, slots=True)
class OpCost:
    """What one call costs, and what it hands on.

    Attributes:
        outputs: Result tensors in order.
        is_tuple: True when the call returns a tuple or list of tensors.
        forward: Kernels of the call.
        backward: Kernels of its gradient.
        saved: Storages autograd keeps for backward.
    """

    outputs: tuple[Output, ...]
    is_tuple: bool
    forward: Work
    backward: Work
    saved: tuple[Saved, ...]


class OpCoster:
    """Prices ops, each distinct call once.

    Args:
        batch: Samples in the traced batch.
    """

    def __init__(self, batch: int) -> None:
        self._batch = batch
        self._mode = FakeTensorMode(allow_non_fake_inputs=False)
        self._known: dict[Any, OpCost] = {}

    @property
    def distinct(self) -> int:
        """Number of different calls priced so far."""
        return len(self._known)

    def cost(
        self,
        target: Callable[..., Any],
        skeleton: tuple[Any, dict[str, Any]],
        inputs: tuple[TensorSpec, ...],
    ) -> OpCost:
        """Cost of ``target`` on tensors of the given layout.

        Args:
            target: The op.
            skeleton: ``(args, kwargs)`` with :class:`Slot` in the places of tensors.
            inputs: Layout of the tensors the slots refer to.
        """
        key = (target, _frozen(skeleton), inputs)
        if key not in self._known:
            self._known[key] = self._run(target, skeleton, inputs)
        return self._known[key]

    def _run(
        self,
        target: Callable[..., Any],
        skeleton: tuple[Any, dict[str, Any]],
        inputs: tuple[TensorSpec, ...],
    ) -> OpCost:
        tally = Tally()
        kept: list[torch.Tensor] = []

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            kept.append(tensor)
            return tensor

        with self._mode, torch.enable_grad():
            leaves = [_make(spec) for spec in inputs]
            tensors = leaves
            if _writes_arguments(target):
                tensors = [t.clone() if t.requires_grad else t for t in leaves]
            args, kwargs = pytree.tree_map_only(Slot, lambda s: tensors[s.position], skeleton)
            hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t)
            with tally, hooks:
                result = target(*args, **kwargs)
            forward = tally.take()
            outputs = [t for t in pytree.tree_leaves(result) if isinstance(t, torch.Tensor)]
            grown = {storage_key(t): s.scales for t, s in zip(tensors, inputs, strict=True)}
            forward_work = summarise(forward, grown, self._batch)
            backward_work = self._backward(tally, outputs, leaves, inputs, grown)
        return OpCost(
            outputs=tuple(_output(t, tensors, grown) for t in outputs),
            is_tuple=isinstance(result, list | tuple),
            forward=forward_work,
            backward=backward_work,
            saved=_saved(kept, tensors, outputs, grown, self._batch),
        )

    def _backward(
        self,
        tally: Tally,
        outputs: list[torch.Tensor],
        leaves: list[torch.Tensor],
        inputs: tuple[TensorSpec, ...],
        grown: dict[int, bool],
    ) -> Work:
        ends = [t for t in outputs if t.requires_grad]
        starts = [(t, s) for t, s in zip(leaves, inputs, strict=True) if t.requires_grad]
        if not ends or not starts:
            return Work()
        seeds = [torch.empty_like(t) for t in ends]
        grown |= {
            storage_key(seed): grown[storage_key(end)]
            for seed, end in zip(seeds, ends, strict=True)
        }
        with tally:
            gradients = torch.autograd.grad(ends, [t for t, _ in starts], seeds, allow_unused=True)
        calls: list[KernelCall] = tally.take()
        for gradient, (_, spec) in zip(gradients, starts, strict=True):
            if gradient is not None:
                grown.setdefault(storage_key(gradient), spec.scales)
        return summarise(calls, grown, self._batch)


@dataclass(frozen=True, slots=True)
class Slot:
    """Stands for the tensor at a position in an op's arguments."""

    position: int


def _make(spec: TensorSpec) -> torch.Tensor:
    tensor = torch.empty_strided(spec.shape, spec.stride, dtype=spec.dtype, device="cpu")
    return tensor.requires_grad_() if spec.requires_grad else tensor


def _writes_arguments(target: Callable[..., Any]) -> bool:
    return isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable


def _output(tensor: torch.Tensor, inputs: list[torch.Tensor], grown: dict[int, bool]) -> Output:
    key = storage_key(tensor)
    alias = next((i for i, t in enumerate(inputs) if storage_key(t) == key), None)
    spec = TensorSpec(
        shape=tuple(int(n) for n in tensor.shape),
        stride=tuple(int(n) for n in tensor.stride()),
        dtype=tensor.dtype,
        requires_grad=tensor.requires_grad,
        scales=grown.get(key, False),
    )
    return Output(spec, alias, float(tensor.untyped_storage().nbytes()))


def _saved(
    kept: list[torch.Tensor],
    inputs: list[torch.Tensor],
    outputs: list[torch.Tensor],
    grown: dict[int, bool],
    batch: int,
) -> tuple[Saved, ...]:
    result: list[Saved] = []
    seen: set[int] = set()
    for tensor in kept:
        key = storage_key(tensor)
        if key in seen:
            continue
        seen.add(key)
        source = next((i for i, t in enumerate(inputs) if storage_key(t) == key), None)
        place = next((i for i, t in enumerate(outputs) if storage_key(t) == key), None)
        if source is not None:
            result.append(("input", source, Amount()))
        elif place is not None:
            result.append(("output", place, Amount()))
        else:
            size = float(tensor.untyped_storage().nbytes())
            result.append(("own", 0, amount(size, grown.get(key, False), batch)))
    return tuple(result)


def _frozen(value: Any) -> Any:
    """A hashable picture of nested arguments."""
    if isinstance(value, list | tuple):
        return tuple(_frozen(v) for v in value)
    if isinstance(value, dict):
        return tuple((k, _frozen(v)) for k, v in sorted(value.items()))
    if isinstance(value, slice):
        return ("slice", value.start, value.stop, value.step)
    return (type(value).__name__, value) if isinstance(value, bool | int | float) else value
