"""Ops that move elements: where a part is afterwards, and their sizes on one rank."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.fx import Node

from autopar.executor.division.parts import (
    FinerSectionsError,
    Part,
    UndividableError,
    pieces,
    reshaped,
)
from autopar.executor.division.site import Site, Step, shape_of, wrap

aten = torch.ops.aten
Rule = Callable[[Site], Step]


def first(site: Site) -> Node:
    """The first operand."""
    node = site.node.args[0]
    assert isinstance(node, Node)
    return node


def _replaced(site: Site, place: int, value: Any) -> tuple[Any, ...]:
    """The op's arguments with one of them replaced."""
    args = list(site.node.args)
    args[place] = value
    return tuple(args)


def view(site: Site) -> Step:
    """``view``, ``reshape``, ``unflatten``, ``flatten``, ``squeeze``, ``unsqueeze``."""
    source = first(site)
    part = reshaped(site.only(source), shape_of(source), site.shape, site.count)
    if site.name in ("view", "_unsafe_view", "reshape"):
        sizes = site.node.args[1] if len(site.node.args) > 1 else None
        if not isinstance(sizes, list | tuple):
            raise UndividableError("a view as another dtype")
        return Step(out=part, args=_replaced(site, 1, site.local(part, site.shape)))
    if site.name == "unflatten":
        rank = len(shape_of(source))
        start, sizes = site.node.args[1], site.node.args[2]
        assert isinstance(start, int) and isinstance(sizes, list | tuple)
        start = wrap(start, rank)
        local = site.local(part, site.shape)[start : start + len(sizes)]
        return Step(out=part, args=_replaced(site, 2, local))
    return Step(out=part)


def expand(site: Site) -> Step:
    """``expand``: divided dimensions keep their size."""
    source = first(site)
    part = site.only(source)
    out = part.at(part.dim + len(site.shape) - len(shape_of(source)))
    return Step(out=out, args=_replaced(site, 1, site.local(out, site.shape)))


def transpose(site: Site) -> Step:
    """``transpose``, ``swapaxes``, ``t``."""
    part, rank = site.only(first(site)), len(site.shape)
    a = wrap(int(site.argument(1, "dim0", 0)), rank)
    b = wrap(int(site.argument(2, "dim1", rank - 1)), rank)
    return Step(out=part.at({a: b, b: a}.get(part.dim, part.dim)))


def permute(site: Site) -> Step:
    """``permute``."""
    part, rank = site.only(first(site)), len(site.shape)
    order = [wrap(int(d), rank) for d in site.argument(1, "dims")]
    return Step(out=part.at(order.index(part.dim)))


def _dim(site: Site, place: int, default: int = 0) -> int:
    return wrap(int(site.argument(place, "dim", default)), len(shape_of(first(site))))


def select(site: Site) -> Step:
    """``select``: one index of a dimension that is whole."""
    source = first(site)
    part, dim = site.only(source), _dim(site, 1)
    if dim == part.dim:
        raise FinerSectionsError([1] * shape_of(source)[dim])
    return Step(out=part.at(part.dim - (dim < part.dim)))


def unbind(site: Site) -> Step:
    """``unbind``: all indices of a dimension that is whole."""
    source = first(site)
    part, dim = site.only(source), _dim(site, 1)
    if dim == part.dim:
        raise FinerSectionsError([1] * shape_of(source)[dim])
    return Step(out=(part.at(part.dim - (dim < part.dim)),) * shape_of(source)[dim])


def slice_(site: Site) -> Step:
    """``slice``: of a dimension that is whole, or all of some sections."""
    source = first(site)
    part, dim = site.only(source), _dim(site, 1)
    if dim != part.dim:
        return Step(out=part)
    size = shape_of(source)[dim]
    start, stop, step = slice(
        site.argument(2, "start"), site.argument(3, "end"), site.argument(4, "step", 1)
    ).indices(size)
    if (start, stop, step) == (0, size, 1):
        return Step(out=part)
    if step != 1 or stop <= start:
        raise UndividableError(f"slice {start}:{stop}:{step} of the divided dimension")
    sizes = [n for n in (start, stop - start, size - stop) if n]
    rows = pieces(part, sizes)
    place = 1 if start else 0
    before = sum(part.cut(row).size(site.count) for row in rows[:place])
    mine = part.cut(rows[place])
    args = (source, dim, before, before + mine.size(site.count))
    return Step(out=mine, args=args, kwargs={}, target=aten.slice.Tensor)


