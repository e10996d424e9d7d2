"""Products with a weight: by columns, by rows, or on a part of the tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from autopar.executor.division.ops import name_of
from autopar.executor.division.parts import Part, UndividableError
from autopar.executor.division.shape_rules import first
from autopar.executor.division.site import Site, Step, shape_of

aten = torch.ops.aten
_TRANSPOSED = ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
_CONVOLUTIONS = ("conv1d", "conv2d", "conv3d", "convolution", *_TRANSPOSED)
_MIN_STACK_RANK = 3


@dataclass(frozen=True, kw_only=True)
class Product:
    """A product of a value with a weight.

    Attributes:
        x: The value.
        weight: The weight, a ``get_attr`` node.
        bias: What is added, if anything.
        summed_dim: Dimension of ``x`` that is summed over.
        in_dim: The same dimension of the weight.
        out_dim: Dimension of the weight that gives the columns.
        column_dim: Dimension of the result that the columns are.
        groups: Groups of a convolution.
    """

    x: Node
    weight: Node
    bias: Node | None
    summed_dim: int
    in_dim: int
    out_dim: int
    column_dim: int
    groups: int = 1


def product_of(node: Node) -> Product | None:
    """The product that an op is, or ``None``: its weight must be a parameter as it stands."""
    name, args = name_of(node), node.args
    if name == "linear":
        x, weight, bias = args[0], args[1], args[2] if len(args) > 2 else node.kwargs.get("bias")
        in_dim, out_dim = 1, 0
    elif name == "addmm" and not node.kwargs:
        bias, x, weight = args[:3]
        in_dim, out_dim = 0, 1
    elif name in ("mm", "matmul", "bmm"):
        x, weight, bias = args[0], args[1], None
        in_dim, out_dim = -2, -1
    elif name in _CONVOLUTIONS:
        return _convolution(node, name)
    else:
        return None
    if not (isinstance(x, Node) and isinstance(weight, Node) and weight.op == "get_attr"):
        return None
    rank, size = len(shape_of(x)), len(shape_of(weight))
    if size < 2 or (size >= _MIN_STACK_RANK and rank != size):
        return None
    return Product(
        x=x,
        weight=weight,
        bias=bias if isinstance(bias, Node) else None,
        summed_dim=rank - 1,
        in_dim=in_dim % size,
        out_dim=out_dim % size,
        column_dim=len(shape_of(node)) - 1,
    )


def _convolution(node: Node, name: str) -> Product | None:
    args = [*node.args, *[None] * 9]
    x, weight, bias = args[0], args[1], args[2]
    bias = bias if bias is not None else node.kwargs.get("bias")
    if not (isinstance(x, Node) and isinstance(weight, Node) and weight.op == "get_attr"):
        return None
    if len(shape_of(x)) != len(shape_of(weight)):
        return None
    transposed = name in _TRANSPOSED or (name == "convolution" and bool(args[6]))
    place = 8 if name == "convolution" else 6
    groups = args[place] if args[place] is not None else node.kwargs.get("groups", 1)
    assert isinstance(groups, int)
    return Product(
        x=x,
        weight=weight,
        bias=bias if isinstance(bias, Node) else None,
        summed_dim=1,
        in_dim=0 if transposed else 1,
        out_dim=1 if transposed else 0,
        column_dim=1,
        groups=groups,
    )


def columns(site: Site, product: Product, sections: tuple[int, ...], *, padded: bool) -> Step:
    """A product of a whole value, divided by columns.

    Args:
        site: The op.
        product: What it computes.
        sections: Sections of its columns.
        padded: Columns may be padded to a multiple of the ranks (a vocabulary).
    """
    if product.groups > 1:
        raise UndividableError("a grouped convolution of a whole value")
    part = Part(dim=product.column_dim, sections=sections, region="columns")
    if not padded and not part.divides(site.count):
        raise UndividableError(f"{site.count} ranks do not divide columns of {list(sections)}")
    needs = {product.weight: part.at(product.out_dim)}
    if product.bias is not None:
        needs[product.bias] = part.at(0)
    return Step(out=part, needs=needs, kind="column")


def on_part(site: Site, product: Product, sum_layout: Part | None) -> Step:
    """A product of a part: a row when the part is what is summed, else as many tokens or channels.

    Args:
        site: The op.
        product: What it computes.
        sum_layout: The part of the sequence that a row's sum is left as; ``None``: whole.
    """
    part = site.only(product.x)
    if product.groups > 1:
        return _grouped(site, product, part)
    if part.dim == product.summed_dim:
        if part.region != "columns":
            raise UndividableError("a product that sums over the sequence")
        if not part.divides(site.count):
            raise UndividableError("a product of padded columns")
        return Step(
            out=sum_layout,
            needs={product.x: part, product.weight: part.at(product.in_dim)},
            kind="row",
        )
    if name_of(site.node) in _CONVOLUTIONS or len(shape_of(product.weight)) > 2:
        raise UndividableError(f"{site.name} over the divided dimension")
    return Step(out=part)


def _grouped(site: Site, product: Product, part: Part) -> Step:
    """A convolution of groups of channels: each rank its groups."""
    node = site.node
    if part.dim != 1 or part.region != "columns" or product.in_dim == 0:
        raise UndividableError("a grouped convolution over the divided dimension")
    channels, outputs = shape_of(product.x)[1], site.shape[1]
    width = channels // product.groups
    if any(s % (width * site.count) for s in part.sections):
        raise UndividableError(f"{site.count} ranks do not divide {product.groups} groups")
    out = part.cut([s // width * (outputs // product.groups) for s in part.sections])
    needs = {product.weight: out.at(0)}
    if product.bias is not None:
        needs[product.bias] = out.at(0)
    place = 8 if site.name == "convolution" else 6
    groups = product.groups // site.count
    if len(node.args) > place:
        args = (*node.args[:place], groups, *node.args[place + 1 :])
        return Step(out=out, needs=needs, args=args)
    return Step(out=out, needs=needs, kwargs={**node.kwargs, "groups": groups})


def without_bias(node: Node, product: Product) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Target and arguments of a product that leaves its bias to be added later."""
    name = name_of(node)
    if name == "addmm":
        return aten.mm.default, node.args[1:3]
    args = list(node.args)
    if name == "linear":
        args = args[:2]
    elif product.bias is not None and len(args) > 2:
        args[2] = None
    target = node.target
    assert callable(target)
    return target, tuple(args)


def embedding_columns(site: Site, sum_layout: Part | None) -> Step:
    """A lookup in a table of which each rank holds some rows; what it finds is summed."""
    weight = site.node.args[0]
    if not isinstance(weight, Node) or weight.op != "get_attr":
        raise UndividableError("an embedding whose table is computed")
    if site.argument(3, "scale_grad_by_freq", False) or site.argument(4, "sparse", False):
        raise UndividableError("an embedding with gradients by frequency or sparse ones")
    part = Part(dim=0, sections=(shape_of(weight)[0],), region="columns")
    return Step(out=sum_layout, needs={weight: part}, kind="embedding")


def embedding_on_part(site: Site, layout: Part) -> Step:
    """A lookup in a whole table of this rank's part of the sequence."""
    indices = site.node.args[1]
    weight = first(site)
    if not isinstance(indices, Node) or weight.op != "get_attr":
        raise UndividableError("an embedding whose table is computed")
    return Step(out=layout, needs={indices: layout}, kind="positions")
