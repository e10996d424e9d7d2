"""parallelize(): a plan inside the user's own training loop."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autopar.api.running import as_plan
from autopar.core.errors import InputError
from autopar.plans import Plan
from autopar.results import SearchResult
from autopar.tasks import Task

if TYPE_CHECKING:
    import torch

    from autopar.executor.own_loop.options import SessionOptions
    from autopar.executor.own_loop.session import Session


def parallelize(
    model: Task | torch.nn.Module | Callable[[], torch.nn.Module],
    plan: Plan | SearchResult | Path | str,
    *,
    loss: Callable[[Any, Any], torch.Tensor] | None = None,
    example: tuple[Any, Any] | None = None,
    optimizer: Callable[[Any], torch.optim.Optimizer] | None = None,
    scheduler: Callable[[Any], torch.optim.lr_scheduler.LRScheduler] | None = None,
    **options: Any,
) -> Session:
    """Distribute a model by a plan inside a script that torchrun starts.

    A plan of one rank needs no torchrun.

    Args:
        model: Your model, with the weights you gave it (every rank gets those of rank 0), or a
            function that makes one, or a whole task. A model given as an object is trained in
            place where the plan leaves it whole; :meth:`Session.state_dict` has the whole
            weights under every plan.
        plan: A plan, a search result (its best), or a file with either.
        loss: ``loss(output, target) -> scalar``, the mean over the samples.
        example: One batch ``(inputs, target)`` of any size, to trace the model with.
        optimizer: ``optimizer(params) -> torch.optim.Optimizer``.
        scheduler: ``scheduler(optimizer) -> LRScheduler``, stepped at every step.
        options: Fields of :class:`autopar.executor.own_loop.options.SessionOptions`:
            ``clip_norm``, ``steps``, ``node_size``, ``device``, ``timeout_s``, ``verify``,
            ``tolerance``.

    Returns:
        A session: ``session.step(inputs, target)`` is one optimizer step.

    Raises:
        InputError: Something is missing, or does not fit the plan or the processes.
        GateError: ``verify`` found a difference.
    """
    from autopar.executor.own_loop.session import Session

    chosen, _ = as_plan(plan)
    how = _session_options(options)
    parts = {"loss": loss, "optimizer": optimizer, "scheduler": scheduler}
    task = _task(model, chosen.task.name, example, parts)
    return Session(chosen, task, how)


def _session_options(options: dict[str, Any]) -> SessionOptions:
    from autopar.executor.own_loop.options import SessionOptions

    try:
        return SessionOptions(**options)
    except TypeError as error:
        raise InputError(
            f"parallelize: {error}",
            hint="options are " + ", ".join(SessionOptions.__dataclass_fields__),
        ) from error


def _task(
    model: Task | torch.nn.Module | Callable[[], torch.nn.Module],
    name: str,
    example: tuple[Any, Any] | None,
    parts: dict[str, Any],
) -> Task:
    """The task, or one made of a model and the parts a task has besides.

    Raises:
        InputError: A part is missing, or given twice.
    """
    from autopar.executor.own_loop.given import task_of

    given = [key for key, value in {**parts, "example": example}.items() if value is not None]
    if isinstance(model, Task):
        if given:
            raise InputError(
                f"parallelize got a task and {given[0]} besides",
                hint=f"set {given[0]} in the task",
            )
        return model
    missing = [key for key in ("loss", "example", "optimizer") if key not in given]
    if missing or example is None:
        raise InputError(
            f"parallelize needs {', '.join(missing)} besides the model",
            hint="or pass an autopar.Task, which has them all",
        )
    return task_of(model, name=name, example=example, parts=parts)
