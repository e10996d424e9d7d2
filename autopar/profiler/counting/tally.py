"""What one op costs: every kernel it dispatches, forward and backward, on tensors without data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from autopar.graph import Amount
from autopar.profiler.counting import flops

aten = torch.ops.aten
NOTHING = Amount()

_ALLOCATORS = ("empty", "new_empty", "sym_", "_local_scalar_dense", "lift_fresh", "set_")
_READS_ROWS = {aten.embedding, aten.index_select, aten.gather, aten.index}
_WRITES_ONLY = {aten.copy_, aten.fill_, aten.zero_, aten.bernoulli_, aten.normal_, aten.uniform_}


def storage_key(tensor: torch.Tensor) -> int:
    """Identity of a tensor's storage, shared by its views."""
    return int(tensor.untyped_storage()._cdata)


def tensor_bytes(tensor: torch.Tensor) -> float:
    """Bytes a kernel touches in a tensor; an expanded one counts its storage only."""
    return float(min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()))


@dataclass(slots=True)
class KernelCall:
    """One dispatched kernel: its FLOPs and the storages it reads and writes."""

    kernel: Any
    flop: float
    stock_flop: float
    reads: list[tuple[int, float]]
    writes: list[tuple[int, float]]
    is_view: bool


@dataclass(slots=True)
class Work:
    """FLOPs, bytes and launches of a list of kernels."""

    flop: Amount = NOTHING
    stock_flop: Amount = NOTHING
    moved_bytes: Amount = NOTHING
    kernels: int = 0
    corrected: set[str] = field(default_factory=set)


class Tally(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the kernels dispatched inside it; they run on the fake mode below it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[KernelCall] = []
        self._alive: list[Any] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run the kernel and write it down."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        self._alive.append(out)
        self.calls.append(_call(func, args, kwargs, out))
        return out

    def take(self) -> list[KernelCall]:
        """The calls since the last take."""
        calls, self.calls = self.calls, []
        return calls


def _call(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> KernelCall:
    inputs = list(_tensors((args, kwargs)))
    outputs = list(_tensors(out))
    read_keys = {storage_key(t) for t in inputs}
    mutable = func._schema.is_mutable
    aliases = bool(outputs) and all(storage_key(t) in read_keys for t in outputs)
    packet = func.overloadpacket
    allocates = packet.__name__.startswith(_ALLOCATORS)
    is_view = allocates or not outputs or (aliases and not mutable)
    flop, stock = flops.count(func, args, kwargs, out)
    if packet in _WRITES_ONLY:
        inputs = inputs[1:]
    reads = [(storage_key(t), tensor_bytes(t)) for t in inputs]
    writes = [(storage_key(t), tensor_bytes(t)) for t in outputs]
    if packet in _READS_ROWS:
        reads[0] = (writes[0][0], min(reads[0][1], writes[0][1]))
    elif packet is aten._embedding_bag:
        rows = inputs[1].numel() * inputs[0].shape[1] * inputs[0].element_size()
        reads[0] = (reads[1][0], min(reads[0][1], float(rows)))
    return KernelCall(
        kernel=func, flop=flop, stock_flop=stock, reads=reads, writes=writes, is_view=is_view
    )


def summarise(calls: list[KernelCall], scales: dict[int, bool], batch: int) -> Work:
    """Add up kernels, splitting each figure into a fixed and a per-sample part.

    Args:
        calls: Kernels in order.
        scales: Storage -> whether its size grows with the batch; storages of results are added
            (a result grows when any argument does, unless it is listed already).
        batch: Samples in the traced batch.
    """
    work = Work()
    for call in calls:
        grows = any(scales.get(key, False) for key, _ in call.reads)
        for key, _ in call.writes:
            scales.setdefault(key, grows)
        grows |= any(scales[key] for key, _ in call.writes)
        if call.is_view:
            continue
        work.kernels += 1
        work.flop += amount(call.flop, grows, batch)
        work.stock_flop += amount(call.stock_flop, grows, batch)
        for key, size in (*call.reads, *call.writes):
            work.moved_bytes += amount(size, scales.get(key, False), batch)
        if call.flop != call.stock_flop:
            work.corrected.add(str(call.kernel.overloadpacket))
    return work


def amount(value: float, grows: bool, batch: int) -> Amount:
    """A figure for the traced batch as an amount per sample, or a fixed one."""
    return Amount(0.0, value / batch) if grows else Amount(value, 0.0)


def _tensors(tree: Any) -> Iterator[torch.Tensor]:
    return (leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor))
