"""Reductions and losses of a value that is divided along the sequence: terms of a mean."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.fx import Node

from autopar.executor.division.along import Along
from autopar.executor.division.context_operands import MixesError, Rule
from autopar.executor.division.editor import value_of
from autopar.executor.division.ops import argument, dims_of, has_argument, name_of, shape_of

if TYPE_CHECKING:
    from autopar.executor.division.context import ContextPass, State

_REDUCTION_NAMES = """
mean sum amax amin max min any all argmax argmin logsumexp norm linalg_vector_norm var std prod
"""
_LOSS_NAMES = """
mse_loss l1_loss smooth_l1_loss huber_loss binary_cross_entropy binary_cross_entropy_with_logits
kl_div soft_margin_loss poisson_nll_loss
"""
_CLASS_LOSS_NAMES = "cross_entropy_loss nll_loss nll_loss_nd"
_MEAN, _SUM = 1, 2


def _reduction(context: ContextPass, node: Node, along: Along) -> State:
    first = node.args[0]
    assert isinstance(first, Node)
    rank = len(shape_of(first))
    dims = dims_of(node, "dim", rank) if has_argument(node, "dim") else tuple(range(rank))
    name = name_of(node)
    if along.dim not in dims:
        context.emit(node, {})
        gone = sum(d < along.dim for d in dims)
        kept = has_argument(node, "keepdim") and argument(node, "keepdim")
        return along.at(along.dim - (0 if kept else gone))
    if name not in ("mean", "sum") or not value_of(node).is_floating_point():
        raise MixesError
    context.emit(node, {})
    if name == "sum":
        context.scaled(node, context.zigzag.count)
    return "term"


def _loss(context: ContextPass, node: Node, along: Along) -> State:
    """Elementwise losses: all elements count, so the ranks' means and sums are terms."""
    shapes = max((shape_of(s) for s in node.all_input_nodes), key=len)
    rank = len(shapes)
    wanted: dict[Node, State] = {}
    for source in node.all_input_nodes:
        dim = along.dim - rank + len(shape_of(source))
        own = shape_of(source)
        wanted[source] = along.at(dim) if dim >= 0 and own and own[dim] != 1 else None
        if context.state(source) not in (None, wanted[source]):
            raise MixesError
    context.emit(node, wanted)
    return _reduced(context, node, along)


def _reduced(context: ContextPass, node: Node, along: Along) -> State:
    reduction = argument(node, "reduction")
    if reduction == _SUM:
        context.scaled(node, context.zigzag.count)
    return "term" if reduction in (_MEAN, _SUM) else along


def _class_loss(context: ContextPass, node: Node, along: Along) -> State:
    """Cross-entropy over classes; ignored tokens and weights change a mean's divisor."""
    scores, target, weight = (argument(node, n) for n in ("self", "target", "weight"))
    classes = min(1, len(shape_of(scores)) - 1)
    if context.state(scores) != along or along.dim == classes or context.state(weight) is not None:
        raise MixesError
    likelihoods = shape_of(target) == shape_of(scores)
    own = along if likelihoods else along.at(along.dim - (along.dim > classes))
    if context.state(target) not in (None, own):
        raise MixesError
    reduction = argument(node, "reduction")
    if reduction == _MEAN and not likelihoods:
        total = context.emit(node, {target: own}, reduction=_SUM)
        value = value_of(total)
        mean = context.editor.emit(
            context.zigzag.mean_of_counted,
            (
                total,
                context.read(target, own),
                None if weight is None else context.editor.local(weight),
                argument(node, "ignore_index"),
            ),
            value=context.editor.fake(value.shape, value.dtype),
        )
        context.editor.define(node, mean)
        return "term"
    context.emit(node, {target: own})
    return _reduced(context, node, own)


LOSSES: dict[str, Rule] = {
    **dict.fromkeys(_REDUCTION_NAMES.split(), _reduction),
    **dict.fromkeys(_LOSS_NAMES.split(), _loss),
    **dict.fromkeys(_CLASS_LOSS_NAMES.split(), _class_loss),
}
"""Op name -> rule."""
