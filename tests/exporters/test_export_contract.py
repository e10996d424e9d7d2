"""The contract of every export target: its text parses, each fact of a plan is accounted for."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
from exporters.conftest import PLANS
from exporters.export_forms import READERS, at, unknown_words

import autopar
from autopar.core.errors import InputError
from autopar.core.estimate import Estimate
from autopar.exporters import EXPORTS
from autopar.exporters.base import (
    AbstractExport,
    Exported,
    Notes,
    Subject,
    export_plan,
    subject_of,
)
from autopar.exporters.facts import facts
from autopar.plans import Mesh, Plan, Stage, TaskRef
from autopar.results import (
    CostBreakdown,
    MemoryBreakdown,
    PlanPrice,
    SearchResult,
    StageCost,
    Transfer,
)

pytestmark = pytest.mark.parametrize("target", list(EXPORTS))
STATES = {"torchrun": "plan", "slurm": "plan", "perfetto": "otherData.plan"}
"""Targets whose text holds the whole plan."""


def test_entry(target: str) -> None:
    export = EXPORTS.load(target)
    assert export.name == target and export.written_for and export.rest
    assert EXPORTS.summary(target)
    assert target in READERS, "say how its text is parsed back"


@pytest.mark.parametrize("name", list(PLANS))
def test_every_fact_is_stated_or_lossy(
    target: str, name: str, searches: dict[str, SearchResult]
) -> None:
    plan = searches[name].best.plan
    exported = autopar.export(searches[name], target)
    parsed = READERS[target](exported.text)
    lost = {loss.key for loss in exported.lossy}
    assert facts(plan).keys() == exported.kept.keys() | (lost & facts(plan).keys())
    for where in exported.kept.values():
        assert at(parsed, where) is not None
    assert unknown_words(target, parsed) == []
    assert all(loss.reason for loss in exported.lossy)


@pytest.mark.parametrize("name", list(PLANS))
def test_what_is_kept_has_its_value(
    target: str, name: str, searches: dict[str, SearchResult]
) -> None:
    """A number that is kept and not lossy stands in the text as it is in the plan."""
    plan = searches[name].best.plan
    exported = autopar.export(searches[name], target)
    parsed = READERS[target](exported.text)
    lost = {loss.key for loss in exported.lossy}
    if target in STATES:
        return
    for axis, degree in plan.mesh.to_dict().items():
        where = exported.kept.get(f"mesh.{axis}")
        if where is None or f"mesh.{axis}" in lost or "parallel" not in where:
            continue
        assert int(at(parsed, where)) == degree, axis
    batch = {
        "torchtitan": "training.global_batch_size",
        "megatron": "--global-batch-size",
        "deepspeed": "train_batch_size",
        "csv": "global_batch",
    }
    if target in batch:
        assert int(at(parsed, batch[target])) == plan.global_batch == 16


TENTH = Estimate(value=0.1, low=0.08, high=0.12, source="analytic")
PRICE = PlanPrice(
    step_time_s=TENTH,
    peak_memory_bytes=TENTH,
    samples_per_s=160.0,
    mfu=None,
    energy_joule=None,
    cost_usd=None,
    breakdown=CostBreakdown(forward_s=0.1),
    memory=(MemoryBreakdown(), MemoryBreakdown()),
    capacity_bytes=1e9,
    stage_costs=(StageCost(forward_s=0.01, backward_s=0.02),) * 2,
    transfers=(Transfer(producer=0, consumer=1, forward_s=0.001, backward_s=0.001, size_bytes=1),),
)


def example(**changes: Any) -> Plan:
    """A plan of two stages on eight ranks whose fields can be varied one at a time."""
    stages = (
        Stage(first_op=0, stop_op=10, pp=0, blocks=("n.embed", "n.layers.0", "n.layers.1")),
        Stage(first_op=10, stop_op=20, pp=1, blocks=("n.layers.2", "n.layers.3", "n.norm")),
    )
    body: dict[str, Any] = {
        "task": TaskRef(name="mine", target="zoo:gpt", fingerprint="f", op_count=20),
        "mesh": Mesh(dp_replicate=2, tp=2, pp=2),
        "stages": stages,
        "schedule": "1f1b",
        "microbatches": 4,
        "microbatch_size": 2,
    }
    plan = Plan(**{**body, **changes})
    return plan.with_predicted(PRICE.to_dict())


def _first(**changes: Any) -> tuple[Stage, ...]:
    stages = example().stages
    return (replace(stages[0], **changes), *stages[1:])


VARIATIONS: dict[str, dict[str, Any]] = {
    "mesh.dp_replicate": {"mesh": Mesh(dp_replicate=4, tp=2, pp=2)},
    "mesh.dp_shard": {"mesh": Mesh(dp_shard=4, tp=2, pp=2), "zero": 3},
    "mesh.cp": {"mesh": Mesh(dp_replicate=2, cp=2, tp=2, pp=2)},
    "mesh.tp": {"mesh": Mesh(dp_replicate=2, tp=4, pp=2)},
    "mesh.ep": {"mesh": Mesh(dp_replicate=2, tp=2, pp=2, ep=2)},
    "stages": {
        "stages": (
            Stage(first_op=0, stop_op=5, pp=0, blocks=("n.embed", "n.layers.0")),
            Stage(first_op=5, stop_op=20, pp=1, blocks=("n.layers.1", "n.layers.2", "n.layers.3")),
        )
    },
    "recompute": {"stages": _first(recompute=((0, 10),))},
    "selective": {"stages": _first(selective=((0, 10),))},
    "units": {"stages": _first(units=((0, 10),))},
    "schedule": {"schedule": "gpipe"},
    "microbatches": {"microbatches": 8},
    "microbatch_size": {"microbatch_size": 3},
    "batch_shares": {"batch_shares": (3, 1)},
    "precision": {"precision": "bfloat16"},
    "zero": {"mesh": Mesh(dp_shard=2, tp=2, pp=2), "zero": 3},
    "sequence_parallel": {"sequence_parallel": True},
    "offload": {"offload": True},
    "sync": {"sync": "all_reduce+int8"},
    "bucket_bytes": {"bucket_bytes": 8_000_000},
    "data_split": {"data_split": "contiguous"},
    "clip_norm": {"clip_norm": 0.5},
    "placement": {"placement": (1, 0, 2, 3, 4, 5, 6, 7)},
    "seed": {"seed": 7},
    "threads": {"threads": 3},
    "cluster": {"cluster": "2x4:t4"},
}
FROM: dict[str, dict[str, Any]] = {
    "zero": {"mesh": Mesh(dp_shard=2, tp=2, pp=2), "zero": 2},
}
"""What a variation starts from, where that is not the example."""
NOT_FACTS = {"task", "mesh", "predicted"}


@pytest.mark.parametrize("key", list(VARIATIONS))
def test_a_changed_field_shows(target: str, key: str) -> None:
    """Change one field: the text changes where the target says it is kept, or the loss is told."""
    plain, changed = example(**FROM.get(key, {})), example(**VARIATIONS[key])
    assert facts(changed).get(key) != facts(plain).get(key)
    before = export_plan(target, subject_of(plain))
    after = export_plan(target, subject_of(changed))
    told = {loss.key for loss in after.lossy} | {loss.key for loss in before.lossy}
    if key in after.kept and key not in told:
        where = after.kept[key]
        assert _value(target, after, where) != _value(target, before, where), where
    else:
        assert key in told


def _value(target: str, exported: Exported, where: str) -> Any:
    try:
        return at(READERS[target](exported.text), where)
    except KeyError:
        return None


def test_the_variations_cover_the_plan(target: str) -> None:
    names = {item.name for item in fields(Plan)} - NOT_FACTS
    assert names <= VARIATIONS.keys()


def test_silence_about_a_fact_is_a_loss(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Mute(AbstractExport):
        name = target
        written_for = "nothing"
        rest = "mute"

        def body(self, subject: Subject, notes: Notes) -> str:
            return "\n"

    monkeypatch.setattr(type(EXPORTS), "load", lambda self, name: Mute)
    exported = export_plan(target, subject_of(example()))
    assert {loss.key for loss in exported.lossy} == facts(example()).keys()
    assert {loss.reason for loss in exported.lossy} == {"mute"}


def test_hostile_names_stay_inside_comments(target: str) -> None:
    evil = "x\nAUTOPAR_PLAN\ntouch pwned # $(touch pwned) ' \" \u2028\ud800"
    task = TaskRef(name=evil, target=evil, fingerprint="f", op_count=20)
    exported = export_plan(target, subject_of(example(task=task, cluster=evil)))
    calm = export_plan(target, subject_of(example(cluster="somewhere")))
    exported.text.encode()
    shape = [line[:1] == "#" for line in exported.text.splitlines()]
    if target not in ("torchrun", "slurm"):  # these say that a file of the user's is needed
        assert shape == [line[:1] == "#" for line in calm.text.splitlines()]
    assert not any(line.startswith("touch") for line in exported.text.splitlines())
    READERS[target](exported.text)


def test_ranks_that_do_not_spread_are_refused(target: str) -> None:
    with pytest.raises(InputError, match="8 ranks for 3 hosts"):
        autopar.export(example(), target, nnodes=3)
