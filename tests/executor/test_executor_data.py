"""Which samples a replica gets."""

from __future__ import annotations

from itertools import chain

import executor_models as models
import pytest
import torch

from autopar.core.errors import InputError
from autopar.executor.data import ReplicaData
from autopar.tasks import Task


def make(
    task: Task,
    split: str,
    replicas: int,
    microbatches: int = 2,
    shares: tuple[int, ...] = (),
) -> ReplicaData:
    return ReplicaData(
        task,
        seed=5,
        split=split,
        shares=shares or [12 // (replicas * microbatches)] * replicas,
        microbatches=microbatches,
    )


def rows(data: ReplicaData, step: int, replicas: int) -> list[list[float]]:
    return [
        [float(x) for inputs, _ in data.microbatches(step, r) for x in inputs[:, 0]]
        for r in range(replicas)
    ]


@pytest.mark.parametrize("split", ["random", "contiguous", "shard"])
@pytest.mark.parametrize("task", [models.mlp(), models.points()], ids=["batch", "dataset"])
def test_global_batch_depends_on_seed_and_step_only(task: Task, split: str) -> None:
    whole = rows(make(task, "contiguous", 1), 3, 1)[0]
    for replicas in (1, 2, 3):
        parts = rows(make(task, split, replicas), 3, replicas)
        assert sorted(chain.from_iterable(parts)) == sorted(whole)
        assert {len(part) for part in parts} == {12 // replicas}


def test_splits_are_what_their_names_say() -> None:
    task = models.points()
    whole = rows(make(task, "contiguous", 1), 0, 1)[0]
    assert rows(make(task, "contiguous", 2), 0, 2) == [whole[:6], whole[6:]]
    assert rows(make(task, "shard", 2), 0, 2) == [whole[::2], whole[1::2]]
    assert rows(make(task, "random", 2), 0, 2) != [whole[:6], whole[6:]]


@pytest.mark.parametrize("split", ["random", "contiguous", "shard"])
def test_uneven_shares_cover_the_same_global_batch(split: str) -> None:
    task = models.points()
    whole = rows(make(task, "contiguous", 1), 3, 1)[0]
    data = make(task, split, 3, shares=(3, 1, 2))
    parts = rows(data, 3, 3)
    assert [len(part) for part in parts] == [6, 2, 4]
    assert sorted(chain.from_iterable(parts)) == sorted(whole)
    assert [len(inputs) for inputs, _ in data.microbatches(3, 2)] == [2, 2]
    if split == "shard":
        assert data.positions(3, 0).tolist() == [0, 3, 5, 6, 9, 11]
        assert data.positions(3, 1).tolist() == [1, 7]


def test_an_epoch_visits_every_sample_once() -> None:
    data = make(models.points(24), "random", 2)
    seen = [list(chain.from_iterable(rows(data, step, 2))) for step in range(4)]
    assert len(set(seen[0] + seen[1])) == 24
    assert len(set(seen[2] + seen[3])) == 24
    assert seen[0] != seen[2]
    assert rows(data, 1, 2) == rows(data, 1, 2)


def test_too_small_a_dataset_and_a_batch_of_the_wrong_size_are_refused() -> None:
    with pytest.raises(InputError, match="has 5 samples, one step needs 12"):
        make(models.points(5), "random", 1)
    task = models.mlp()
    wrong = Task(
        name="wrong",
        model=task.model,
        batch=lambda n, g: (torch.zeros(3, 8), torch.zeros(3, 8)),
        loss=task.loss,
        optimizer=task.optimizer,
    )
    with pytest.raises(InputError, match="dimension 0"):
        make(wrong, "random", 1).microbatches(0, 0)
