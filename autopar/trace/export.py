"""torch.export of ``loss(model(inputs), target)`` with a stable op order."""

from __future__ import annotations

import io
import logging
import operator
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from autopar.core.errors import InputError, TraceError
from autopar.core.io import content_hash
from autopar.plans import TaskRef
from autopar.tasks import Task
from autopar.trace import cleanup

_DATA_SEED = 20
_ASSIGNED = "The tensor attributes? .* assigned during export"
"""How torch's warning about attributes set while tracing begins; it names no place in torch."""


class LossModule(torch.nn.Module):
    """The model and its loss as one module of flat batch tensors.

    Args:
        model: The user's model.
        loss: ``loss(output, target) -> scalar``.
        spec: Pytree structure of ``(inputs, target)``.
    """

    def __init__(self, model: torch.nn.Module, loss: Any, spec: pytree.TreeSpec) -> None:
        super().__init__()
        self.model = model
        self._loss = loss
        self._spec = spec

    def forward(self, *leaves: torch.Tensor) -> torch.Tensor:
        """Scalar loss of one batch given as flat tensors."""
        inputs, target = pytree.tree_unflatten(leaves, self._spec)
        result: torch.Tensor = self._loss(call_model(self.model, inputs), target)
        return result


def call_model(model: torch.nn.Module, inputs: Any) -> Any:
    """Call a model with inputs given as a tensor, a tuple (positional) or a dict (keywords)."""
    if isinstance(inputs, dict):
        return model(**inputs)
    if isinstance(inputs, tuple | list):
        return model(*inputs)
    return model(inputs)


@dataclass(frozen=True, kw_only=True, eq=False)
class TracedTask:
    """The training graph of a task at one batch size.

    Attributes:
        task: The task.
        batch: Samples in the traced batch.
        module: ``module(*leaves) -> scalar loss``; holds the model's own parameters and buffers.
        nodes: ``call_function`` nodes in op order; position = ``Op.index`` = plan cut position.
        replicated: Ops that depend on batch inputs and constants only (masks, positions); each
            fragment that reads their value computes it again.
        needs_gradient: Ops whose value carries a gradient in backward.
        cuts: Positions ``k`` where the graph may be cut between op ``k - 1`` and op ``k``.
        leaves: Names of the flat batch tensors.
        spec: Pytree structure of ``(inputs, target)``.
        parameter_names: Graph attribute name -> the model's own name; tied parameters have one.
    """

    task: Task
    batch: int
    module: GraphModule
    nodes: tuple[Node, ...]
    replicated: frozenset[int]
    needs_gradient: frozenset[int]
    cuts: frozenset[int]
    leaves: tuple[str, ...]
    spec: pytree.TreeSpec
    parameter_names: dict[str, str]

    @property
    def reference(self) -> TaskRef:
        """What a plan says of the task it is for."""
        return TaskRef(
            name=self.task.name,
            target=self.task.target,
            fingerprint=self.fingerprint,
            op_count=len(self.nodes),
        )

    @cached_property
    def index(self) -> dict[Node, int]:
        """Node -> op index."""
        return {node: i for i, node in enumerate(self.nodes)}

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the op sequence and the parameter shapes; the same at every batch size."""
        shapes = {
            name: list(self.module.get_parameter(attr).shape)
            for attr, name in self.parameter_names.items()
        }
        return content_hash({"ops": [str(n.target) for n in self.nodes], "parameters": shapes})

    def flatten(self, inputs: Any, target: Any) -> list[torch.Tensor]:
        """Flat batch tensors in the order ``module`` takes them.

        Raises:
            InputError: The batch has another structure than the traced one.
        """
        leaves, spec = pytree.tree_flatten((inputs, target))
        if spec != self.spec:
            raise InputError(
                f"task '{self.task.name}' returned a batch of another structure than when traced",
                hint="return the same nesting of tensors for every batch size",
            )
        return leaves

    def parameters_of(self, node: Node) -> tuple[str, ...]:
        """Model names of the parameters a node reads directly."""
        return tuple(
            self.parameter_names[str(arg.target)]
            for arg in node.all_input_nodes
            if arg.op == "get_attr" and str(arg.target) in self.parameter_names
        )


def build_model(task: Task, *, device: str = "cpu", seed: int | None = None) -> torch.nn.Module:
    """A fresh model in training mode with seeded weights.

    Args:
        task: The task.
        device: ``cpu``, ``cuda`` or ``meta`` (no memory).
        seed: Weight seed, the task's own by default.

    Raises:
        InputError: The factory failed or returned no module.
    """
    try:
        with torch.random.fork_rng(devices=[]), torch.device(device):
            torch.manual_seed(task.seed if seed is None else seed)
            model = task.model()
    except Exception as error:
        raise InputError(
            f"task '{task.name}': model() raised {type(error).__name__}: {first_line(error)}",
            hint="call the model factory on its own to debug it",
        ) from error
    if not isinstance(model, torch.nn.Module):
        raise InputError(
            f"task '{task.name}': model() returned {type(model).__name__}, an nn.Module is needed"
        )
    return model.train()


def first_line(error: BaseException) -> str:
    """First non-empty line of an exception's text."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else "(no message)"


