"""Every strategy on a model, each compared with one process: the parity matrix.

A cell is *exact* (all differences within 1e-5 relative), *within rounding* (a division that adds
in another order, on a model whose own float32 step is that far from float64), or *unsupported*,
with the reason that also keeps such plans out of the plan space.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree

from autopar.core.errors import AutoparError
from autopar.executor import RunOptions, run_plan
from autopar.executor.dropout import DropoutOff
from autopar.plans import Mesh, Plan, Stage, TaskRef
from autopar.profiler import count_task
from autopar.schedules import SCHEDULES
from autopar.strategies import Split, Strategies
from autopar.tasks import Task
from autopar.trace import TracedTask, build_model, trace
from autopar.trace.export import call_model

EXACT = 1e-5
ROUNDING_FACTOR = 4.0
"""A sum in another order may be this many times as far off as float32 is from float64."""
ROUNDING_BATCHES = 8
SAMPLES = 4


@dataclass(frozen=True, kw_only=True)
class Case:
    """One column of the matrix.

    Attributes:
        name: Its heading.
        mesh: Degrees.
        microbatches: Per replica.
        changes: Other fields of the plan.
        recompute: ``full`` or ``selective`` over halves of the model.
    """

    name: str
    mesh: dict[str, int]
    microbatches: int = 1
    changes: dict[str, Any] = field(default_factory=dict)
    recompute: str = ""


def _pp(schedule: str, **mesh: int) -> Case:
    name = "·".join([*(f"{a}{n}" for a, n in mesh.items()), "pp2", schedule])
    return Case(name=name, mesh={"pp": 2, **mesh}, microbatches=4, changes={"schedule": schedule})


CASES = (
    Case(name="dp2", mesh={"dp_replicate": 2}),
    *(
        Case(name=f"zero{level}", mesh={"dp_shard": 2}, changes={"zero": level})
        for level in (1, 2, 3)
    ),
    _pp("1f1b"),
    _pp("zero_bubble"),
    _pp("interleaved"),
    _pp("zbv"),
    Case(name="recompute", mesh={"dp_replicate": 2}, recompute="full"),
    Case(name="selective", mesh={"dp_replicate": 2}, recompute="selective"),
    Case(name="tp2", mesh={"tp": 2}),
    Case(name="tp2 sp", mesh={"tp": 2}, changes={"sequence_parallel": True}),
    Case(name="cp2", mesh={"cp": 2}),
    Case(name="ep2", mesh={"dp_replicate": 2, "ep": 2}),
)
"""On two ranks."""
COMPOSED = (
    Case(name="dp2·tp2", mesh={"dp_replicate": 2, "tp": 2}, changes={"clip_norm": 0.1}),
    Case(
        name="dp2·pp2",
        mesh={"dp_replicate": 2, "pp": 2},
        microbatches=4,
        changes={"schedule": "1f1b", "clip_norm": 0.1},
    ),
    Case(
        name="tp2·pp2",
        mesh={"tp": 2, "pp": 2},
        microbatches=4,
        changes={"schedule": "1f1b", "clip_norm": 0.1},
    ),
    Case(
        name="fsdp2·pp2",
        mesh={"dp_shard": 2, "pp": 2},
        microbatches=4,
        changes={"schedule": "1f1b", "zero": 3, "clip_norm": 0.1},
    ),
    Case(
        name="fsdp2·tp2",
        mesh={"dp_shard": 2, "tp": 2},
        changes={"zero": 3, "clip_norm": 0.1},
    ),
    Case(
        name="hsdp 2·2",
        mesh={"dp_replicate": 2, "dp_shard": 2},
        changes={"zero": 3, "clip_norm": 0.1},
    ),
)
"""On four ranks, with clipping."""
EIGHT = (
    Case(
        name="dp2·tp2·pp2",
        mesh={"dp_replicate": 2, "tp": 2, "pp": 2},
        microbatches=4,
        changes={"schedule": "1f1b", "clip_norm": 0.1},
    ),
)
"""On eight ranks."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One answer.

    Attributes:
        kind: ``exact``, ``within rounding``, ``differs``, ``unsupported`` or ``failed``.
        text: The largest relative difference, or the reason.
        difference: That difference where there is a reason too.
    """

    kind: str
    text: str
    difference: str = "- "

    @property
    def good(self) -> bool:
        """Neither a wrong result nor a crash."""
        return self.kind in ("exact", "within rounding", "unsupported")


class Model:
    """A model and everything that is the same in all its cells.

    Args:
        task: The task; small enough to run in a second.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self.traced: TracedTask = trace(task, SAMPLES, model=build_model(task))
        self.strategies = Strategies(count_task(self.traced))

    def cell(self, case: Case) -> Cell:
        """Run a case with ``verify``."""
        reason = self._unsupported(case)
        if reason is not None:
            return Cell(kind="unsupported", text=reason)
        with tempfile.TemporaryDirectory(prefix="autopar-") as folder:
            try:
                record = run_plan(self.plan(case), self.task, _options(Path(folder)))
            except AutoparError as error:
                return Cell(kind="failed", text=error.message)
        found = record.verify
        assert found is not None
        worst = max(found.loss_rel, found.grad_rel, found.weight_rel, found.buffer_rel)
        if worst <= EXACT:
            return Cell(kind="exact", text=f"{worst:.0e}")
        near = worst <= ROUNDING_FACTOR * self.rounding
        floor = f"float32 itself is {self.rounding:.0e} from float64"
        return Cell(
            kind="within rounding" if near else "differs", text=floor, difference=f"{worst:.0e} "
        )

    @cached_property
    def rounding(self) -> float:
        """Largest relative difference of float32 gradients from float64's, over a few batches."""
        return max(self._rounding(seed) for seed in range(ROUNDING_BATCHES))

    def _rounding(self, seed: int) -> float:
        narrow, wide = (self._gradients(dtype, seed) for dtype in (torch.float32, torch.float64))
        return float((narrow - wide).norm() / wide.norm())

    def _gradients(self, dtype: torch.dtype, seed: int) -> torch.Tensor:
        model = build_model(self.task).to(dtype)
        batch = self.task.batch(SAMPLES, torch.Generator().manual_seed(seed))
        inputs, target = pytree.tree_map_only(
            torch.Tensor, lambda t: t.to(dtype) if t.is_floating_point() else t, batch
        )
        with DropoutOff():
            torch.autograd.backward(self.task.loss(call_model(model, inputs), target))
        found = [p.grad.reshape(-1).double() for p in model.parameters() if p.grad is not None]
        return torch.cat(found)

    def _unsupported(self, case: Case) -> str | None:
        """The reason for which the plan space leaves the case out."""
        mesh = Mesh(**case.mesh)
        split = Split(
            tp=mesh.tp,
            sequence_parallel=bool(case.changes.get("sequence_parallel")),
            cp=mesh.cp,
            ep=mesh.ep,
        )
        return self.strategies.why_not(split)

    def plan(self, case: Case) -> Plan:
        """The plan of a case: stages, recompute and units at equal op counts."""
        mesh = Mesh(**case.mesh)
        schedule = SCHEDULES.load(case.changes.get("schedule", "none"))
        count = mesh.pp * (2 if schedule.interleaves else 1)
        halves = 2 * count
        edges = self._edges(halves)
        stages = tuple(
            self._stage(case, edges[2 * i : 2 * i + 3], schedule.rank_of(i, mesh.pp))
            for i in range(count)
        )
        return Plan(
            task=TaskRef(
                name=self.task.name,
                target=self.task.target,
                fingerprint=self.traced.fingerprint,
                op_count=len(self.traced.nodes),
            ),
            mesh=mesh,
            stages=stages,
            microbatches=case.microbatches,
            microbatch_size=SAMPLES,
            threads=1,
            **case.changes,
        )

    def _edges(self, parts: int) -> list[int]:
        total = len(self.traced.nodes)
        edges = [0]
        for i in range(1, parts):
            legal = [c for c in self.traced.cuts if c > edges[-1]]
            edges.append(min(legal, key=lambda c: abs(c - total * i / parts)))
        return [*edges, total]

    def _stage(self, case: Case, edges: list[int], pp: int) -> Stage:
        first, middle, stop = edges
        halves = ((first, middle), (middle, stop))
        return Stage(
            first_op=first,
            stop_op=stop,
            pp=pp,
            recompute=halves if case.recompute == "full" else (),
            selective=halves if case.recompute == "selective" else (),
            units=halves if case.changes.get("zero") else (),
        )


def _options(out: Path) -> RunOptions:
    return RunOptions(
        out=out, steps=1, warmup=0, verify=True, launcher="fork", quiet=True, timeout_s=120.0
    )


def table(rows: dict[str, dict[str, Cell]], cases: Iterable[Case]) -> str:
    """The matrix as Markdown, reasons below it."""
    names = [case.name for case in cases]
    lines = [f"| model | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    reasons: dict[str, int] = {}
    for model, cells in rows.items():
        texts = []
        for name in names:
            cell = cells[name]
            if cell.kind == "exact":  # the common case needs no note
                texts.append(cell.text)
                continue
            number = reasons.setdefault(f"{cell.kind}: {cell.text}", len(reasons) + 1)
            texts.append(f"{'' if cell.good else '**x** '}{cell.difference}({number})")
        lines.append(f"| {model} | {' | '.join(texts)} |")
    notes = [f"{number}. {text}" for text, number in reasons.items()]
    return "\n".join([*lines, "", *notes])
