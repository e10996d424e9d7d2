"""Every strategy on a model, each compared with one process: the parity matrix.

A cell is *exact* (all differences within 1e-5 relative), *within bound* (a narrow precision, or a
division that adds in another order on a model whose own float32 step is that far from float64),
or *unsupported*, with the reason that also keeps such plans out of the plan space.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from autopar.core.errors import AutoparError
from autopar.executor import RunOptions, run_plan
from autopar.executor.precision import FLOAT32
from autopar.plans import Mesh, Plan, Stage
from autopar.profiler import count_task
from autopar.results import VerifyResult
from autopar.schedules import SCHEDULES
from autopar.search.space.spec import Spec
from autopar.strategies import Split, Strategies
from autopar.tasks import Task
from autopar.tasks.resolve import resolve
from autopar.tasks.zoo.small import small_target
from autopar.trace import TracedTask, trace
from autopar.validation.parity.cases import SAMPLES, Case
from autopar.validation.parity.space_points import PlanSpace

EXACT = FLOAT32.tolerance
EXAMPLES = {"efficientnet_b0": ("zoo:efficientnet_b0?width=0.5&depth=0.5&image=64&classes=10", 8)}
"""Target and samples of a microbatch where the small model says little: BatchNorm over four values
makes gradients of one process that are off by more than themselves in bfloat16."""
_GOOD = ("exact", "within bound", "unsupported")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One answer.

    Attributes:
        kind: ``exact``, ``within bound``, ``differs``, ``unsupported`` or ``failed``.
        difference: The largest relative difference, if it ran.
        reason: The bound where it is not the column's own, or why there is no difference.
    """

    kind: str
    difference: float | None = None
    reason: str = ""

    @property
    def good(self) -> bool:
        """Neither a wrong result nor a crash."""
        return self.kind in _GOOD


def example(name: str) -> Model:
    """A zoo model at the size of the matrix; see :data:`EXAMPLES`."""
    target, samples = EXAMPLES.get(name) or (small_target(name), SAMPLES)
    return Model(resolve(target), samples)