def make_batch(task: Task, batch: int, *, device: str = "cpu") -> tuple[Any, Any]:
    """A seeded batch of a task for tracing and timing.

    Raises:
        InputError: The factory failed.
    """
    generator = torch.Generator().manual_seed(_DATA_SEED)
    try:
        inputs, target = task.batch(batch, generator)
    except Exception as error:
        raise InputError(
            f"task '{task.name}': batch({batch}, generator) raised "
            f"{type(error).__name__}: {first_line(error)}",
            hint="return (inputs, target) with the samples on dimension 0",
        ) from error
    moved: tuple[Any, Any] = pytree.tree_map_only(
        torch.Tensor, lambda t: t.to(device), (inputs, target)
    )
    return moved


def trace(
    task: Task, batch: int, *, device: str = "cpu", model: torch.nn.Module | None = None
) -> TracedTask:
    """Export the training graph of a task.

    Args:
        task: The task.
        batch: Samples in the batch; shapes are static.
        device: ``cpu`` (real weights) or ``meta`` (no memory, any model size).
        model: Use this model instead of building one; its parameters are shared.

    Raises:
        TraceError: torch.export cannot capture the model or loss; the message names why.
        InputError: The task's factories are broken.
    """
    model = build_model(task, device=device) if model is None else model
    leaves, spec = pytree.tree_flatten(make_batch(task, batch, device=device))
    wrapped = LossModule(model, task.loss, spec)
    try:
        with _quiet_export():
            exported = torch.export.export(wrapped, tuple(leaves), strict=False)
            module = exported.module(check_guards=False)
    except Exception as error:
        raise TraceError(
            f"torch.export cannot capture task '{task.name}': "
            f"{type(error).__name__}: {first_line(error)}",
            hint="see https://docs.pytorch.org/docs/stable/export.html for what it can capture; "
            "data-dependent Python control flow is the usual cause",
        ) from error
    assert isinstance(module, GraphModule)
    return _finish(task, batch, module, spec, len(leaves), model)


@contextmanager
def _quiet_export() -> Iterator[None]:
    """Keep torch's notes about an export off the terminal: the error says it better.

    torch prints the graph of a failed export to stderr, once per function that sees the error
    (``partial_fx_graph``), and warns of attributes that a recurrent layer sets in ``forward``.
    What the model itself prints or warns of is kept.
    """
    logger = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    level = logger.level
    logger.setLevel(logging.ERROR)
    graph, printed = None, io.StringIO()
    try:
        with warnings.catch_warnings(), redirect_stderr(printed):
            warnings.filterwarnings("ignore", module=r"torch\.")
            warnings.filterwarnings("ignore", message=_ASSIGNED)
            yield
    except Exception as error:
        graph = getattr(error, "partial_fx_graph", None)
        raise
    finally:
        logger.setLevel(level)
        text = printed.getvalue()
        sys.stderr.write(text if graph is None else text.replace(f"{graph}\n", ""))


