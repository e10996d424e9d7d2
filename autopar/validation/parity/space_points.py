"""Random valid points of a model's plan space, made into plans and run beside one process."""

from __future__ import annotations

import random
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from autopar.cluster import Cluster
from autopar.cluster.parse import parse_cluster
from autopar.core.errors import AutoparError
from autopar.cost import CostModel
from autopar.cost.layout import Cuts
from autopar.cost.work import FULL, NONE, SELECTIVE, Levels
from autopar.executor import RunOptions, run_plan
from autopar.graph import GraphProfile
from autopar.plans import Plan
from autopar.profiler import count_task
from autopar.results import VerifyResult
from autopar.search.options import SearchOptions
from autopar.search.space.build import Space, build_space
from autopar.search.space.plans import LEVELS, build_plan, layout_for
from autopar.search.space.point import Point
from autopar.search.space.spec import Spec
from autopar.search.space.variants import AXES
from autopar.tasks import Task
from autopar.trace import trace

SHORT_SEQUENCE = 4
"""Tokens that a context parallel rank keeps at least: small models have short sequences."""
BATCHES = (4, 6, 8, 12, 16)
PRECISIONS = ("float32", "float32", "bfloat16", "float16")
_MACHINE = "rtx-4090"
RUNS_HERE = "offload=off"
"""Points run on this host's CPU, where optimizer state has no other memory to live in."""


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A point and the plan made of it.

    Attributes:
        point: As the search has it.
        plan: With random stage boundaries, recompute levels, shares, precision and clipping.
    """

    point: Point
    plan: Plan


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a plan.

    Attributes:
        drawn: The plan.
        verify: The comparison with one process, ``None`` if it did not come so far.
        problem: Why not.
    """

    drawn: Drawn
    verify: VerifyResult | None = None
    problem: str = ""

    @property
    def good(self) -> bool:
        """It ran and computed what one process computes."""
        return self.verify is not None and self.verify.passed


class PlanSpace:
    """Everything that a search may choose for a task on some devices, all sync modes included.

    Args:
        task: A small task.
        devices: Ranks.
        profile: Of the task; counted here if not given.
    """

    def __init__(self, task: Task, devices: int, profile: GraphProfile | None = None) -> None:
        self.task = task
        nodes = 2 if devices % 2 == 0 and devices > 2 else 1  # shards inside nodes need nodes
        self.cluster: Cluster = parse_cluster(f"{nodes}x{devices // nodes}:{_MACHINE}")
        if profile is None:
            profile = count_task(trace(task, 2, device="meta"), cut=True)
        self.profile = profile
        self._models = {
            precision: CostModel(self.profile, self.cluster, precision)
            for precision in dict.fromkeys(PRECISIONS)
        }
        self._spaces: dict[int, Space] = {}

    def space(self, batch: int) -> Space:
        """The space for a global batch."""
        if batch not in self._spaces:
            options = _options(batch, sync="any", objective="time-to-target")
            self._spaces[batch] = build_space(
                self.profile, self.cluster, options, least_sequence=SHORT_SEQUENCE
            )
        return self._spaces[batch]

    def offers(self, batch: int, wanted: Spec) -> bool:
        """True when a search may choose a point with some values.

        Args:
            batch: Global batch.
            wanted: Axis of a point -> value; any value where an axis is left out.
        """
        for group in self.space(batch).groups:
            some = group.point(group.variants.variants[0])
            if any(some.value(a) != v for a, v in wanted.items() if a not in AXES):
                continue
            if any(
                point.matches(wanted) and self._syncs(point)
                for point in map(group.point, group.variants.variants)
            ):
                return True
        return False

    def _syncs(self, point: Point, precision: str = "float32") -> bool:
        """False for points that the search drops when it prices their first layout."""
        layout = layout_for(point, self._models[precision], SearchOptions())
        return layout.cannot_sync is None

    def draw(self, chooser: random.Random) -> Drawn:
        """A random plan; ways to divide work are equally likely, then variants of one."""
        while True:
            batch, precision = chooser.choice(BATCHES), chooser.choice(PRECISIONS)
            point, model = self._point(batch, chooser), self._models[precision]
            if self._syncs(point, precision):
                return Drawn(point=point, plan=self._plan(point, batch, model, chooser))

    def _point(self, batch: int, chooser: random.Random) -> Point:
        groups: dict[object, list[int]] = {}
        space = self.space(batch)
        for index, group in enumerate(space.groups):
            shape = (group.dp_replicate, group.dp_shard, group.split, group.pp)
            groups.setdefault(shape, []).append(index)
        group = space.groups[chooser.choice(groups[chooser.choice(list(groups))])]
        # The schedule first: otherwise those with many stages per rank are drawn most of the time.
        variants = group.variants.variants
        kind = chooser.choice(sorted({v.schedule for v in variants}))
        exact = chooser.random() < 0.5
        fitting = [v for v in variants if v.schedule == kind]
        plain = [v for v in fitting if v.sync == "all_reduce"]
        return group.point(chooser.choice(plain if exact and plain else fitting))

    def _plan(self, point: Point, batch: int, model: CostModel, chooser: random.Random) -> Plan:
        clip = chooser.choice([None, 0.1])
        levels: Levels | None = None
        if point.recompute == "mixed":
            choices = (NONE, SELECTIVE, FULL)
            levels = tuple(chooser.choice(choices) for _ in self.profile.blocks)
        plan = build_plan(
            point,
            self._cuts(point.stages, chooser),
            model,
            replace(_options(batch), clip_norm=clip),
            levels or (LEVELS.get(point.recompute, NONE),) * len(self.profile.blocks),
        )
        return replace(plan, threads=1)

    def _cuts(self, stages: int, chooser: random.Random) -> Cuts:
        count = len(self.profile.blocks)
        return (0, *sorted(chooser.sample(range(1, count), stages - 1)), count)

    def run(self, drawn: Drawn, timeout_s: float = 60.0) -> Outcome:
        """Train one step with ``verify``."""
        with tempfile.TemporaryDirectory(prefix="autopar-") as folder:
            options = RunOptions(
                out=Path(folder),
                steps=1,
                warmup=0,
                verify=True,
                launcher="fork",
                quiet=True,
                timeout_s=timeout_s,
                node_size=self.cluster.groups[0].machine.devices_per_node,
            )
            try:
                record = run_plan(drawn.plan, self.task, options)
            except AutoparError as error:
                return Outcome(drawn=drawn, problem=error.message)
        return Outcome(drawn=drawn, verify=record.verify)


def _options(batch: int, *, sync: str = "exact", objective: str = "time") -> SearchOptions:
    return SearchOptions(
        global_batch=batch, space="runnable", sync=sync, objective=objective, fix=(RUNS_HERE,)
    )
