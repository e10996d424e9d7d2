"""Composed plans on this host: profiled, priced, run in turn, compared.

The host's own speed drifts by tens of percent from one minute to the next, so a reference loop is
timed beside the profile and beside each run. Errors are given as they are, and with the measured
time brought to the speed that the profile saw.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autopar.cluster import Cluster
from autopar.core.stats import COUNTED_QUANTILE, median, quantile
from autopar.cost import price
from autopar.graph import GraphProfile
from autopar.plans import Plan
from autopar.results import PlanPrice
from autopar.search import SearchOptions, plan_for
from autopar.tasks import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One plan.

    Attributes:
        name: What it is called in the table.
        ranks: Processes.
        spec: Axes, as ``--fix`` takes them.
        clip_norm: Gradient clipping.
    """

    name: str
    ranks: int
    spec: str
    clip_norm: float | None = None


TWO = (
    Case(name="dp2", ranks=2, spec="dp_replicate=2,m=2"),
    Case(name="zero1", ranks=2, spec="dp_shard=2,zero=1,m=2"),
    Case(name="zero2", ranks=2, spec="dp_shard=2,zero=2,m=2"),
    Case(name="zero3", ranks=2, spec="dp_shard=2,zero=3,m=2"),
    Case(name="tp2", ranks=2, spec="tp=2,m=2"),
    Case(name="cp2", ranks=2, spec="cp=2,m=2"),
    Case(name="pp2 1f1b", ranks=2, spec="pp=2,schedule=1f1b,m=4"),
    Case(name="pp2 interleaved", ranks=2, spec="pp=2,schedule=interleaved,m=4"),
    Case(name="pp2 zero-bubble", ranks=2, spec="pp=2,schedule=zero_bubble,m=4"),
    Case(name="dp2 recompute", ranks=2, spec="dp_replicate=2,recompute=full,m=2"),
)
FOUR = (
    Case(name="dp2·tp2", ranks=4, spec="dp_replicate=2,tp=2,m=2", clip_norm=1.0),
    Case(name="dp2·pp2", ranks=4, spec="dp_replicate=2,pp=2,m=4", clip_norm=1.0),
    Case(name="dp2·cp2", ranks=4, spec="dp_replicate=2,cp=2,m=2", clip_norm=1.0),
    Case(name="tp2·pp2", ranks=4, spec="tp=2,pp=2,m=4", clip_norm=1.0),
    Case(name="fsdp2·pp2", ranks=4, spec="dp_shard=2,zero=3,pp=2,m=4", clip_norm=1.0),
    Case(name="fsdp2·tp2", ranks=4, spec="dp_shard=2,zero=3,tp=2,m=2", clip_norm=1.0),
    Case(name="hsdp 2x2", ranks=4, spec="dp_replicate=2,dp_shard=2,zero=3,m=2", clip_norm=1.0),
)
MIXTURE = (
    Case(name="dp2", ranks=2, spec="dp_replicate=2,m=2"),
    Case(name="ep2", ranks=2, spec="dp_replicate=2,ep=2,m=2"),
    Case(name="zero3", ranks=2, spec="dp_shard=2,zero=3,m=2"),
    Case(name="tp2", ranks=2, spec="tp=2,m=2"),
    Case(name="pp2 1f1b", ranks=2, spec="pp=2,schedule=1f1b,m=4"),
    Case(name="dp2·pp2", ranks=4, spec="dp_replicate=2,pp=2,m=4", clip_norm=1.0),
    Case(name="ep2·pp2", ranks=4, spec="dp_replicate=2,ep=2,pp=2,m=4", clip_norm=1.0),
    Case(name="hsdp 2x2", ranks=4, spec="dp_replicate=2,dp_shard=2,zero=3,m=2", clip_norm=1.0),
)
CASES: dict[str, tuple[Case, ...]] = {
    "zoo:gpt?size=small": (*TWO, *FOUR),
    "zoo:moe?size=small": MIXTURE,
}
"""Target -> its plans; 16 samples per step each."""
GLOBAL_BATCH = 16


