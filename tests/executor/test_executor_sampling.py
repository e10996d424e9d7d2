"""Samplers and splits: what they choose, that plans do not matter, and runs with them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import executor_helpers as helpers
import executor_models as models
import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import Dataset

from autopar.core.errors import InputError, TrainingError
from autopar.data import Described, PadCollate, batch_from
from autopar.executor.data import ReplicaData
from autopar.executor.sampling.registry import SAMPLERS, SPLITS
from autopar.tasks import Task


class Sentences(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Rows of tokens of 1 to 24 tokens, most of them short."""

    def __init__(self, count: int) -> None:
        generator = torch.Generator().manual_seed(3)
        self.lengths = (1 + 24 * torch.rand(count, generator=generator) ** 3).int().tolist()
        self.rows = [
            torch.randint(1, 30, (length + 1,), generator=generator) for length in self.lengths
        ]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.rows[i][:-1], self.rows[i][1:]


class Reader(torch.nn.Module):
    """Works at any length."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(30, 8)
        self.head = torch.nn.Linear(8, 30)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = self.embedding(tokens)
        return self.head(hidden.cumsum(1).tanh())


def reading(length: int | None = None, count: int = 64, **changes: Any) -> Task:
    data, collate = Sentences(count), PadCollate(length=length)
    task = Task(
        name="reading",
        model=Reader,
        batch=batch_from(data, PadCollate(length=length or 25)),
        loss=lambda out, target: F.cross_entropy(out.flatten(0, 1), target.flatten()),
        optimizer=lambda params: torch.optim.SGD(params, lr=0.5),
        weight=lambda target: (target != -100).sum(),
        dataset=data,
        collate=collate,
    )
    return replace(task, **changes)


def data_of(task: Task, shares: tuple[int, ...], microbatches: int, split: str) -> ReplicaData:
    return ReplicaData(task, seed=4, split=split, shares=shares, microbatches=microbatches)


def skewed(**changes: Any) -> Task:
    """90 samples of class 0 and 10 of class 1, each sample's number in its input."""
    rows = [(torch.full((8,), float(i)), torch.zeros(8)) for i in range(100)]
    labels = [int(i % 10 == 0) for i in range(100)]
    described = Described(rows, **changes)
    if not changes:
        described.targets = labels  # type: ignore[attr-defined]
    return replace(models.mlp(), dataset=described, sampler="weighted")


def drawn(task: Task, steps: int, shares: tuple[int, ...] = (20,)) -> list[int]:
    data = data_of(task, shares, 1, "contiguous")
    return [
        int(x)
        for step in range(steps)
        for r in range(len(shares))
        for x in data.microbatches(step, r)[0][0][:, 0]
    ]


def test_weighted_makes_classes_equal() -> None:
    rare = [i for i in drawn(skewed(), 200) if i % 10 == 0]
    assert 1800 < len(rare) < 2200  # half of 4000, standard deviation 32
    assert len(set(rare)) == 10


def test_weighted_follows_given_weights() -> None:
    weights = [0.0] * 50 + [1.0] * 25 + [3.0] * 24 + [0.0]
    found = drawn(skewed(weights=weights), 200)
    assert min(found) == 50
    assert max(found) == 98
    heavy = sum(i >= 75 for i in found)
    assert heavy / len(found) == pytest.approx(72 / 97, abs=0.03)
    assert drawn(skewed(weights=weights), 3) == drawn(skewed(weights=weights), 3, (5, 5, 10))


def test_bucketed_pads_little_and_visits_all_once() -> None:
    task = reading(count=96, sampler="bucketed")
    lengths = torch.tensor(task.dataset.lengths)

    def waste(sampler: str) -> float:
        choose = SAMPLERS.load(sampler)(task, 7, 8)
        rows = lengths[torch.stack([choose.indices(step) for step in range(12)])]
        return float((rows.amax(1, keepdim=True) - rows).sum() / rows.sum())

    assert waste("bucketed") < 0.3 * waste("shuffle")
    choose = SAMPLERS.load("bucketed")(task, 7, 8)
    epochs = [torch.cat([choose.indices(12 * e + s) for s in range(12)]) for e in (0, 1)]
    for epoch in epochs:
        assert sorted(epoch.tolist()) == list(range(96))
    assert epochs[0].tolist() != epochs[1].tolist()
    means = lengths[epochs[0]].view(12, 8).float().mean(1)
    assert means.tolist() != sorted(means.tolist())  # lengths do not grow over the epoch


