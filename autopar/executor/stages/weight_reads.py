"""Rewrites of how a stage's graph reads its weights."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import torch
from torch.fx import GraphModule, Node

aten = torch.ops.aten

_NARROWED: tuple[Any, ...] = (
    aten.linear.default,
    aten.matmul.default,
    aten.mm.default,
    aten.bmm.default,
    aten.addmm.default,
    aten.baddbmm.default,
    aten.einsum.default,
    aten.conv1d.default,
    aten.conv2d.default,
    aten.conv3d.default,
    aten.convolution.default,
)
"""Calls whose operands autocast narrows on every device."""


def separate_uses(module: GraphModule) -> None:
    """Give each use of a parameter that has several an edge of its own in autograd's graph.

    Where backward is split, the gradient of one use can then be had without the others.
    """
    uses: dict[str, list[tuple[Node, Node]]] = {}
    for node, user in _reads(module):
        uses.setdefault(str(node.target), []).append((node, user))
    for places in uses.values():
        for node, user in places if len(places) > 1 else ():
            _read_through(module, node, user, aten.alias.default)
    module.recompile()


def widen_reads(module: GraphModule) -> None:
    """Make all but products compute with float32 weights where weights come narrower.

    Norms and sums keep the format they have with whole weights, and so does what follows them. Of
    an embedding the rows it takes are widened, not the table.
    """
    for node, user in _reads(module):
        if user.target is aten.embedding.default:
            with module.graph.inserting_after(user):
                rows = module.graph.call_function(
                    aten._to_copy.default, (user,), {"dtype": torch.float32}
                )
            rows.meta = dict(user.meta)
            for later in [n for n in user.users if n is not rows]:
                later.replace_input_with(user, rows)
        elif user.target not in _NARROWED:
            _read_through(module, node, user, aten._to_copy.default, dtype=torch.float32)
    module.recompile()


def _reads(module: GraphModule) -> list[tuple[Node, Node]]:
    """``(get_attr of a parameter, call that reads it)``."""
    return [
        (node, user)
        for node in module.graph.nodes
        if node.op == "get_attr"
        and isinstance(attrgetter(str(node.target))(module), torch.nn.Parameter)
        and attrgetter(str(node.target))(module).is_floating_point()
        for user in node.users
    ]


def _read_through(
    module: GraphModule, node: Node, user: Node, target: Any, **options: Any
) -> None:
    with module.graph.inserting_before(user):
        call = module.graph.call_function(target, (node,), options)
    call.meta = dict(node.meta)
    user.replace_input_with(node, call)