class Campaign:
    """A folder with profiles, plans, and what was measured so far; survives between calls.

    Args:
        folder: Where; made if missing.
        cases: Target -> its plans.
    """

    def __init__(self, folder: Path, cases: Mapping[str, Sequence[Case]] = CASES) -> None:
        self.folder = folder
        self.cases = cases
        folder.mkdir(parents=True, exist_ok=True)

    # what was profiled

    def _profile_file(self, target: str, ranks: int) -> Path:
        name = target.partition(":")[2].partition("?")[0]
        return self.folder / f"profile-{name}-{ranks}.json"

    def _cluster_file(self, ranks: int) -> Path:
        return self.folder / f"cluster-{ranks}.json"

    def profile(self, target: str, ranks: int, task: Task, speed: Callable[[int], float]) -> None:
        """Profile a target under the load of a number of ranks, and make the plans."""
        from autopar.profiler import profile_task

        before = speed(ranks)
        with tempfile.TemporaryDirectory(prefix="autopar-") as cache:
            outcome = profile_task(task, busy_ranks=ranks, cache_dir=Path(cache))
        outcome.profile.save(self._profile_file(target, ranks))
        self._note(kind="profile", target=target, ranks=ranks, speed=[before, speed(ranks)])
        cluster = Cluster.load(self._cluster_file(ranks))
        for case in (c for c in self.cases[target] if c.ranks == ranks):
            options = SearchOptions(global_batch=GLOBAL_BATCH, clip_norm=case.clip_norm)
            plan = plan_for(outcome.profile, cluster, case.spec, options).plan
            self._note(kind="plan", target=target, case=case.name, plan=plan.to_dict())

    def measure_cluster(self, ranks: int, *, quick: bool) -> None:
        """Measure the host for a number of ranks."""
        from autopar.api.clusters import measure_cluster

        measure_cluster(ranks, out=self._cluster_file(ranks), quick=quick)

    def price(self, target: str, case: Case, plan: Plan) -> PlanPrice:
        """What the cost model of now says of a plan of the last profile."""
        profile = GraphProfile.load(self._profile_file(target, case.ranks))
        return price(plan, profile, Cluster.load(self._cluster_file(case.ranks)))

    # what was run

    def run(
        self,
        target: str,
        case: Case,
        task: Task,
        speed: Callable[[int], float],
        *,
        steps: int,
        launcher: str,
    ) -> None:
        """Run a plan once and note its step times, memory and the host's speed around it."""
        from autopar.executor import RunOptions, run_plan

        plan = self.plan(target, case)
        before = speed(case.ranks)
        with tempfile.TemporaryDirectory(prefix="autopar-") as out:
            options: dict[str, Any] = {"launcher": launcher}
            record = run_plan(
                plan, task, RunOptions(out=Path(out), steps=steps, warmup=5, quiet=True, **options)
            )
        self._note(
            kind="run",
            target=target,
            case=case.name,
            launcher=launcher,
            steps=list(record.step_times_s),
            memory=max(record.peak_memory_bytes),
            breakdown=record.breakdown.to_dict(),
            speed=[before, speed(case.ranks)],
            events=[
                [e.rank, e.kind, e.start_s, e.end_s, e.stage, e.microbatch]
                for e in record.timeline.events
            ],
        )

    def plan(self, target: str, case: Case) -> Plan:
        """The plan of a case, from the last profile."""
        found = [
            row["plan"]
            for row in self.notes("plan")
            if (row["target"], row["case"]) == (target, case.name)
        ]
        return Plan.from_dict(found[-1])

    # notes

    @property
    def _notes(self) -> Path:
        return self.folder / "notes.jsonl"

    def _note(self, **row: Any) -> None:
        with self._notes.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")

    def notes(self, kind: str) -> list[dict[str, Any]]:
        """All notes of a kind, oldest first."""
        if not self._notes.exists():
            return []
        rows = [json.loads(line) for line in self._notes.read_text("utf-8").splitlines()]
        return [row for row in rows if row["kind"] == kind]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table.

    Attributes:
        target: The model.
        case: The plan.
        predicted_s: Predicted step.
        measured_s: Measured step, lower quartile.
        steady_s: The same at the speed that the profile saw, by the reference loop.
        predicted_bytes: Predicted peak over ranks.
        measured_bytes: Measured peak over ranks.
    """

    target: str
    case: Case
    predicted_s: float
    measured_s: float
    steady_s: float
    predicted_bytes: float
    measured_bytes: float

    @property
    def error(self) -> float:
        """(predicted - measured) / measured."""
        return self.predicted_s / self.measured_s - 1

    @property
    def steady_error(self) -> float:
        """The same with both at one speed of the host."""
        return self.predicted_s / self.steady_s - 1

    @property
    def memory_error(self) -> float:
        """(predicted - measured) / measured."""
        return self.predicted_bytes / self.measured_bytes - 1


def rows(campaign: Campaign) -> list[Row]:
    """One row per case that has run."""
    result = []
    for target, cases in campaign.cases.items():
        for case in cases:
            runs = [
                row
                for row in campaign.notes("run")
                if (row["target"], row["case"]) == (target, case.name)
            ]
            if not runs:
                continue
            found = campaign.price(target, case, campaign.plan(target, case))
            seen = _speed_of_profile(campaign, target, case.ranks)
            result.append(
                Row(
                    target=target,
                    case=case,
                    predicted_s=found.step_time_s.value,
                    measured_s=_typical(runs, None),
                    steady_s=_typical(runs, seen),
                    predicted_bytes=found.peak_memory_bytes.value,
                    measured_bytes=_memory(runs),
                )
            )
    return result


def _memory(runs: list[dict[str, Any]]) -> float:
    """Largest peak; of forked ranks, which share pages with their parent, only if all were."""
    own = [run["memory"] for run in runs if run["launcher"] != "fork"]
    return float(max(own or [run["memory"] for run in runs]))


def _typical(runs: list[dict[str, Any]], reference_s: float | None) -> float:
    """Lower quartile of all steps, brought to a speed of the host if one is given."""
    steps = []
    for run in runs:
        scale = 1.0 if reference_s is None else reference_s / _mean(run["speed"])
        steps += [seconds * scale for seconds in run["steps"]]
    return quantile(steps, COUNTED_QUANTILE)


def _speed_of_profile(campaign: Campaign, target: str, ranks: int) -> float:
    found = [
        row["speed"]
        for row in campaign.notes("profile")
        if (row["target"], row["ranks"]) == (target, ranks)
    ]
    return _mean(found[-1])


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)


def summary(errors: Iterable[float]) -> tuple[float, float]:
    """Median and 90 % quantile of absolute errors."""
    found = [abs(error) for error in errors]
    return median(found), quantile(found, 0.9)
