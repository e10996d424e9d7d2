"""The model and its graph, made once by the process that forks the ranks instead of once in each.

Building and tracing are most of what a rank of a small model does before its first step.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from autopar.plans import Plan
from autopar.tasks import Task
from autopar.trace import TracedTask, build_model, trace


@dataclass(kw_only=True)
class Ahead:
    """A seeded model and its graph, handed out once: who takes them may drop parts of them.

    Attributes:
        model: The model; its parameters are those of the graph.
        traced: Its graph.
    """

    model: torch.nn.Module
    traced: TracedTask
    _taken: bool = False

    def take(self, batch: int) -> tuple[torch.nn.Module, TracedTask] | None:
        """Both, if they are for this microbatch size and still here."""
        if self._taken or batch != self.traced.batch:
            return None
        self._taken = True
        found = self.model, self.traced
        del self.model, self.traced
        return found


def built(
    task: Task, batch: int, seed: int, ahead: Ahead | None
) -> tuple[torch.nn.Module, TracedTask]:
    """The seeded model and its graph: those made ahead, or fresh ones.

    Args:
        task: The task.
        batch: Samples in a microbatch.
        seed: Of the weights.
        ahead: What was made before this rank was forked.

    Raises:
        TraceError: torch.export cannot capture the task.
        InputError: A factory of the task is broken.
    """
    found = None if ahead is None else ahead.take(batch)
    if found is not None:
        return found
    model = build_model(task, seed=seed)
    return model, trace(task, batch, model=model)


def build_ahead(plan: Plan, task: Task) -> Ahead | None:
    """Model and graph for all ranks of a plan that runs on the graph.

    ``None`` where ranks have to do it: the plan runs the eager module, replicas have microbatches
    of different sizes, a GPU is here (the task's code might start CUDA, which no fork survives),
    or building fails, as each rank then says for itself.

    Args:
        plan: The plan.
        task: The task.
    """
    sizes = {plan.replica_microbatch(r) for r in range(plan.mesh.replicas)}
    if runs_eagerly(plan) or len(sizes) > 1 or torch.cuda.device_count():
        return None
    try:
        with torch.random.fork_rng(devices=[]):
            model, traced = built(task, sizes.pop(), plan.seed, None)
    except (Exception, SystemExit):
        return None
    return Ahead(model=model, traced=traced)


def runs_eagerly(plan: Plan) -> bool:
    """Replicas of the user's own module: nothing is cut, divided or computed again."""
    return plan.mesh.fits(("dp_replicate",)) and not plan.recomputes
