"""The Task: everything autopar needs to know about a training job, and nothing about machines."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    BatchFactory = Callable[[int, torch.Generator], tuple[Any, Any]]
    OptimizerFactory = Callable[[Iterable[torch.nn.Parameter]], torch.optim.Optimizer]
    SchedulerFactory = Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler]


@dataclass(frozen=True, kw_only=True)
class Task:
    """A training job: model, loss, data and optimizer, each as a factory.

    Attributes:
        name: Short name for plans and reports.
        model: Returns a fresh ``nn.Module`` in training mode; may be called under
            ``torch.device("meta")`` and must not touch files or the network.
        batch: ``batch(n, generator) -> (inputs, target)`` with ``n`` samples on dimension 0 of
            every tensor. ``inputs`` is a tensor, a tuple (positional arguments of the model) or a
            dict (keyword arguments). Everything random comes from ``generator``.
        loss: ``loss(output, target) -> scalar``, the mean over the samples of the batch.
        optimizer: ``optimizer(params) -> torch.optim.Optimizer``.
        weight: Optional ``weight(target) -> number`` of the items that the loss of a microbatch
            is the mean of, such as tokens that are not padding: every item of a global batch
            then counts the same, however many its microbatch and replica have. Without it
            every sample does.
        scheduler: Optional ``scheduler(optimizer) -> LRScheduler`` of torch, stepped after every
            optimizer step.
        dataset: Optional map-style dataset of ``(inputs, target)`` samples to train on instead
            of ``batch``, which then serves to trace and profile.
        sampler: Which samples of the dataset a step trains on: ``shuffle``, ``weighted`` (needs
            the dataset's ``weights`` or ``targets``) or ``bucketed`` (needs its ``lengths``).
        collate: ``collate(samples) -> (inputs, target)`` of a microbatch of the dataset; stacks
            equal tensors by default.
        target_loss: Optional training loss at which the task counts as learned;
            ``bench --convergence`` counts steps to it.
        seed: Seed of the initial weights and of the data.
        target: The string the task was resolved from (``zoo:gpt?layers=2``), if any; worker
            processes need it to build the task again.
    """

    name: str
    model: Callable[[], torch.nn.Module]
    batch: BatchFactory
    loss: Callable[[Any, Any], torch.Tensor]
    optimizer: OptimizerFactory
    weight: Callable[[Any], float | torch.Tensor] | None = None
    scheduler: SchedulerFactory | None = None
    dataset: Any = None
    sampler: str = "shuffle"
    collate: Callable[[list[Any]], tuple[Any, Any]] | None = None
    target_loss: float | None = None
    seed: int = 0
    target: str | None = field(default=None, compare=False)