def narrow(site: Site) -> Step:
    """``narrow`` of a dimension that is whole."""
    part, dim = site.only(first(site)), _dim(site, 1)
    if dim == part.dim:
        raise UndividableError("narrow of the divided dimension")
    return Step(out=part)


def split(site: Site) -> Step:
    """``split``, ``split_with_sizes``, ``chunk``: of the divided dimension between sections."""
    source = first(site)
    part, dim = site.only(source), _dim(site, 2)
    values = site.node.meta["val"]
    if dim != part.dim:
        return Step(out=(part,) * len(values))
    parts = [part.cut(row) for row in pieces(part, [int(v.shape[dim]) for v in values])]
    sizes = [p.size(site.count) for p in parts]
    return Step(
        out=tuple(parts),
        args=(source, sizes, dim),
        kwargs={},
        target=aten.split_with_sizes.default,
    )


def getitem(site: Site) -> Step:
    """One of several values."""
    source, place = site.node.args
    assert isinstance(source, Node) and isinstance(place, int)
    return Step(out=site.items(source)[place])


def cat(site: Site) -> Step:
    """``cat``: along the divided dimension all operands are parts, and their sections join."""
    row = site.node.args[0]
    assert isinstance(row, list | tuple)
    operands = [n for n in row if isinstance(n, Node)]
    dim = wrap(int(site.argument(1, "dim", 0)), len(site.shape))
    parts = [site.part(operand) for operand in operands]
    known = next(part for part in parts if part is not None)
    if dim != known.dim:
        return Step(out=known, needs=_alike(operands, parts, known))
    if any(part is None or part.dim != dim for part in parts):
        raise UndividableError("cat of a part and a whole along the divided dimension")
    return Step(out=known.cut([s for part in parts if part for s in part.sections]))


def stack(site: Site) -> Step:
    """``stack``: all operands are the same part."""
    row = site.node.args[0]
    assert isinstance(row, list | tuple)
    operands = [n for n in row if isinstance(n, Node)]
    dim = wrap(int(site.argument(1, "dim", 0)), len(site.shape))
    parts = [site.part(operand) for operand in operands]
    known = next(part for part in parts if part is not None)
    needs = _alike(operands, parts, known)
    return Step(out=known.at(known.dim + (dim <= known.dim)), needs=needs)


def _alike(
    operands: Sequence[Node], parts: Sequence[Part | None], known: Part
) -> dict[Node, Part]:
    """Whole operands that must be made the part that the others are."""
    if any(part is not None and part != known for part in parts):
        raise UndividableError("operands that are divided in different ways")
    return {n: known for n, part in zip(operands, parts, strict=True) if part is None}


def repeat_interleave(site: Site) -> Step:
    """``repeat_interleave`` with one count for all elements of a dimension."""
    source = first(site)
    part, times, dim = site.only(source), site.argument(1, "repeats"), site.argument(2, "dim")
    if not isinstance(times, int) or not isinstance(dim, int):
        raise UndividableError("repeat_interleave over all elements")
    if wrap(dim, len(site.shape)) != part.dim:
        return Step(out=part)
    return Step(out=part.cut([s * times for s in part.sections]))


def pad(site: Site) -> Step:
    """``pad`` of dimensions that are whole."""
    source = first(site)
    part, amounts = site.only(source), site.argument(1, "pad")
    from_end = 2 * (len(site.shape) - 1 - part.dim)
    if any(amounts[from_end : from_end + 2]):
        raise UndividableError("pad of the divided dimension")
    return Step(out=part)


def for_each(names: str, rule: Rule) -> dict[str, Rule]:
    """The same rule for several op names, separated by spaces."""
    return dict.fromkeys(names.split(), rule)


SHAPE_RULES: dict[str, Rule] = {
    **for_each("view _unsafe_view reshape unflatten flatten squeeze unsqueeze", view),
    "expand": expand,
    **for_each("transpose swapaxes t", transpose),
    "permute": permute,
    "select": select,
    "unbind": unbind,
    "slice": slice_,
    "narrow": narrow,
    **for_each("split split_with_sizes chunk", split),
    "getitem": getitem,
    **for_each("cat concat concatenate", cat),
    "stack": stack,
    "repeat_interleave": repeat_interleave,
    **for_each("pad constant_pad_nd", pad),
}
"""Op name -> rule."""