def _finish(
    task: Task,
    batch: int,
    module: GraphModule,
    spec: pytree.TreeSpec,
    leaf_count: int,
    model: torch.nn.Module,
) -> TracedTask:
    cleanup.drop_checks(module)
    spans = cleanup.functionalise(module)
    cleanup.gather_getitems(module)
    module.recompile()
    nodes = tuple(n for n in module.graph.nodes if n.op == "call_function")
    if not nodes:
        raise TraceError(f"task '{task.name}' has no ops in its traced graph")
    index = {node: i for i, node in enumerate(nodes)}
    placeholders = [str(n.target) for n in module.graph.nodes if n.op == "placeholder"]
    assert len(placeholders) == leaf_count
    names = _parameter_names(module, model)
    replicated = _replicated(module, nodes, index, names)
    return TracedTask(
        task=task,
        batch=batch,
        module=module,
        nodes=nodes,
        replicated=replicated,
        needs_gradient=_needs_gradient(module, nodes, index),
        cuts=_cuts(nodes, index, spans),
        leaves=tuple(placeholders),
        spec=spec,
        parameter_names=names,
    )


def retrace(
    traced: TracedTask, module: GraphModule, nodes: tuple[Node, ...], *, cuts: frozenset[int]
) -> TracedTask:
    """A traced task whose graph was rewritten; the batch and the model stay the same.

    Args:
        traced: What was rewritten.
        module: The new graph; its result is a tuple with the loss.
        nodes: Its calls, in order.
        cuts: Positions where it may be cut.
    """
    module.recompile()
    index = {node: i for i, node in enumerate(nodes)}
    names = {
        str(node.target): traced.parameter_names[str(node.target)]
        for node in module.graph.nodes
        if node.op == "get_attr" and str(node.target) in traced.parameter_names
    }
    return replace(
        traced,
        module=module,
        nodes=nodes,
        replicated=_replicated(module, nodes, index, names),
        needs_gradient=_needs_gradient(module, nodes, index),
        cuts=cuts,
        parameter_names=names,
    )


def _parameter_names(module: GraphModule, model: torch.nn.Module) -> dict[str, str]:
    """Graph attribute -> the model's first name for the same parameter."""
    own = {id(p): name for name, p in model.named_parameters()}
    result = {}
    for node in module.graph.nodes:
        if node.op != "get_attr":
            continue
        value = operator.attrgetter(str(node.target))(module)
        if isinstance(value, torch.nn.Parameter):
            attribute = str(node.target)
            result[attribute] = own.get(id(value), attribute.removeprefix("model."))
    return result


def _replicated(
    module: GraphModule, nodes: tuple[Node, ...], index: dict[Node, int], names: dict[str, str]
) -> frozenset[int]:
    """Ops with no parameter, mutated buffer or random number behind them."""
    mutated = cleanup.mutated_attributes(module)
    result: set[int] = set()
    for i, node in enumerate(nodes):
        pure = not cleanup.is_random(node) and not cleanup.mutates(node)
        for arg in node.all_input_nodes:
            if arg.op == "get_attr":
                pure &= str(arg.target) not in names and str(arg.target) not in mutated
            elif arg.op == "call_function":
                pure &= index[arg] in result
        if pure:
            result.add(i)
    result.discard(len(nodes) - 1)
    return frozenset(result)


def _needs_gradient(
    module: GraphModule, nodes: tuple[Node, ...], index: dict[Node, int]
) -> frozenset[int]:
    result: set[int] = set()
    for i, node in enumerate(nodes):
        if cleanup.stops_gradient(node) or not cleanup.is_differentiable_value(node):
            continue
        for arg in node.all_input_nodes:
            if arg.op == "get_attr":
                value = operator.attrgetter(str(arg.target))(module)
                live = isinstance(value, torch.nn.Parameter) and value.requires_grad
            else:
                live = arg.op == "call_function" and index[arg] in result
            if live:
                result.add(i)
                break
    return frozenset(result)


def _cuts(
    nodes: tuple[Node, ...], index: dict[Node, int], spans: list[tuple[Node, Node]]
) -> frozenset[int]:
    """All positions but those between a tuple and its items or inside an in-place alias span."""
    allowed = set(range(1, len(nodes)))
    for i, node in enumerate(nodes):
        if node.target is operator.getitem:
            allowed.discard(i)
    for first, last in spans:
        allowed -= set(range(index[first] + 1, index[last] + 1))
    return frozenset(allowed)
