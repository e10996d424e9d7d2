"""One virtual stage as a callable: its fragment, with recomputed ranges checkpointed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from operator import attrgetter
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.fx.node import map_aggregate
from torch.utils.checkpoint import checkpoint

from autopar.executor.clock import Recorder
from autopar.executor.dropout import DropoutOff
from autopar.executor.random_state import RandomState
from autopar.executor.tape import Section, Tape, Values
from autopar.plans import Stage
from autopar.trace import Fragment, TracedTask, extract
from autopar.trace.cleanup import is_random, mutated_attributes


def move_to(module: GraphModule, device: torch.device, moved: dict[str, torch.Tensor]) -> None:
    """Move a fragment traced on the CPU: weights, buffers, constants and factory calls.

    Args:
        module: The fragment.
        device: Where to.
        moved: Buffers moved before, by name; fragments that share one go on sharing it.
    """
    if device.type == "cpu":
        return
    for parameter in module.parameters():
        if parameter.device != device:
            parameter.data = parameter.data.to(device)
    for name, buffer in list(module.named_buffers()):
        place, _, leaf = name.rpartition(".")
        owner = module.get_submodule(place)
        setattr(owner, leaf, moved.setdefault(name, buffer.to(device)))

    def here(value: Any) -> Any:
        return device if isinstance(value, torch.device) else value

    for node in module.graph.nodes:
        node.args = map_aggregate(node.args, here)
        node.kwargs = map_aggregate(node.kwargs, here)
    module.recompile()


def separate_uses(module: GraphModule) -> None:
    """Give each use of a parameter that has several an edge of its own in autograd's graph.

    Where backward is split, the gradient of one use can then be had without the others.
    """
    uses: dict[str, list[tuple[Node, Node]]] = {}
    for node in module.graph.nodes:
        if node.op == "get_attr":
            for user in node.users:
                uses.setdefault(str(node.target), []).append((node, user))
    for name, places in uses.items():
        if len(places) > 1 and isinstance(attrgetter(name)(module), torch.nn.Parameter):
            for node, user in places:
                with module.graph.inserting_before(user):
                    alias = module.graph.call_function(torch.ops.aten.alias.default, (node,))
                alias.meta = dict(node.meta)
                user.replace_input_with(node, alias)
    module.recompile()


class StageProgram:
    """The ops of a stage, run segment by segment.

    Segments are the plan's recompute ranges and what lies between them; a recomputed segment
    keeps only its inputs and runs again in backward, drawing the same random numbers and leaving
    buffers (BatchNorm statistics) alone the second time.

    Args:
        traced: The graph.
        stage: The plan's stage.
        index: Virtual stage number.
        fragment: ``extract(traced, stage.first_op, stage.stop_op)``.
        device: Where it runs.
        recorder: Takes the time of recomputation.
        splits: The schedule runs backward in two halves: use :meth:`keep`, not :meth:`forward`.
    """

    def __init__(
        self,
        traced: TracedTask,
        stage: Stage,
        index: int,
        fragment: Fragment,
        device: torch.device,
        recorder: Recorder,
        splits: bool = False,
    ) -> None:
        self.index = index
        self.exports = fragment.exports
        self.parameters = fragment.parameters
        self._recorder = recorder
        self._dropout = True
        self._segments: list[tuple[Fragment, bool]] = []
        if stage.recompute:
            for first, stop, again in _segments(stage):
                self._segments.append((extract(traced, first, stop), again))
        else:
            self._segments.append((fragment, False))
        moved: dict[str, torch.Tensor] = {}
        for segment, _ in self._segments:
            move_to(segment.module, device, moved)
            if splits:
                separate_uses(segment.module)
        self._device = device
        self._differentiable = traced.needs_gradient
        self._gradient_imports = [op for op in fragment.imports if op in self._differentiable]

    @property
    def modules(self) -> list[GraphModule]:
        """Graph modules of the segments."""
        return [segment.module for segment, _ in self._segments]

    def mutated_buffers(self) -> dict[str, torch.Tensor]:
        """Graph name -> buffer, for buffers that a forward writes (BatchNorm statistics)."""
        return {
            name: module.get_buffer(name)
            for module in self.modules
            for name in sorted(mutated_attributes(module))
        }

    @contextmanager
    def without_dropout(self) -> Iterator[None]:
        """Within it dropout is off, recomputation included.

        Backward calls recomputation outside of any function mode, so it enters its own.
        """
        self._dropout = False
        try:
            with DropoutOff():
                yield
        finally:
            self._dropout = True

    def forward(
        self, leaves: Sequence[torch.Tensor], imports: dict[int, torch.Tensor], microbatch: int
    ) -> dict[int, torch.Tensor]:
        """Run the stage.

        Args:
            leaves: Flat batch tensors of the microbatch.
            imports: Op index -> value received.
            microbatch: For the record.

        Returns:
            Op index -> value, for the stage's exports.
        """
        values = dict(imports)
        for segment, again in self._segments:
            arguments = [leaves[i] for i in segment.batch_leaves]
            arguments += [values[op] for op in segment.imports]
            run: Callable[..., Any] = segment.module
            if again:
                run = self._checkpointed(segment.module, microbatch)
            values.update(zip(segment.exports, run(*arguments), strict=True))
        return {op: values[op] for op in self.exports}

    def _checkpointed(self, module: GraphModule, microbatch: int) -> Callable[..., Any]:
        first = True

        def body(*arguments: torch.Tensor) -> Any:
            nonlocal first
            if first:
                first = False
                return module(*arguments)
            return self._again(module, arguments, microbatch)

        return lambda *arguments: checkpoint(
            body, *arguments, use_reentrant=False, preserve_rng_state=_is_random(module)
        )

    def _again(
        self, module: GraphModule, arguments: Sequence[torch.Tensor], microbatch: int
    ) -> Any:
        """Run a segment a second time: as the first time, but buffers stay as they are."""
        start = self._recorder.mark()
        buffers = [module.get_buffer(name) for name in mutated_attributes(module)]
        kept = [buffer.clone() for buffer in buffers]
        try:
            with contextlib.nullcontext() if self._dropout else DropoutOff():
                return module(*arguments)
        finally:
            for buffer, old in zip(buffers, kept, strict=True):
                buffer.data.copy_(old)  # .data: autograd may have saved the buffer
            self._recorder.add("recompute", start, stage=self.index, microbatch=microbatch)

    def keep(
        self, leaves: Sequence[torch.Tensor], imports: Values, microbatch: int
    ) -> tuple[Values, Tape]:
        """Run the stage for a backward in two halves.

        Args:
            leaves: Flat batch tensors of the microbatch.
            imports: Op index -> value received.
            microbatch: For the record.

        Returns:
            Op index -> value, for the stage's exports, cut off from autograd; and what backward
            needs.
        """
        values = dict(imports)
        sections = []
        for segment, again in self._segments:
            section = self._section(segment, again, leaves, values, microbatch)
            sections.append(section)
        return {op: values[op] for op in self.exports}, Tape(sections, self._gradient_imports)

    def _section(
        self,
        segment: Fragment,
        again: bool,
        leaves: Sequence[torch.Tensor],
        values: Values,
        microbatch: int,
    ) -> Section:
        """Run a segment on leaves of its own; what it makes is added to ``values``."""
        read = {
            op: values[op].detach().requires_grad_(op in self._differentiable)
            for op in segment.imports
        }
        arguments = [leaves[i] for i in segment.batch_leaves]
        arguments += [read[op] for op in segment.imports]
        module = segment.module
        state = RandomState(self._device) if again and _is_random(module) else None
        with torch.set_grad_enabled(not again):
            outputs = dict(zip(segment.exports, module(*arguments), strict=True))
        values.update((op, output.detach()) for op, output in outputs.items())

        def repeat() -> Values:
            with contextlib.nullcontext() if state is None else state.restored():
                found = self._again(module, arguments, microbatch)
            return dict(zip(segment.exports, found, strict=True))

        return Section(
            fragment=segment, leaves=read, outputs=None if again else outputs, again=repeat
        )


def _is_random(module: GraphModule) -> bool:
    return any(is_random(node) for node in module.graph.nodes)


def _segments(stage: Stage) -> list[tuple[int, int, bool]]:
    """``(first, stop, recomputed)`` covering the stage."""
    result = []
    place = stage.first_op
    for first, stop in stage.recompute:
        if place < first:
            result.append((place, first, False))
        if first < stop:
            result.append((first, stop, True))
        place = stop
    if place < stage.stop_op:
        result.append((place, stage.stop_op, False))
    return result