class Model:
    """A model and everything that is the same in all its cells.

    Args:
        task: The task; small enough to run in a second.
        samples: Of a microbatch, the mean over replicas.
    """

    def __init__(self, task: Task, samples: int = SAMPLES) -> None:
        self.task = task
        self.samples = samples
        self.traced: TracedTask = trace(task, samples, device="meta")
        self.profile = count_task(self.traced, cut=True)
        self.strategies = Strategies(self.profile)
        self._spaces: dict[int, PlanSpace] = {}

    def cell(self, case: Case) -> Cell:
        """Run a case with ``verify``, or say why the plan space leaves it out."""
        reason = self.why_not(case)
        if case.offered and self.offers(case) != (reason is None):
            found = "leaves it out" if reason is None else f"offers it, but {reason}"
            return Cell(kind="failed", reason=f"the plan space {found}")
        if reason is not None:
            return Cell(kind="unsupported", reason=reason)
        with tempfile.TemporaryDirectory(prefix="autopar-") as folder:
            try:
                record = run_plan(self.plan(case), self.task, _options(Path(folder)))
            except AutoparError as error:
                return Cell(kind="failed", reason=error.message)
        assert record.verify is not None
        return judge(record.verify)

    def why_not(self, case: Case) -> str | None:
        """The reason for which the plan space leaves the case out."""
        mesh = Mesh(**case.mesh)
        split = Split(
            tp=mesh.tp,
            sequence_parallel=bool(case.changes.get("sequence_parallel")),
            cp=mesh.cp,
            ep=mesh.ep,
        )
        return self.strategies.why_not(split)

    def offers(self, case: Case) -> bool:
        """True when the plan space of the model on as many ranks has the point of a case."""
        mesh = Mesh(**case.mesh)
        if mesh.world_size not in self._spaces:
            self._spaces[mesh.world_size] = PlanSpace(self.task, mesh.world_size, self.profile)
        schedule = str(case.changes.get("schedule", "none"))
        wanted: Spec = {
            "dp_replicate": mesh.dp_replicate,
            "dp_shard": mesh.dp_shard,
            "cp": mesh.cp,
            "tp": mesh.tp,
            "pp": mesh.pp,
            "ep": mesh.ep,
            "sequence_parallel": "on" if case.changes.get("sequence_parallel") else "off",
            "schedule": schedule,
            "zero": int(case.changes.get("zero", 0)),
            "microbatch_size": self.samples,
            "microbatches": case.microbatches,
            "recompute": case.recompute,
            "sync": str(case.changes.get("sync", "all_reduce")),
        }
        batch = mesh.replicas * self.samples * case.microbatches
        return self._spaces[mesh.world_size].offers(batch, wanted)

    def plan(self, case: Case) -> Plan:
        """The plan of a case: stages, recompute and units at equal op counts."""
        mesh = Mesh(**case.mesh)
        schedule = SCHEDULES.load(case.changes.get("schedule", "none"))
        count = mesh.pp * (2 if schedule.interleaves else 1)
        each = 4 if case.recompute == "mixed" else 2
        edges = self._edges(each * count)
        stages = tuple(
            _stage(case, edges[each * i : each * (i + 1) + 1], schedule.rank_of(i, mesh.pp))
            for i in range(count)
        )
        return Plan(
            task=self.traced.reference,
            mesh=mesh,
            stages=stages,
            microbatches=case.microbatches,
            microbatch_size=self.samples,
            threads=1,
            **self._changes(case),
        )

    def _changes(self, case: Case) -> dict[str, Any]:
        """Fields of the plan; shares are those of :data:`SAMPLES` samples per replica."""
        shares = case.changes.get("batch_shares")
        if shares is None:
            return case.changes
        return case.changes | {"batch_shares": tuple(s * self.samples // SAMPLES for s in shares)}

    def _edges(self, parts: int) -> list[int]:
        total = len(self.traced.nodes)
        edges = [0]
        for i in range(1, parts):
            legal = [c for c in self.traced.cuts if c > edges[-1]]
            edges.append(min(legal, key=lambda c: abs(c - total * i / parts)))
        return [*edges, total]


def judge(found: VerifyResult) -> Cell:
    """Exact in float32, else within what ``verify`` allows or rounding explains, or not."""
    worst = max(found.loss_rel, found.grad_rel, found.weight_rel, found.buffer_rel)
    if worst <= EXACT == found.tolerance:
        return Cell(kind="exact", difference=worst)
    own = max(found.grad_tolerance or found.tolerance, found.rounding_rel or 0.0)
    others = max(found.loss_rel, found.weight_rel, found.buffer_rel)
    within = found.passed or (others <= found.tolerance and found.grad_rel <= own)
    return Cell(
        kind="within bound" if within else "differs",
        difference=worst,
        reason=f"gradients within {own:.0e}" if own > found.tolerance else "",
    )


def _stage(case: Case, edges: list[int], pp: int) -> Stage:
    """Ops between the outer edges; recompute and units by part."""
    parts = tuple(pairwise(edges))
    full, selective = {
        "none": ((), ()),
        "full": (parts, ()),
        "selective": ((), parts),
        "mixed": (parts[::2], parts[1:2]),
    }[case.recompute]
    return Stage(
        first_op=edges[0],
        stop_op=edges[-1],
        pp=pp,
        recompute=full,
        selective=selective,
        units=parts if case.changes.get("zero") else (),
    )


def _options(out: Path) -> RunOptions:
    return RunOptions(
        out=out, steps=1, warmup=0, verify=True, launcher="fork", quiet=True, timeout_s=120.0
    )


def table(rows: dict[str, dict[str, Cell]], cases: Iterable[Case]) -> str:
    """The matrix as Markdown, reasons below it.

    Args:
        rows: Model name -> name of a case -> its cell.
        cases: The columns.
    """
    names = [case.name for case in cases]
    lines = [f"| model | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    reasons: dict[str, int] = {}
    for model, cells in rows.items():
        texts = []
        for name in names:
            cell = cells[name]
            parts = ["-" if cell.difference is None else f"{cell.difference:.0e}"]
            if not cell.good:
                parts.insert(0, "**x**")
            if cell.reason or not cell.good:
                note = f"{cell.kind}: {cell.reason}".rstrip(": ")
                parts.append(f"({reasons.setdefault(note, len(reasons) + 1)})")
            texts.append(" ".join(parts))
        lines.append(f"| {model} | {' | '.join(texts)} |")
    notes = [f"{number}. {text}" for text, number in reasons.items()]
    return "\n".join([*lines, "", *notes]).rstrip()
