"""Optimizer state in host memory: the task's own optimizer steps on host copies of the weights.

Weights and gradients stay on the device, and so does all that happens to gradients before a step:
exchange, clipping, the factor on a float16 loss. In a step gradients go down, the optimizer steps
on the host, where its state lives, and weights come up; the float32 ones, whatever products are
computed in. What a rank holds is what moves: its shards, its parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, MutableMapping
from dataclasses import replace
from typing import Any, final

import torch
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._dtensor_spec import TensorMeta

from autopar.core.errors import InputError
from autopar.executor.optimizing.gradients import local
from autopar.executor.sharding.optimizers import is_elementwise

HOST = torch.device("cpu")

State = dict[str, Any]
States = MutableMapping[torch.nn.Parameter, State]
"""Optimizer state by a rank's parameter; tensors shaped like it are shared out like it."""
Factory = Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]


@final
class HostCopies:
    """Host copies of a rank's parameters, and the way there and back.

    Copies and gradients are in pinned memory when the parameters are on a CUDA device, so that
    they move without another copy. A weight that somebody else changed (a loaded checkpoint, an
    average over replicas, the user's own loop) is fetched again before the next step.

    Args:
        parameters: Those the rank holds. Of a sharded one its own shard counts.
        host: Where copies, gradients and state live.

    Attributes:
        downloads: Weights fetched so far.
    """

    def __init__(
        self, parameters: Iterable[torch.nn.Parameter], host: torch.device = HOST
    ) -> None:
        self.host = host
        self.downloads = 0
        self._copies = {p: self._copy_of(p) for p in parameters}
        self._devices = {p.device for p in self._copies}
        self._gradients: dict[torch.nn.Parameter, torch.Tensor] = {}
        self._seen: dict[torch.nn.Parameter, int] = {}

    def make(self, factory: Factory) -> torch.optim.Optimizer:
        """An optimizer of the copies; its ``step`` moves gradients down and weights up.

        Copies are plain tensors of this rank, so the optimizer of shards must be elementwise. One
        that left the choice open uses torch's fused CPU kernels: one pass over its memory.

        Raises:
            InputError: Weights are shards and the optimizer is not known to be elementwise.
        """
        self.forget()
        for parameter in self._copies:
            if parameter.requires_grad:
                self._fetch(parameter)
        self._wait()
        optimizer = factory(list(self._copies.values()))
        if any(map(_is_sharded, self._copies)) and not is_elementwise(optimizer):
            raise InputError(
                f"optimizer {type(optimizer).__name__} is not known to be elementwise, and its "
                "state is in host memory, where a rank has its own shards of weights only",
                hint="use one of torch.optim's elementwise optimizers, set offload to false in "
                "the plan, or plan with dp_shard=1",
            )
        _prefer_fused(optimizer)
        optimizer.register_step_pre_hook(lambda *_: self._pull())
        optimizer.register_step_post_hook(lambda *_: self._push())
        return optimizer

    def states(self, optimizer: torch.optim.Optimizer) -> HostStates:
        """State of an optimizer that :meth:`make` made, by the rank's own parameters."""
        return HostStates(optimizer, self._copies)

    def forget(self) -> None:
        """Weights were written on the device: fetch them before the next step."""
        self._seen.clear()

    def _copy_of(self, parameter: torch.nn.Parameter) -> torch.nn.Parameter:
        """Memory for a weight, filled by :meth:`_fetch`; that of a frozen one stays untouched."""
        mine = local(parameter.detach())
        memory = self._memory(mine, pinned=mine.is_cuda and parameter.requires_grad)
        return torch.nn.Parameter(memory, requires_grad=parameter.requires_grad)

    def _memory(self, like: torch.Tensor, *, pinned: bool) -> torch.Tensor:
        """Contiguous, whatever its source is: fused CPU kernels walk all tensors as one row.

        torch 2.11-2.13 does not check that (a transposed weight and a plain gradient give wrong
        sums without a word).
        """
        return torch.empty(like.shape, dtype=like.dtype, device=self.host, pin_memory=pinned)

    @torch.no_grad()
    def _fetch(self, parameter: torch.nn.Parameter) -> None:
        mine = local(parameter)
        self._copies[parameter].copy_(mine, non_blocking=True)
        self._seen[parameter] = mine._version
        self.downloads += 1

    @torch.no_grad()
    def _pull(self) -> None:
        """Before a step: this rank's gradients, and weights that are not what was last sent up."""
        for parameter, copy in self._copies.items():
            copy.grad = None
            if parameter.grad is None:
                continue
            if self._seen.get(parameter) != local(parameter)._version:
                self._fetch(parameter)
            gradient = local(parameter.grad)
            memory = self._gradients.get(parameter)
            if memory is None:
                memory = self._memory(gradient, pinned=gradient.is_cuda)
                self._gradients[parameter] = memory
            copy.grad = memory.copy_(gradient, non_blocking=True)
        self._wait()

    @torch.no_grad()
    def _push(self) -> None:
        """After a step: the new weights.

        The device's next work is queued behind these copies, and the next :meth:`_pull` waits for
        all of it before the host writes here again.
        """
        for parameter, copy in self._copies.items():
            if copy.grad is not None:
                mine = local(parameter)
                mine.copy_(copy, non_blocking=True)
                self._seen[parameter] = mine._version
                copy.grad = None

    def _wait(self) -> None:
        """Until what was copied to the host is there."""
        for device in self._devices:
            if device.type == "cuda":
                torch.cuda.current_stream(device).synchronize()


