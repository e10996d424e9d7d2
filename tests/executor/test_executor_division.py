"""Parts of tensors, and the identity rewrite."""

from __future__ import annotations

import executor_helpers as helpers
import executor_models as models
import pytest
import torch

from autopar.executor.division.editor import Editor, whole
from autopar.executor.holding import Cut
from autopar.trace import build_model, trace


@pytest.mark.parametrize(
    ("sections", "count"), [((8,), 2), ((6, 6, 6), 3), ((8, 2, 2), 2), ((7,), 2), ((5,), 4)]
)
def test_parts_join_to_the_whole(sections: tuple[int, ...], count: int) -> None:
    cut = Cut(axis="tp", dim=1, sections=sections)
    tensor = torch.randn(3, sum(sections))
    parts = [cut.part(tensor, i, count) for i in range(count)]
    assert {p.shape[1] for p in parts} == {cut.part_size(count)}
    assert torch.equal(cut.join(parts), tensor)


def test_each_section_is_divided() -> None:
    cut = Cut(axis="tp", dim=0, sections=(4, 4))
    assert cut.part(torch.arange(8), 1, 2).tolist() == [2, 3, 6, 7]


@pytest.mark.parametrize("name", ["mlp", "knotted", "unet"])
def test_a_copied_graph_computes_the_same(name: str) -> None:
    task = {"mlp": models.mlp, "knotted": lambda: models.knotted(0.0), "unet": models.unet}[name]()
    traced = trace(task, 2, model=build_model(task))
    editor = Editor(whole(traced), "tp", 1)
    for index, node in enumerate(traced.nodes):
        editor.begin(index)
        editor.copy(node)
    divided = editor.finish()
    assert divided.places == tuple(range(len(traced.nodes) + 1))
    assert divided.traced.cuts == traced.cuts
    assert divided.traced.needs_gradient == traced.needs_gradient
    assert divided.traced.replicated == traced.replicated
    leaves = traced.flatten(*task.batch(2, torch.Generator().manual_seed(1)))
    (again,) = divided.traced.module(*leaves)
    assert torch.equal(again, traced.module(*leaves))
    assert helpers.even_cuts(traced, 2)
