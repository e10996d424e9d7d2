"""Tensor and sequence parallelism: the graph of one rank with local ops and collectives.

:mod:`~autopar.executor.division.assignment` decides what each op does; here it is written down.
Values enter a region of columns through one call that sums their gradients, however many products
read them, and leave it through the sum after a row. With sequence parallelism they are gathered
and reduce-scattered instead, and the ops between regions work on a rank's part of the sequence
(Korthikanti et al. 2022, arXiv 2205.05198).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Node
from torch.fx.node import map_arg

from autopar.core.errors import InputError
from autopar.executor.division.assignment import Assignment, assign, planned
from autopar.executor.division.collectives import Call, Collectives
from autopar.executor.division.editor import Divided, Editor
from autopar.executor.division.ops import name_of
from autopar.executor.division.parts import Part, Region
from autopar.executor.division.products import product_of, without_bias
from autopar.executor.division.randomness import drawn_apart
from autopar.executor.division.site import Layout, Step, shape_of
from autopar.executor.division.vocabulary import MEAN, Vocabulary
from autopar.executor.holding import Cut
from autopar.profiler import count_task
from autopar.strategies import Split, Strategies
from autopar.trace import TracedTask
from autopar.trace.cleanup import is_random

aten = torch.ops.aten
_IGNORED = -100


def divide_columns(
    divided: Divided,
    calls: Collectives,
    *,
    traced: TracedTask,
    split: Split,
    warnings: list[str],
) -> Divided:
    """The graph of one tensor parallel rank.

    Args:
        divided: The graph so far: whole, or with its sequences divided.
        calls: Collectives of the tensor parallel group.
        traced: The graph of the whole model, which the planner decides on.
        split: How the plan divides it.
        warnings: Takes what runs otherwise than the planner assumes.

    Raises:
        InputError: The model cannot be divided so.
    """
    strategies = Strategies(count_task(traced))
    reason = strategies.why_not(split)
    if reason is not None:
        raise InputError(f"task '{traced.task.name}': {reason}", hint="plan again")
    length = strategies.context.length // split.cp if split.sequence_parallel else 0
    assignment = assign(
        divided.traced,
        planned(strategies.tensor, traced, divided),
        calls.group.size,
        sequence_length=length,
    )
    if not assignment.columns:
        why = next(iter(assignment.reasons.values()), "it has no product with a weight")
        raise InputError(
            f"task '{traced.task.name}' cannot be divided over tp={split.tp}: {why}",
            hint="use tp=1",
        )
    for index, why in sorted(assignment.reasons.items()):
        node = divided.traced.nodes[index]
        warnings.append(f"tp: {node.name} is computed whole on every rank: {why}")
    return TensorPass(divided, calls, assignment, warnings).run()


class TensorPass:
    """Writes the graph of one rank.

    Args:
        divided: The graph so far.
        calls: Collectives of the group.
        assignment: What each op does.
        warnings: Takes what runs otherwise than the planner assumes.
    """

    def __init__(
        self, divided: Divided, calls: Collectives, assignment: Assignment, warnings: list[str]
    ) -> None:
        self.calls = calls
        self.count, self.position = calls.group.size, calls.group.position
        self.editor = Editor(divided, "tp", self.count)
        self.traced = divided.traced
        self._assignment = assignment
        self._warnings = warnings
        self._made: dict[tuple[str, Node, object], Node] = {}
        self._vocabularies: dict[int, Vocabulary] = {}
        self._used_whole = self._parameters_used_whole()

    def run(self) -> Divided:
        """Rewrite."""
        for index, node in enumerate(self.traced.nodes):
            self.editor.begin(index)
            step = self._assignment.steps.get(node)
            if step is not None:
                self._hold(step)
            made = self._emit(node, step)
            made.meta = {**node.meta, "val": made.meta["val"]}
            self._check(node, step, made)
            self.editor.define(node, made)
        return self.editor.finish()

    def _hold(self, step: Step) -> None:
        for operand, part in step.needs.items():
            if operand.op == "get_attr" and part.region == "columns":
                cut = Cut(axis="tp", dim=part.dim, sections=part.sections)
                self.editor.hold(str(operand.target), cut)

    def _check(self, node: Node, step: Step | None, made: Node) -> None:
        part = step.out if step is not None else None
        if isinstance(part, tuple) or not isinstance(node.meta["val"], torch.Tensor):
            return
        whole = shape_of(node)
        expected = whole if part is None else tuple(part.local(whole, self.count))
        assert shape_of(made) == expected, (node, step, shape_of(made), expected)

    def _emit(self, node: Node, step: Step | None) -> Node:
        if step is None:
            return self._local(node, Step(out=None), None)
        return {
            "local": self._inside,
            "positions": self._inside,
            "column": self._inside,
            "row": self._row,
            "embedding": self._embedding,
            "classes": self._classes,
            "loss": self._loss,
            "logits": self._whole_logits,
        }[step.kind](node, step)

    def _inside(self, node: Node, step: Step) -> Node:
        return self._local(node, step, region_of(step))

    def _local(self, node: Node, step: Step, region: Region | None) -> Node:
        """The op itself on what this rank has of its operands."""
        args = node.args if step.args is None else step.args
        kwargs = node.kwargs if step.kwargs is None else dict(step.kwargs)
        target: Any = step.target or node.target
        if region is not None and is_random(node):
            target = drawn_apart(target, self.position)

        def read(operand: Node) -> Node:
            return self.read(operand, step, region)

        return self.editor.emit(target, map_arg(args, read), map_arg(kwargs, read))

    def _row(self, node: Node, step: Step) -> Node:
        """Terms of a sum: summed or reduce-scattered, the bias added once."""
        product = product_of(node)
        assert product is not None
        target, args = without_bias(node, product)
        terms = self.editor.emit(
            target, map_arg(args, lambda n: self.read(n, step, "columns")), node.kwargs
        )
        result = self._summed(terms, step.out)
        if product.bias is None:
            return result
        region: Region | None = "sequence" if step.out is not None else None
        bias = self.read(product.bias, Step(out=step.out), region)
        behind = len(shape_of(node)) - 1 - product.column_dim
        if behind:
            bias = self.editor.emit(aten.view.default, (bias, [-1, *[1] * behind]))
        return self.editor.emit(aten.add.Tensor, (result, bias))

    def _summed(self, terms: Node, out: Layout) -> Node:
        if not isinstance(out, Part):
            return self.editor.emit(self.calls.sum_forward, (terms,))
        return self._along(self.calls.scatter_sum, terms, out)

    def _along(self, call: Call, tensor: Node, part: Part) -> Node:
        """A collective along a dimension of equal sections."""
        if len(part.sections) == 1:
            return self.editor.emit(call, (tensor, part.dim))
        sizes = [len(part.sections), shape_of(tensor)[part.dim] // len(part.sections)]
        apart = self.editor.emit(aten.unflatten.int, (tensor, part.dim, sizes))
        moved = self.editor.emit(call, (apart, part.dim + 1))
        return self.editor.emit(aten.flatten.using_ints, (moved, part.dim, part.dim + 1))

    def _embedding(self, node: Node, step: Step) -> Node:
        weight, indices = node.args[:2]
        assert isinstance(weight, Node)
        padding = node.args[2] if len(node.args) > 2 else node.kwargs.get("padding_idx", -1)
        found = self.editor.emit(
            self._vocabulary(shape_of(weight)[0]).embedding,
            (self.read(weight, step, "columns"), self.editor.local(indices), padding),
        )
        return self._summed(found, step.out)

    def _vocabulary(self, size: int) -> Vocabulary:
        if size not in self._vocabularies:
            self._vocabularies[size] = Vocabulary(size, self.calls)
        return self._vocabularies[size]

    def _classes(self, node: Node, step: Step) -> Node:
        source = node.args[0]
        assert isinstance(source, Node) and isinstance(step.out, Part)
        call = self._vocabulary(sum(step.out.sections)).log_softmax
        logits = self.read(source, step, "columns")
        dtype = node.kwargs.get("dtype")
        if isinstance(dtype, torch.dtype):
            logits = self.editor.emit(aten.to.dtype, (logits, dtype))
        return self.editor.emit(call, (logits, step.out.dim))

    def _loss(self, node: Node, step: Step) -> Node:
        logits, target = node.args[:2]
        assert isinstance(logits, Node)
        part = self._assignment.layouts[logits]
        assert isinstance(part, Part)
        vocabulary = self._vocabulary(sum(part.sections))
        entropy = name_of(node) == "cross_entropy_loss"
        given = [*node.args[3:], *[None] * 3]
        rest = [
            _given(given[0], node.kwargs, "reduction", MEAN),
            _given(given[1], node.kwargs, "ignore_index", _IGNORED),
        ]
        if entropy:
            rest.append(_given(given[2], node.kwargs, "label_smoothing", 0.0))
        operands = (self.read(logits, step, "columns"), self.read(target, step, "columns"))  # type: ignore[arg-type]
        call = vocabulary.cross_entropy if entropy else vocabulary.nll_loss
        made = self.editor.emit(call, (*operands, *rest))
        if isinstance(node.meta["val"], torch.Tensor):
            return made
        raise InputError(f"op {node.name}: a loss with several results", hint="use tp=1")

    def _whole_logits(self, node: Node, step: Step) -> Node:
        """A loss that parts of the classes cannot compute: every rank gathers them."""
        logits = node.args[0]
        assert isinstance(logits, Node)
        part = self._assignment.layouts[logits]
        assert isinstance(part, Part)
        self._warnings.append(
            f"tp: {node.name} has class weights or probabilities as target, so its logits are "
            "gathered on every rank"
        )
        gathered = self.editor.emit(self.calls.gather_whole, (self.editor.local(logits), part.dim))
        whole = self.editor.emit(aten.slice.Tensor, (gathered, part.dim, 0, sum(part.sections)))
        return self.editor.emit(
            node.target,  # type: ignore[arg-type]
            (whole, *map_arg(node.args[1:], lambda n: self.read(n, step, None))),
            map_arg(node.kwargs, lambda n: self.read(n, step, None)),
        )

    def read(self, operand: Node, step: Step, region: Region | None) -> Node:
        """An operand as an op reads it.

        Args:
            operand: Node of the whole graph.
            step: What the op does.
            region: Where the op is; ``None``: outside, it wants whole operands.
        """
        have = self._assignment.layouts.get(operand)
        if isinstance(have, tuple):
            return self.editor.local(operand)  # type: ignore[no-any-return]
        wanted = step.needs.get(operand)
        if wanted is None and have is not None and have.region == region:
            wanted = have
        if have == wanted and have is not None:
            return self.editor.local(operand)  # type: ignore[no-any-return]
        if operand.op == "get_attr" and wanted is not None and wanted.region == "columns":
            return self.editor.local(operand)  # type: ignore[no-any-return]
        if have is None:
            return self._from_whole(operand, wanted, region)
        assert have.region == "sequence", (operand, have, wanted)
        gathered = self._gathered(operand, have, terms=region is not None)
        return gathered if wanted is None else self._own(operand, gathered, wanted)

    def _from_whole(self, operand: Node, wanted: Part | None, region: Region | None) -> Node:
        local: Node = self.editor.local(operand)
        if region is None:
            return local
        trained = self._trained(operand)
        if wanted is None:
            return self._entering(operand, local) if trained else local
        if not trained:
            return self._own(operand, local, wanted)
        if len(wanted.sections) == 1 and wanted.divides(self.count):
            return self._once(
                "part", operand, wanted, lambda: self._along(self.calls.part, local, wanted)
            )
        return self._own(operand, self._entering(operand, local), wanted)

    def _entering(self, operand: Node, local: Node) -> Node:
        """A whole value whose gradients on the ranks are terms: their sum is its gradient."""
        name = self._parameter(operand)
        if name is not None and name not in self._used_whole:
            self.editor.mark_partial(name)
            return local
        return self._once(
            "enter", operand, None, lambda: self.editor.emit(self.calls.sum_backward, (local,))
        )

    def _gathered(self, operand: Node, have: Part, *, terms: bool) -> Node:
        call = self.calls.gather if terms else self.calls.gather_whole
        return self._once(
            "gather", operand, terms, lambda: self._along(call, self.editor.local(operand), have)
        )

    def _own(self, operand: Node, whole: Node, wanted: Part) -> Node:
        """This rank's part of a value; its gradient on the ranks are terms."""
        cut = Cut(axis="tp", dim=wanted.dim, sections=wanted.sections)
        return self._once(
            "own",
            operand,
            wanted,
            lambda: self.editor.emit(_own_part(cut, self.position, self.count), (whole,)),
        )

    def _once(self, what: str, operand: Node, key: object, make: Callable[[], Node]) -> Node:
        if (what, operand, key) not in self._made:
            self._made[what, operand, key] = make()
        return self._made[what, operand, key]

    def _trained(self, operand: Node) -> bool:
        if operand.op == "get_attr":
            return self._parameter(operand) is not None
        return self.traced.index.get(operand) in self.traced.needs_gradient

    def _parameter(self, operand: Node) -> str | None:
        """Model name of a trained parameter."""
        name = self.traced.parameter_names.get(str(operand.target))
        if operand.op != "get_attr" or name is None:
            return None
        parameter = self.traced.module.get_parameter(str(operand.target))
        return name if parameter.requires_grad else None

    def _parameters_used_whole(self) -> frozenset[str]:
        """Parameters that some op reads outside of all regions."""
        found: set[str] = set()
        for node in self.traced.nodes:
            step = self._assignment.steps.get(node)
            for operand in node.all_input_nodes:
                name = self._parameter(operand)
                if name is None or (step is not None and operand in step.needs):
                    continue
                inside = step is not None and region_of(step) is not None
                if step is not None and step.kind == "row":
                    inside = step.out is not None
                if not inside:
                    found.add(name)
        return frozenset(found)


def region_of(step: Step) -> Region | None:
    """Where an op is."""
    if step.kind in ("column", "row", "embedding", "classes", "loss"):
        return "columns"
    row = step.out if isinstance(step.out, tuple) else (step.out,)
    regions = {part.region for part in (*row, *step.needs.values()) if part is not None}
    return "columns" if "columns" in regions else "sequence" if regions else None


def _own_part(cut: Cut, position: int, count: int) -> Call:
    def own_part(whole: torch.Tensor) -> torch.Tensor:
        return cut.part(whole, position, count)

    return own_part


def _given(value: Any, kwargs: dict[str, Any], keyword: str, default: Any) -> Any:
    return kwargs.get(keyword, default) if value is None else value