@final
class HostStates(States):
    """A view of host state as if it lay beside the parameters, without moving it.

    Args:
        optimizer: Steps on the copies.
        copies: Parameter -> its copy.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        copies: dict[torch.nn.Parameter, torch.nn.Parameter],
    ) -> None:
        self._state = optimizer.state
        self._copies = copies

    def __getitem__(self, parameter: torch.nn.Parameter) -> State:
        copy = self._copies[parameter]
        if copy not in self._state:
            raise KeyError(parameter)
        return {key: _shown(parameter, value) for key, value in self._state[copy].items()}

    def __setitem__(self, parameter: torch.nn.Parameter, state: State) -> None:
        copy = self._copies[parameter]
        self._state[copy] = {key: self._taken(copy, value) for key, value in state.items()}

    def __delitem__(self, parameter: torch.nn.Parameter) -> None:
        del self._state[self._copies[parameter]]

    def __iter__(self) -> Iterator[torch.nn.Parameter]:
        return iter([p for p, copy in self._copies.items() if copy in self._state])

    def __len__(self) -> int:
        return len(self._state)

    def _taken(self, copy: torch.nn.Parameter, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        return local(value.detach()).to(copy.device).contiguous()


def like_parameter(parameter: torch.Tensor, mine: torch.Tensor) -> torch.Tensor:
    """A rank's own tensor as a part of one that is shared out like a parameter is.

    Its memory may be on another device than the parameter's mesh, as FSDP2's own offload has it.
    """
    if not isinstance(parameter, DTensor):
        return mine
    meta = TensorMeta(parameter.shape, parameter.stride(), mine.dtype)
    spec = replace(parameter._spec, tensor_meta=meta)
    return DTensor(mine, spec, requires_grad=False)  # type: ignore[no-untyped-call]


def _shown(parameter: torch.nn.Parameter, value: Any) -> Any:
    shaped = isinstance(value, torch.Tensor) and value.dim() > 0
    if shaped and value.shape == local(parameter.detach()).shape:
        return like_parameter(parameter, value)
    return value


def _is_sharded(parameter: torch.nn.Parameter) -> bool:
    return isinstance(parameter, DTensor) and any(p.is_shard() for p in parameter.placements)


def _prefer_fused(optimizer: torch.optim.Optimizer) -> None:
    """Take torch's fused CPU kernel where the task did not choose between its kernels."""
    open_choice = {"fused": None, "foreach": None}
    excluded = ("capturable", "differentiable")
    for group in optimizer.param_groups:
        undecided = all(key in group and group[key] is value for key, value in open_choice.items())
        plain = not any(group.get(key) for key in excluded)
        if undecided and plain and all(p.is_floating_point() for p in group["params"]):
            group["fused"] = True
