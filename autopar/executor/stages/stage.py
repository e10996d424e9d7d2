"""One virtual stage as a callable: its fragment, with recomputed ranges checkpointed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule
from torch.fx.node import map_aggregate

from autopar.executor.measuring.clock import Recorder
from autopar.executor.precision import FLOAT32, Precision
from autopar.executor.stages.recompute import Mode, Recompute, cover, segments
from autopar.executor.stages.tape import Section, Tape, Values
from autopar.executor.stages.weight_reads import separate_uses, widen_reads
from autopar.plans import Stage
from autopar.trace import Fragment, TracedTask, extract
from autopar.trace.cleanup import mutated_attributes


def move_to(
    module: GraphModule,
    device: torch.device,
    moved: dict[str, torch.Tensor],
    *,
    weights: bool = True,
) -> None:
    """Move a fragment traced on the CPU: weights, buffers, constants and factory calls.

    Args:
        module: The fragment.
        device: Where to.
        moved: Buffers moved before, by name; fragments that share one go on sharing it.
        weights: Move parameters too.
    """
    if device.type == "cpu":
        return
    for parameter in module.parameters() if weights else ():
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


def find_children_fast(module: torch.nn.Module) -> None:
    """Make submodules plain attributes too.

    ``nn.Module`` finds them in a Python fallback. A graph reads each weight by its whole path, so
    that this fallback ran six times per weight and forward. Parameters stay behind it: FSDP2
    replaces them. A submodule that is set anew replaces the plain attribute.
    """
    for part in module.modules():
        vars(part).update(part._modules)


@dataclass(frozen=True, kw_only=True)
class Running:
    """How a stage is run.

    Attributes:
        splits: Backward comes in two halves: use :meth:`StageProgram.keep`, not ``forward``.
        sharded: Ranks share out its weights: they are moved to the device unit by unit, and come
            in the narrow format if there is one.
        precision: What it computes in.
    """

    splits: bool = False
    sharded: bool = False
    precision: Precision = FLOAT32


class StageProgram:
    """The ops of a stage, run unit by unit and segment by segment.

    Segments are the plan's recompute ranges and what lies between them; a recomputed segment
    keeps only its inputs and runs again in backward, drawing the same random numbers and leaving
    buffers (BatchNorm statistics) alone the second time. A segment never crosses the border of a
    unit: a recompute range over several units is recomputed unit by unit.

    Args:
        traced: The graph.
        stage: The plan's stage.
        index: Virtual stage number.
        fragment: ``extract(traced, stage.first_op, stage.stop_op)``.
        device: Where it runs.
        recorder: Takes the time of recomputation.
        how: What the plan around it asks for.
    """

    def __init__(
        self,
        traced: TracedTask,
        stage: Stage,
        index: int,
        fragment: Fragment,
        device: torch.device,
        recorder: Recorder,
        how: Running = Running(),  # frozen
    ) -> None:
        self.index = index
        self.exports = fragment.exports
        self.parameters = fragment.parameters
        self._recompute = Recompute(index, device, recorder, how.precision)
        pieces = _pieces(stage)
        self.units = [
            Unit(
                fragment if len(pieces) == 1 else extract(traced, piece.first, piece.stop),
                [
                    (extract(traced, first, stop), mode)
                    for first, stop, mode in segments(stage, piece.first, piece.stop)
                ]
                if stage.recompute or stage.selective
                else None,
                self._recompute,
                gathered=piece.gathered,
            )
            for piece in pieces
        ]
        moved: dict[str, torch.Tensor] = {}
        for module in self.modules:
            move_to(module, device, moved, weights=not how.sharded)
            if how.sharded and how.precision.narrow is not None:
                widen_reads(module)
            if how.splits:
                separate_uses(module)
            find_children_fast(module)
        self._differentiable = traced.needs_gradient
        self._gradient_imports = [op for op in fragment.imports if op in self._differentiable]

    @property
    def modules(self) -> list[GraphModule]:
        """Graph modules of the segments."""
        return [module for unit in self.units for module in unit.graphs]

    def mutated_buffers(self) -> dict[str, torch.Tensor]:
        """Graph name -> buffer, for buffers that a forward writes (BatchNorm statistics)."""
        return {
            name: module.get_buffer(name)
            for module in self.modules
            for name in sorted(mutated_attributes(module))
        }

    def without_dropout(self) -> AbstractContextManager[None]:
        """Within it dropout is off, recomputation included."""
        return self._recompute.without_dropout()

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
        for unit in self.units:
            arguments = [leaves[i] for i in unit.batch_leaves]
            arguments += [values[op] for op in unit.imports]
            values.update(zip(unit.exports, unit(microbatch, *arguments), strict=True))
        return {op: values[op] for op in self.exports}

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
        for unit in self.units:
            with unit.around():
                for segment, mode in unit.segments:
                    section = self._section(segment, mode, leaves, values, microbatch)
                    section.around = unit.around
                    sections.append(section)
        return {op: values[op] for op in self.exports}, Tape(sections, self._gradient_imports)

    def _section(
        self,
        segment: Fragment,
        mode: Mode,
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
        again = None
        if mode == "none":
            made = self._recompute.run(segment.module, mode, microbatch, arguments)
        else:
            made, repeat = self._recompute.forget(segment.module, mode, microbatch, arguments)
            again = lambda: dict(zip(segment.exports, repeat(), strict=True))  # noqa: E731
        outputs = dict(zip(segment.exports, made, strict=True))
        values.update((op, output.detach()) for op, output in outputs.items())
        return Section(
            fragment=segment, leaves=read, outputs={} if again else outputs, again=again
        )


class Unit(torch.nn.Module):
    """Ops whose weights are gathered together when ranks share them out.

    Args:
        fragment: All ops of the unit.
        segments: The same ops in runs; ``None``: one run, not recomputed.
        recompute: Runs them.
        gathered: False for ops between the units of the plan.

    Attributes:
        around: Context in which its weights are there, for :meth:`StageProgram.keep`.
    """

    def __init__(
        self,
        fragment: Fragment,
        segments: Sequence[tuple[Fragment, Mode]] | None,
        recompute: Recompute,
        *,
        gathered: bool,
    ) -> None:
        super().__init__()
        self.batch_leaves = fragment.batch_leaves
        self.imports = fragment.imports
        self.exports = fragment.exports
        self.gathered = gathered
        whole: list[tuple[Fragment, Mode]] = [(fragment, "none")]
        self.segments = tuple(segments or whole)
        self._graphs = torch.nn.ModuleList(segment.module for segment, _ in self.segments)
        self._recompute = recompute
        self.around: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext

    @property
    def graphs(self) -> list[GraphModule]:
        """Graph modules of the segments."""
        return [segment.module for segment, _ in self.segments]

    def forward(self, microbatch: int, *arguments: torch.Tensor) -> Any:
        """Values of the exports.

        Args:
            microbatch: For the record.
            arguments: Batch leaves and imports.
        """
        if len(self.segments) == 1:
            segment, mode = self.segments[0]
            return self._recompute.run(segment.module, mode, microbatch, arguments)
        count = len(self.batch_leaves)
        leaves = dict(zip(self.batch_leaves, arguments, strict=False))
        values = dict(zip(self.imports, arguments[count:], strict=True))
        for segment, mode in self.segments:
            own = [leaves[i] for i in segment.batch_leaves]
            own += [values[op] for op in segment.imports]
            made = self._recompute.run(segment.module, mode, microbatch, own)
            values.update(zip(segment.exports, made, strict=True))
        return tuple(values[op] for op in self.exports)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Piece:
    """Ops ``[first, stop)``: a unit of the plan, or what lies between two."""

    first: int
    stop: int
    gathered: bool


def _pieces(stage: Stage) -> list[_Piece]:
    """The units of a stage and what lies between; without units the stage is one."""
    units = [(*pair, True) for pair in stage.units or ((stage.first_op, stage.stop_op),)]
    return [
        _Piece(first=first, stop=stop, gathered=inside)
        for first, stop, inside in cover(stage.first_op, stage.stop_op, units, False)
    ]
