"""A task made of the model, loss, example and optimizer that a user's own script holds."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.utils import _pytree as pytree

from autopar.core.errors import InputError
from autopar.executor.mesh_groups import MeshGroups
from autopar.tasks import Task


class GivenModel:
    """A model factory that hands out one object, the user's own, and afterwards copies of it.

    Under ``torch.device("meta")`` it hands out copies without memory, so that a task of this
    model can be traced like any other.

    Args:
        model: The user's model; its weights are moved to the CPU, where plans are lowered.
        first: What copies are made of; the model itself by default. A caller who wants copies
            after training began passes a copy of the first weights.
    """

    def __init__(self, model: torch.nn.Module, first: torch.nn.Module | None = None) -> None:
        self._model = model.cpu()
        self._first = model if first is None else first
        self._handed = False

    def __call__(self) -> torch.nn.Module:
        """The model, or a copy."""
        if torch.empty(0).device.type == "meta":
            return copied(self._first, meta=True)
        if self._handed:
            return copied(self._first)
        self._handed = True
        return self._model


def copied(model: torch.nn.Module, *, meta: bool = False) -> torch.nn.Module:
    """A deep copy; with ``meta`` its parameters and buffers have shapes but no memory.

    Parameters that several modules share stay shared.
    """
    memo: dict[int, Any] = {}
    if meta:
        for parameter in model.parameters():
            empty = torch.empty_like(parameter, device="meta")
            memo[id(parameter)] = torch.nn.Parameter(empty, requires_grad=parameter.requires_grad)
        for buffer in model.buffers():
            memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(model, memo)


def task_of(
    model: torch.nn.Module | Callable[[], torch.nn.Module],
    *,
    name: str,
    example: tuple[Any, Any],
    parts: Mapping[str, Any] = MappingProxyType({}),
) -> Task:
    """The task of a user's script.

    Args:
        model: A module, or a function that makes one.
        name: Name of the task.
        example: ``(inputs, target)`` with any number of samples on dimension 0 of every tensor.
        parts: Further fields of the task: ``loss``, ``optimizer`` and so on.

    Raises:
        InputError: The model is wrapped already, or the example is no pair of samples.
    """
    check_model(model)
    check_example(example)
    factory = (lambda: model) if isinstance(model, torch.nn.Module) else model
    return Task(name=name, model=factory, batch=lambda n, _: cycled(example, n), **parts)


def check_model(model: object) -> None:
    """Refuse what is no model, or one that something else distributes already.

    Raises:
        InputError: Says which.
    """
    if isinstance(model, DistributedDataParallel | DataParallel | FSDPModule):
        raise InputError(
            f"the model is wrapped in {type(model).__name__}",
            hint="pass the model itself; the plan decides how it is distributed",
        )
    if isinstance(model, torch.nn.Module):
        if any(t.is_meta for t in (*model.parameters(), *model.buffers())):
            raise InputError(
                "the model has weights on the meta device, they have no values",
                hint="pass the function that builds the model instead",
            )
    elif not callable(model):
        raise InputError(
            f"model is {type(model).__name__}: a Task, an nn.Module or a function that makes one "
            "is needed",
            hint="pass your model",
        )


def check_example(example: object) -> None:
    """Refuse an example that is no batch.

    Raises:
        InputError: It is no pair, holds no tensor, or its tensors differ in samples.
    """
    if not isinstance(example, tuple) or len(example) != 2:
        raise InputError(
            f"example is {type(example).__name__}: a pair (inputs, target) is needed",
            hint="pass one batch as your loader makes it, any number of samples",
        )
    sizes = sample_counts(example)
    if len(sizes) != 1 or 0 in sizes:
        raise InputError(
            f"the tensors of the example have {sorted(sizes)} samples on dimension 0",
            hint="every tensor of a batch needs the same number, 1 or more",
        )


def sample_counts(batch: object) -> set[int]:
    """Different sizes of dimension 0 of the tensors in a batch; 0 for a scalar."""
    leaves = [leaf for leaf in pytree.tree_leaves(batch) if isinstance(leaf, torch.Tensor)]
    return {leaf.shape[0] if leaf.dim() else 0 for leaf in leaves}


def cycled(batch: tuple[Any, Any], count: int) -> tuple[Any, Any]:
    """``count`` samples: those of a batch over and over."""

    def rows(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.cpu()[torch.arange(count) % tensor.shape[0]]

    result: tuple[Any, Any] = pytree.tree_map_only(torch.Tensor, rows, batch)
    return result


def share_weights(model: torch.nn.Module, groups: MeshGroups) -> None:
    """Give every rank the weights and buffers that rank 0 has (collective).

    Raises:
        InputError: Ranks built different models.
    """
    if groups.world_size == 1:
        return
    held = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    mine = [(name, tuple(t.shape), str(t.dtype)) for name, t in held.items()]
    everyones: list[Any] = [None] * groups.world_size
    dist.all_gather_object(everyones, mine, group=groups.control)
    for rank, theirs in enumerate(everyones):
        if theirs != everyones[0]:
            odd = sorted({*theirs} ^ {*everyones[0]}) or ["the order of its weights"]
            raise InputError(
                f"rank {rank} built another model than rank 0: {odd[0]}",
                hint="build the same model on every rank",
            )
    with torch.no_grad():
        for tensor in held.values():
            here = tensor.detach().cpu()
            dist.broadcast(here, src=0, group=groups.control)
            tensor.copy_(here)
