"""Plans are valid by construction and survive their file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autopar.core.errors import InputError
from autopar.plans import Mesh, Plan, Stage, TaskRef

TASK = TaskRef(name="t", target="zoo:mlp", fingerprint="f", op_count=10)


def make(**changes: Any) -> Plan:
    fields: dict[str, Any] = {
        "task": TASK,
        "mesh": Mesh(dp_replicate=2, pp=2),
        "stages": (
            Stage(first_op=0, stop_op=4, pp=0),
            Stage(first_op=4, stop_op=10, pp=1, recompute=((4, 7),)),
        ),
        "schedule": "1f1b",
        "microbatches": 4,
    }
    return Plan(**{**fields, **changes})


def test_round_trip_keeps_the_hash(tmp_path: Path) -> None:
    plan = make(predicted={"step_time_s": None})
    plan.save(tmp_path / "p.json")
    loaded = Plan.load(tmp_path / "p.json")
    assert loaded == plan
    assert loaded.hash == plan.hash == make().hash
    assert make(microbatches=8).hash != plan.hash


def test_derived_figures() -> None:
    plan = make(microbatch_size=3)
    assert (plan.world_size, plan.global_batch, plan.chunks) == (4, 24, 1)
    assert plan.name == "dp2·pp2·1f1b·m4·b3·rc1"


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"microbatches": 0}, "microbatches"),
        ({"microbatch_size": -1}, "microbatch_size"),
        ({"microbatches": 1.5}, "microbatches"),
        ({"clip_norm": 0.0}, "clip_norm"),
        ({"data_split": "alphabetical"}, "data_split"),
        ({"placement": (0, 1, 1, 2)}, "placement"),
        ({"placement": (0, 1)}, "placement"),
        ({"batch_shares": (1, 1, 1), "microbatch_size": 1}, "for 2 replicas"),
        ({"batch_shares": (2, 0), "microbatch_size": 1}, "for 2 replicas"),
        ({"batch_shares": (3, 2), "microbatch_size": 2}, "sum to 5"),
        ({"stages": (Stage(first_op=0, stop_op=10, pp=0),)}, "multiple of pp"),
        (
            {"stages": (Stage(first_op=0, stop_op=4, pp=0), Stage(first_op=5, stop_op=10, pp=1))},
            "without gaps",
        ),
        (
            {"stages": (Stage(first_op=0, stop_op=4, pp=0), Stage(first_op=4, stop_op=10, pp=0))},
            "pipeline ranks",
        ),
    ],
)
def test_contradictions_are_refused(changes: dict[str, Any], word: str) -> None:
    with pytest.raises(InputError, match=word):
        make(**changes)


def test_units(tmp_path: Path) -> None:
    def sharded(*units: tuple[int, int], zero: int = 3) -> Plan:
        stages = (
            Stage(first_op=0, stop_op=4, pp=0, units=units),
            Stage(first_op=4, stop_op=10, pp=1),
        )
        return make(mesh=Mesh(dp_shard=2, pp=2), zero=zero, stages=stages)

    plan = sharded((2, 4), (0, 2))
    plan.save(tmp_path / "p.json")
    assert Plan.load(tmp_path / "p.json") == plan
    assert Plan.load(tmp_path / "p.json").hash == plan.hash
    assert len({plan.hash, sharded((0, 2)).hash, sharded().hash}) == 3
    for wrong in (((0, 3), (2, 4)), ((2, 5),)):
        with pytest.raises(InputError, match="units ranges"):
            sharded(*wrong)


def test_batch_shares(tmp_path: Path) -> None:
    plan = make(microbatch_size=2, batch_shares=(3, 1))
    assert plan.name == "dp2·pp2·1f1b·m4·b3+1·rc1"
    assert (plan.global_batch, plan.largest_microbatch) == (16, 3)
    assert [plan.replica_microbatch(r) for r in (0, 1)] == [3, 1]
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    even = make(microbatch_size=2, batch_shares=(2, 2))
    assert even.batch_shares == ()
    assert even.hash == make(microbatch_size=2).hash != plan.hash
    many = make(
        mesh=Mesh(dp_replicate=6), stages=(Stage(first_op=0, stop_op=10, pp=0),),
        microbatch_size=2, batch_shares=(1, 2, 3, 2, 2, 2),
    )  # fmt: skip
    assert "b1to3" in many.name


def test_unknown_field_is_refused() -> None:
    with pytest.raises(InputError, match="surprise"):
        Plan.from_dict({**make().to_dict(), "surprise": 1})


DEGREE = st.integers(1, 4)


@settings(deadline=None)  # a busy host is not an error
@given(st.builds(Mesh, dp_replicate=DEGREE, dp_shard=DEGREE, cp=DEGREE, tp=DEGREE, pp=DEGREE))
def test_rank_and_coordinates_are_inverse(mesh: Mesh) -> None:
    for rank in range(mesh.world_size):
        assert mesh.rank(**mesh.coordinates(rank)) == rank
        for axis in ("pp", "tp", "dp_replicate"):
            group = mesh.group(axis, rank=rank)
            assert rank in group
            assert len(set(group)) == getattr(mesh, axis)
