"""A run of ops as something another process can load, fill with numbers and time."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint

from autopar.profiler.counting.dataflow import CountedGraph, Value
from autopar.profiler.counting.opcost import TensorSpec
from autopar.trace import TracedTask, extract
from autopar.trace.cleanup import is_random
from autopar.trace.export import make_batch

Contexts = Callable[[], tuple[AbstractContextManager[Any], AbstractContextManager[Any]]]
_NORMAL_RUN = 2**18


@dataclass(frozen=True, slots=True, kw_only=True)
class Payload:
    """Ops with their inputs, without weights.

    Attributes:
        module: The ops; parameters and buffers are on ``meta``.
        leaves: Real batch tensors it reads.
        imports: Layout of the activations that enter it.
        backs: Per result, whether a gradient comes back to it.
    """

    module: GraphModule
    leaves: tuple[torch.Tensor, ...]
    imports: tuple[TensorSpec, ...]
    backs: tuple[bool, ...]


def make_payload(
    traced: TracedTask, graph: CountedGraph, first: int, stop: int, leaves: list[torch.Tensor]
) -> Payload:
    """Cut ops ``[first, stop)`` out of a traced task, without its weights.

    Args:
        traced: The task at the microbatch size to time.
        graph: Its counted ops.
        first: First op.
        stop: One past the last op.
        leaves: Real flat batch tensors of that size.
    """
    fragment = extract(traced, first, stop)
    for owner in fragment.module.modules():
        for name, parameter in list(owner.named_parameters(recurse=False)):
            if not parameter.is_meta:
                empty = torch.empty_like(parameter, device="meta")
                setattr(owner, name, torch.nn.Parameter(empty, parameter.requires_grad))
    return Payload(
        module=fragment.module,
        leaves=tuple(leaves[i] for i in fragment.batch_leaves),
        imports=tuple(_spec(graph, i) for i in fragment.imports),
        backs=tuple(_spec(graph, i).requires_grad for i in fragment.exports),
    )


def real_leaves(traced: TracedTask) -> list[torch.Tensor]:
    """Flat batch tensors with data, of the traced size."""
    inputs, target = make_batch(traced.task, traced.batch)
    return traced.flatten(inputs, target)


def _spec(graph: CountedGraph, op: int) -> TensorSpec:
    value = graph.values[op]
    assert isinstance(value, Value)
    return value.spec


class Runner:
    """A payload with numbers in it, ready to run on a device.

    Args:
        payload: The ops.
        device: ``cpu`` or ``cuda:0``.
        import_scale: Standard deviation of the activations that enter.
        weight_scale: Standard deviation of weights.
    """

    def __init__(
        self, payload: Payload, device: str, *, import_scale: float, weight_scale: float
    ) -> None:
        self._device = torch.device(device)
        self._module = payload.module
        _place_calls(self._module, self._device)
        _materialise(self._module, self._device, weight_scale)
        self._leaves = [leaf.to(self._device) for leaf in payload.leaves]
        self._imports = [_activation(s, self._device, import_scale) for s in payload.imports]
        self._backs = payload.backs
        self._random = any(is_random(node) for node in self._module.graph.nodes)
        self.parameters = list(self._module.parameters())

    def forward(self) -> list[torch.Tensor]:
        """Results that gradients come back to."""
        results = self._module(*self._leaves, *self._imports)
        return [r for r, back in zip(results, self._backs, strict=True) if back]

    def recomputed(self, around: Contexts) -> list[torch.Tensor]:
        """:meth:`forward` with ops that backward computes again, as the executor does it.

        Args:
            around: What to run them in, the first time and again.
        """
        results = checkpoint(
            self._module,
            *self._leaves,
            *self._imports,
            use_reentrant=False,
            preserve_rng_state=self._random,
            context_fn=around,
        )
        return [r for r, back in zip(results, self._backs, strict=True) if back]

    @staticmethod
    def seeds(results: list[torch.Tensor]) -> list[torch.Tensor]:
        """Unit gradients for the results."""
        return [torch.ones_like(r) for r in results]

    def clear(self) -> None:
        """Forget the gradients, as ``zero_grad(set_to_none=True)`` does."""
        for tensor in (*self.parameters, *self._imports):
            tensor.grad = None


def _place_calls(module: GraphModule, device: torch.device) -> None:
    """Let calls that make tensors (``arange``) make them on the device."""
    for node in module.graph.nodes:
        if node.op == "call_function":
            node.args, node.kwargs = pytree.tree_map_only(
                torch.device, lambda _: device, (node.args, dict(node.kwargs))
            )
    module.recompile()


def _materialise(module: GraphModule, device: torch.device, scale: float) -> None:
    filled: dict[int, torch.Tensor] = {}
    for owner in module.modules():
        for name, parameter in list(owner.named_parameters(recurse=False)):
            if id(parameter) not in filled:
                data = _weight(name, parameter, device, scale)
                filled[id(parameter)] = torch.nn.Parameter(data, parameter.requires_grad)
            setattr(owner, name, filled[id(parameter)])
        for name, buffer in list(owner.named_buffers(recurse=False)):
            setattr(owner, name, _buffer(name, buffer, device))
        for name, value in list(vars(owner).items()):
            if isinstance(value, torch.Tensor):
                setattr(owner, name, _buffer(name, value, device))


def _weight(name: str, like: torch.Tensor, device: torch.device, scale: float) -> torch.Tensor:
    data = torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device=device)
    if not like.is_floating_point():
        return data.zero_()
    if like.dim() > 1:
        return _fill_normal(data, scale)
    return data.fill_(1.0) if "weight" in name else data.zero_()


def _fill_normal(data: torch.Tensor, scale: float) -> torch.Tensor:
    """Normal numbers; large tensors repeat a short run of them, which is 20 times faster."""
    if data.numel() <= _NORMAL_RUN:
        return data.normal_(0.0, scale)
    run = torch.randn(_NORMAL_RUN, dtype=data.dtype, device=data.device) * scale
    extent = data.untyped_storage().nbytes() // data.element_size()
    for part in torch.split(data.as_strided((extent,), (1,)), _NORMAL_RUN):
        part.copy_(run[: part.numel()])
    return data


def _buffer(name: str, like: torch.Tensor, device: torch.device) -> torch.Tensor:
    if not like.is_meta:
        return like.to(device)
    data = torch.zeros(like.shape, dtype=like.dtype, device=device)
    return data.fill_(1) if like.is_floating_point() and "mean" not in name else data


def _activation(spec: TensorSpec, device: torch.device, scale: float) -> torch.Tensor:
    data = torch.empty_strided(spec.shape, spec.stride, dtype=spec.dtype, device=device)
    data = _fill_normal(data, scale) if spec.dtype.is_floating_point else data.zero_()
    return data.requires_grad_(spec.requires_grad)