@pytest.mark.parametrize("shares", [(4, 4), (6, 2)])
def test_balanced_gives_equal_tokens(shares: tuple[int, ...]) -> None:
    task = reading()
    lengths = torch.tensor(task.dataset.lengths)

    def excess(split: str) -> float:
        """Tokens of the busiest microbatch, per sample of its share, above the mean."""
        data = data_of(task, shares, 2, split)
        choose = SAMPLERS.load("shuffle")(task, 4, 16)
        worst = []
        for step in range(12):
            tokens = lengths[choose.indices(step)].float()
            loads = [
                float(tokens[part].mean())
                for r, share in enumerate(shares)
                for part in torch.split(data.positions(step, r), share)
            ]
            worst.append(max(loads) / float(tokens.mean()) - 1)
        return sum(worst) / len(worst)

    assert excess("balanced") < 0.3 * excess("random")
    data = data_of(task, shares, 2, "balanced")
    every = torch.cat([data.positions(5, r) for r in range(2)])
    assert sorted(every.tolist()) == list(range(16))
    assert [len(x) for x, _ in data.microbatches(5, 0)] == [shares[0]] * 2


@pytest.mark.parametrize("sampler", list(SAMPLERS))
@pytest.mark.parametrize("split", list(SPLITS))
def test_the_global_batch_is_the_same_for_every_plan(sampler: str, split: str) -> None:
    task = reading(length=25, sampler=sampler)
    task = replace(
        task, dataset=Described(task.dataset, weights=range(64), lengths=task.dataset.lengths)
    )

    def rows(shares: tuple[int, ...], microbatches: int) -> list[list[int]]:
        data = data_of(task, shares, microbatches, split)
        found = [
            row
            for r in range(len(shares))
            for inputs, _ in data.microbatches(9, r)
            for row in inputs.tolist()
        ]
        return sorted(found)

    whole = rows((16,), 1)
    assert rows((4, 4), 2) == whole
    assert rows((6, 2), 2) == whole
    assert rows((1,), 16) == whole


def test_padded_batches_train_alike_under_every_plan(tmp_path: Path) -> None:
    """Tokens count alike, so neither padding nor who has which sentence matters."""
    curves = []
    for i, (shape, options) in enumerate(
        [
            ({"microbatches": 4}, {}),
            ({"dp": 2, "microbatches": 2}, {"data_split": "balanced"}),
            ({"dp": 2, "microbatches": 2, "batch_shares": (3, 1)}, {"data_split": "shard"}),
            ({"pp": 2, "microbatches": 4}, {}),
        ]
    ):
        task = reading(length=25 if "pp" in shape else None)
        plan = helpers.make_plan(task, **shape)
        record = helpers.run(
            plan, task, tmp_path / str(i), sampler="bucketed", verify=True, steps=3, **options
        )
        assert record.verify is not None
        assert record.verify.passed, record.verify
        curves.append(record.losses)
    for curve in curves[1:]:
        assert curve == pytest.approx(curves[0], rel=1e-5)


def test_a_pipeline_names_batches_of_other_shapes(tmp_path: Path) -> None:
    task = reading()
    with pytest.raises((InputError, TrainingError), match=r"shapes .* graph was traced with"):
        helpers.run(helpers.make_plan(task, pp=2), task, tmp_path)


def test_what_samplers_need_is_named(tmp_path: Path) -> None:
    plain = replace(models.points(), sampler="weighted")
    for task, split, message in [
        (plain, "random", "sampler 'weighted' needs 'weights'"),
        (replace(plain, sampler="bucketed"), "random", "sampler 'bucketed' needs 'lengths'"),
        (replace(plain, sampler="shuffle"), "balanced", "data split 'balanced' needs 'lengths'"),
        (replace(models.mlp(), sampler="weighted"), "random", "draws from a dataset"),
        (models.mlp(), "balanced", "needs lengths of samples, task 'mlp' makes whole batches"),
        (replace(plain, sampler="wieghted"), "random", "unknown sampler"),
        (replace(models.mlp(), dataset=iter([])), "random", "has no length or no items"),
        (skewed(weights=[0.0] * 100), "random", "are 0"),
        (skewed(weights=[-1.0] * 100), "random", "must be finite and 0 or more"),
        (skewed(weights=["a"] * 100), "random", "are no numbers"),
    ]:
        with pytest.raises(InputError, match=message):
            data_of(task, (2, 2), 1, split)
    with pytest.raises(InputError, match="3 lengths for a dataset of 24"):
        Described(models.points().dataset, lengths=[1, 2, 3])
    ragged = replace(reading(), collate=None)
    with pytest.raises(InputError, match="do not make a batch"):
        data_of(ragged, (4, 4), 1, "random").microbatches(0, 0)
    with pytest.raises(InputError, match="unknown sampler 'bucket'"):
        helpers.run(helpers.make_plan(plain), plain, tmp_path, sampler="bucket")


def test_a_resume_with_another_sampler_is_told(tmp_path: Path) -> None:
    task = reading(length=25)
    plan = helpers.make_plan(task)
    helpers.run(plan, task, tmp_path / "a", checkpoint_every=1)
    resume = tmp_path / "a" / "checkpoints"
    record = helpers.run(plan, task, tmp_path / "b", resume=resume, sampler="bucketed")
    assert any("sampler was shuffle" in text for text in record.warnings)
