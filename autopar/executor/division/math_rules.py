"""Ops that compute: which of them work on a rank's part alone."""

from __future__ import annotations

from collections.abc import Sequence

from torch.fx import Node

from autopar.executor.division.parts import Part, UndividableError
from autopar.executor.division.shape_rules import Rule, first, for_each
from autopar.executor.division.site import Site, Step, shape_of, wrap
from autopar.trace.cleanup import mutates


def pointwise(site: Site) -> Step:
    """Elementwise ops: all operands that span the divided dimension must be the same part."""
    rank = len(site.shape)
    parts: dict[Node, Part] = {}
    for operand in site.operands():
        part = site.part(operand)
        if part is not None:
            parts[operand] = part.at(part.dim + rank - len(shape_of(operand)))
    known = next(iter(parts.values()))
    for operand, part in parts.items():
        if part != known:
            coarse = min(parts, key=lambda n: len(parts[n].sections))
            fine = max(parts.values(), key=lambda p: len(p.sections))
            if part.dim == known.dim and len(parts[coarse].sections) < len(fine.sections):
                raise site.finer(coarse, fine.sections)
            raise UndividableError(f"{site.name} of operands that are divided in different ways")
        if site.shape[part.dim] != sum(part.sections):
            raise UndividableError(
                f"{site.name} broadcasts the divided dimension of {operand.name}"
            )
    needs = {}
    for operand in site.operands():
        if operand in parts:
            continue
        spanning = spanning_part(operand, known, rank)
        if spanning is not None:
            needs[operand] = spanning
    if mutates(site.node) and first(site) not in parts:
        raise UndividableError(f"{site.name} writes a part into a whole value")
    several = isinstance(site.node.meta.get("val"), list | tuple)
    return Step(out=(known,) * len(site.node.meta["val"]) if several else known, needs=needs)


def spanning_part(operand: Node, known: Part, rank: int) -> Part | None:
    """The part of a whole operand that meets a part of the result; ``None`` if it is broadcast."""
    shape = shape_of(operand)
    dim = known.dim - (rank - len(shape))
    return known.at(dim) if dim >= 0 and shape[dim] != 1 else None


def along(site: Site) -> Step:
    """Ops along one dimension, which must be whole: ``softmax``, ``cumsum``, ``topk``."""
    source = first(site)
    part = site.only(source)
    place = 2 if site.name == "topk" else 1
    dim = site.argument(place, "dim", -1)
    if not isinstance(dim, int) or wrap(dim, len(shape_of(source))) == part.dim:
        raise UndividableError(f"{site.name} along the divided dimension")
    value = site.node.meta["val"]
    return Step(out=(part,) * len(value) if isinstance(value, list | tuple) else part)


def reduction(site: Site) -> Step:
    """``mean``, ``sum``, ``amax`` over dimensions that are whole."""
    source = first(site)
    part, rank = site.only(source), len(shape_of(source))
    dims = site.argument(1, "dim")
    if isinstance(dims, int):
        dims = [dims]
    if not isinstance(dims, Sequence) or not dims:
        raise UndividableError(f"{site.name} over all elements")
    gone = {wrap(int(d), rank) for d in dims}
    if part.dim in gone:
        raise UndividableError(f"{site.name} over the divided dimension")
    if len(site.shape) == rank:
        return Step(out=part)
    return Step(out=part.at(part.dim - sum(d < part.dim for d in gone)))


def layer_norm(site: Site) -> Step:
    """``layer_norm`` and ``rms_norm`` over trailing dimensions that are whole."""
    source = first(site)
    part = site.only(source)
    if part.dim >= len(shape_of(source)) - len(site.argument(1, "normalized_shape")):
        raise UndividableError(f"{site.name} over the divided dimension")
    value = site.node.meta["val"]
    return Step(out=(part,) * len(value) if isinstance(value, list | tuple) else part)


def batch_norm(site: Site) -> Step:
    """``batch_norm`` of whole channels: weights and running statistics are cut like them."""
    source = first(site)
    part = site.only(source)
    if part.dim != 1:
        raise UndividableError("batch_norm over the divided dimension")
    needs = {n: part.at(0) for n in site.operands() if n is not source}
    value = site.node.meta["val"]
    several = isinstance(value, list | tuple)
    out = tuple(part if v.dim() > 1 else part.at(0) for v in value) if several else part
    return Step(out=out, needs=needs)


