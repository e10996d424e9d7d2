"""A stage on another device than the one it was traced on."""

from __future__ import annotations

import executor_helpers as helpers
import executor_models as models
import torch

from autopar.executor.measuring.clock import CpuClock, Recorder
from autopar.executor.stages.stage import StageProgram
from autopar.plans import Stage
from autopar.trace import TracedTask, extract, trace


def test_a_stage_finds_its_submodules_without_the_fallback_of_modules() -> None:
    traced = trace(models.knotted(), 2)
    count = len(traced.nodes)
    stage = Stage(first_op=0, stop_op=count, pp=0)
    cpu = torch.device("cpu")
    program = StageProgram(traced, stage, 0, extract(traced, 0, count), cpu, Recorder(CpuClock()))
    (module,) = program.modules
    for part in module.modules():
        for name, child in list(part.named_children()):
            assert vars(part)[name] is child
            setattr(part, name, torch.nn.Identity())
            assert isinstance(getattr(part, name), torch.nn.Identity)
            setattr(part, name, child)


def traced_with_weights_on(device: torch.device) -> TracedTask:
    """A graph traced on the CPU whose parameters, and nothing else, are on another device.

    (A parameter cannot change over to the meta device in place, as it can to CUDA.)
    """
    traced = trace(models.knotted(), 2)
    for name, parameter in list(traced.module.named_parameters(remove_duplicate=False)):
        place, _, leaf = name.rpartition(".")
        owner = traced.module.get_submodule(place)
        setattr(owner, leaf, torch.nn.Parameter(parameter.detach().to(device)))
    return traced


def test_a_moved_stage_leaves_nothing_behind() -> None:
    """On the meta device any tensor left on the CPU would be refused by the first op on both."""
    meta = torch.device("meta")
    traced = traced_with_weights_on(meta)
    count = len(traced.nodes)
    first, stop = helpers.even_cuts(traced, 3)
    stage = Stage(first_op=0, stop_op=count, pp=0, recompute=((first, stop),))
    program = StageProgram(traced, stage, 0, extract(traced, 0, count), meta, Recorder(CpuClock()))
    inputs, target = traced.task.batch(2, torch.Generator())
    leaves = [leaf.to(meta) for leaf in traced.flatten(inputs, target)]
    (loss,) = program.forward(leaves, {}, 0).values()
    assert loss.device == meta
    loss.backward()
    assert program.mutated_buffers()
    for module in program.modules:
        for tensor in [*module.parameters(), *module.buffers()]:
            assert tensor.device == meta


def test_segments_share_weights_after_a_move() -> None:
    meta = torch.device("meta")
    traced = traced_with_weights_on(meta)
    count = len(traced.nodes)
    cuts = sorted(traced.cuts)
    stage = Stage(
        first_op=0,
        stop_op=count,
        pp=0,
        recompute=tuple((a, b) for a, b in zip([0, *cuts], [*cuts, count], strict=True)),
    )
    program = StageProgram(traced, stage, 0, extract(traced, 0, count), meta, Recorder(CpuClock()))
    by_name: dict[str, set[int]] = {}
    for module in program.modules:
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            by_name.setdefault(name, set()).add(id(tensor))
    assert len(by_name) > 10
    assert all(len(copies) == 1 for copies in by_name.values())
