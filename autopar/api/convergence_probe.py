"""Short runs of one task that differ in sync mode, seed and length only."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from autopar.api.clusters import Progress
from autopar.plans import Mesh, Plan, Stage
from autopar.results import RunRecord
from autopar.tasks import Task

EXACT = "all_reduce"


@dataclass
class Probe:
    """Runs of one task that differ in sync mode, seed and length only.

    Attributes:
        task: The task.
        plan: Replicas with exact synchronisation.
        folder: For the runs.
        seeds: Runs of each mode.
        modes: How many there are, the exact one included.
        progress: Called with what was trained, done, total.
        done: Seeds of modes that were trained.
        node_size: Ranks that count as one node.
    """

    task: Task
    plan: Plan
    folder: Path
    seeds: int
    modes: int
    progress: Progress | None
    done: int = 0
    node_size: int = 1

    def with_sync(self, name: str) -> Plan:
        """The plan with a sync mode."""
        return replace(self.plan, sync=name)

    def run(self, name: str, seed: int, steps: int) -> RunRecord:
        """One run.

        Raises:
            AutoparError: It failed.
        """
        import torch

        from autopar.executor import RunOptions, run_plan

        forks = hasattr(os, "fork") and not torch.cuda.is_available()
        options = RunOptions(
            out=self.folder / f"{name.replace(':', '-')}-{seed}",
            steps=steps,
            warmup=0,
            quiet=True,
            node_size=self.node_size,
            launcher="fork" if forks or self.task.target is None else "torchrun",
        )
        return run_plan(replace(self.with_sync(name), seed=seed), self.task, options)

    def exact(self, steps: int) -> list[RunRecord]:
        """Exact training, a run for each seed.

        Raises:
            AutoparError: One failed.
        """
        records = []
        for seed in range(self.seeds):
            records.append(self.run(EXACT, seed, steps))
            self.told(EXACT)
        return records

    def told(self, name: str) -> None:
        """One more seed of a mode is done."""
        self.done += 1
        if self.progress is not None:
            self.progress(f"{name} trained", self.done, self.modes * self.seeds)


def base_plan(job: Task, ranks: int, batch: int) -> Plan:
    """Replicas with exact synchronisation, one microbatch each."""
    from autopar.trace import trace

    traced = trace(job, batch // ranks, device="meta")
    count = len(traced.nodes)
    return Plan(
        task=traced.reference,
        mesh=Mesh(dp_replicate=ranks),
        stages=(Stage(first_op=0, stop_op=count, pp=0),),
        microbatch_size=batch // ranks,
        threads=1,
        cluster=f"local:{ranks}",
    )