def pool(site: Site) -> Step:
    """Pooling of whole channels; the spatial dimensions must be whole."""
    part = site.only(first(site))
    if part.dim > 1 or len(site.shape) < 3:
        raise UndividableError(f"{site.name} over the divided dimension")
    value = site.node.meta["val"]
    return Step(out=(part,) * len(value) if isinstance(value, list | tuple) else part)


def attention(site: Site) -> Step:
    """Fused attention by heads; masks are cut where they span heads."""
    rank = len(site.shape)
    query, key, value = site.node.args[:3]
    mask = site.argument(3, "attn_mask")
    assert isinstance(query, Node) and isinstance(key, Node) and isinstance(value, Node)
    part = site.part(query)
    if part is None or part.dim >= rank - 2:
        raise UndividableError("attention whose query is not divided by heads")
    needs: dict[Node, Part] = {}
    for operand in (key, value):
        own = site.part(operand)
        heads = shape_of(operand)[part.dim] if len(shape_of(operand)) == rank else 1
        if own is not None and own.dim != part.dim:
            raise UndividableError("attention whose keys are not divided by heads")
        if heads == 1 and own is None:
            continue
        wanted = part if own is None else own
        if own is None and heads != shape_of(query)[part.dim]:
            raise UndividableError("attention whose groups of heads would be torn apart")
        if len(wanted.sections) != len(part.sections):
            raise UndividableError("attention whose heads are divided in different ways")
        needs[operand] = wanted
    if isinstance(mask, Node):
        spanning = spanning_part(mask, part, rank)
        if spanning is not None:
            needs[mask] = spanning
    return Step(out=part, needs=needs)


def batched_product(site: Site) -> Step:
    """``bmm``, ``matmul``, ``mm``, ``baddbmm``: by batch dimensions, or rows or columns of one."""
    added = site.node.args[0] if site.name in ("baddbmm", "addmm") else None
    left, right = site.node.args[-2:] if added is None else site.node.args[1:3]
    assert isinstance(left, Node) and isinstance(right, Node)
    rank = len(site.shape)
    mine, theirs = site.part(left), site.part(right)
    if len(shape_of(left)) < 2 or len(shape_of(right)) < 2:
        raise UndividableError(f"{site.name} with a vector")
    out = None
    for operand, part, own in ((left, mine, -2), (right, theirs, -1)):
        if part is None:
            continue
        size = len(shape_of(operand))
        if part.dim == size - 3 + (-own):  # the dimension that is summed
            raise UndividableError(f"{site.name} sums over the divided dimension")
        found = part.at(part.dim + rank - size)
        if out is not None and (found != out or found.dim >= rank - 2):
            raise UndividableError(f"{site.name} of operands that are divided in different ways")
        if site.shape[found.dim] != sum(part.sections):
            raise UndividableError(f"{site.name} broadcasts the divided dimension")
        out = found
    assert out is not None
    needs: dict[Node, Part] = {}
    for operand, part in ((left, mine), (right, theirs)):
        if part is None and out.dim < rank - 2:
            spanning = spanning_part(operand, out, rank)
            if spanning is not None:
                needs[operand] = spanning
    if isinstance(added, Node):
        spanning = spanning_part(added, out, rank)
        if spanning is not None:
            needs[added] = spanning
    return Step(out=out, needs=needs)


_POOLS = (
    "max_pool1d max_pool2d max_pool3d max_pool2d_with_indices avg_pool1d avg_pool2d avg_pool3d "
    "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_max_pool2d"
)
MATH_RULES: dict[str, Rule] = {
    **for_each(
        "softmax _softmax log_softmax _log_softmax cumsum cumprod topk sort argsort", along
    ),
    **for_each("mean sum amax amin var std logsumexp prod any all", reduction),
    **for_each("layer_norm rms_norm native_layer_norm", layer_norm),
    **for_each("batch_norm native_batch_norm _native_batch_norm_legit", batch_norm),
    **for_each(_POOLS, pool),
    "scaled_dot_product_attention": attention,
    **for_each("bmm matmul mm baddbmm addmm", batched_product),
}
"""Op name -> rule."""
