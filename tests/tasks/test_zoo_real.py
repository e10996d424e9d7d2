"""The tasks with something to learn: their data, and that they reach the loss they state."""

from __future__ import annotations

import sys

import pytest
import torch

from autopar.core.errors import EnvironmentUnableError
from autopar.tasks import Task, resolve
from autopar.tasks.zoo import chars, shapes


def steps_to_target(task: Task, batch: int, most: int) -> int:
    """Steps until the mean of the last 20 losses is the task's target."""
    assert task.target_loss is not None
    torch.manual_seed(task.seed)
    model = task.model()
    optimizer = task.optimizer(model.parameters())
    source = torch.Generator().manual_seed(0)
    losses: list[float] = []
    while len(losses) < most:
        inputs, target = task.batch(batch, source)
        loss = task.loss(model(inputs), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if len(losses) >= 20 and sum(losses[-20:]) / 20 <= task.target_loss:
            return len(losses)
    raise AssertionError(f"not reached: {losses[-20:]}")


@pytest.mark.parametrize("name", ["shapes", "chars"])
def test_small_versions_reach_the_loss_they_state(name):
    if name == "chars":
        pytest.importorskip("transformers")
    assert steps_to_target(resolve(f"zoo:{name}?size=small"), 32, 800) > 50


def test_each_shape_differs_from_each_other():
    axis = torch.linspace(-1.5, 1.5, 61)
    inside = shapes._inside(axis.view(1, 61), axis.view(61, 1)) > 0
    areas = inside.flatten(1).float().mean(dim=1)
    assert inside.shape == (shapes.CLASSES, 61, 61)
    assert (areas > 0.02).all()
    assert (areas < 0.5).all()
    for a in range(shapes.CLASSES):
        for b in range(a):
            assert (inside[a] != inside[b]).float().mean() > 0.01, (a, b)


def test_shapes_are_brighter_than_the_noise_around_them():
    images, label = shapes.draw(64, 32, torch.Generator().manual_seed(0))
    assert images.shape == (64, 1, 32, 32)
    assert set(label.tolist()) == set(range(shapes.CLASSES))
    assert (images.flatten(1).amax(dim=1) > 0.5).all()
    assert images[:, :, 0, 0].abs().mean() < 2 * shapes.NOISE


def test_characters_are_english_text():
    text = chars.text_ids()
    assert 0 <= int(text.min()) <= int(text.max()) < chars.VOCAB
    assert len(text) > 200_000
    words = "".join(chr(code + 31) if code else "\n" for code in text.tolist()).split()
    assert words.count("the") > 2000


def test_target_is_the_text_one_character_on():
    pytest.importorskip("transformers")
    inputs, target = resolve("zoo:chars?seq=16").batch(3, torch.Generator().manual_seed(0))
    assert torch.equal(inputs[:, 1:], target[:, :-1])


def test_more_characters_than_the_text_has():
    with pytest.raises(EnvironmentUnableError, match="seq"):
        chars.windows(1, 10_000_000, torch.Generator())


def test_python_without_its_help_texts(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    chars.text_ids.cache_clear()
    with pytest.raises(EnvironmentUnableError, match="pydoc_data"):
        chars.text_ids()
    chars.text_ids.cache_clear()
