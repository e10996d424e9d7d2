"""What memory-bound ops move under ``torch.autocast``: float32 where it keeps it, and the casts.

Autocast computes products and attention in 16 bit and a list of ops in float32; every other op
takes the widest of its inputs. Weights stay float32, so the residual stream of a transformer does
too: a norm reads and writes 4 bytes an element, and its result is cast for each product that reads
it. What crosses from one width to the other costs a kernel that reads one and writes the other,
forward and, for the gradient, backward.

Source: PyTorch documentation, *Automatic Mixed Precision package*, "Autocast Op Reference" (CUDA
ops). Known limits: an op that asks for a dtype itself (``x.float()``) is taken to follow its
input; weights that several products of a block read are cast once a block, as the cache of
autocast does within one forward pass.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from autopar.graph import Amount, Op, OpEdge
from autopar.strategies.matmul import Products

FLOAT32_OPS = frozenset(
    [
        "binary_cross_entropy_with_logits",
        "cosine_similarity",
        "cross_entropy_loss",
        "cumprod",
        "cumsum",
        "dist",
        "erfinv",
        "exp",
        "expm1",
        "group_norm",
        "huber_loss",
        "kl_div",
        "l1_loss",
        "layer_norm",
        "linalg_vector_norm",
        "log",
        "log10",
        "log1p",
        "log2",
        "log_softmax",
        "mse_loss",
        "native_group_norm",
        "native_layer_norm",
        "nll_loss",
        "nll_loss_nd",
        "norm",
        "pow",
        "prod",
        "reciprocal",
        "renorm",
        "rsqrt",
        "sinh",
        "smooth_l1_loss",
        "soft_margin_loss",
        "softmax",
        "softplus",
        "sum",
        "tan",
        "_log_softmax",
        "_softmax",
    ]
)
"""Names of ATen ops that autocast computes in float32."""
FOLLOW_INPUT = frozenset(
    [
        "batch_norm",
        "native_batch_norm",
        "_native_batch_norm_legit",
        "cudnn_batch_norm",
        "instance_norm",
    ]
)
"""Ops whose float32 parameters do not widen their result."""
CAST = 1.5
"""Bytes of a cast over the float32 bytes of the tensor: it reads 4 and writes 2, or back."""
_NOTHING = Amount()


@dataclass(frozen=True, slots=True)
class Moved:
    """What an op moves, and the casts of its result for those that read it.

    Attributes:
        forward_bytes: Read and written by the op and by casts; for products the casts alone.
        backward_bytes: The same of gradients.
        casts: Casts forward.
    """

    forward_bytes: Amount = _NOTHING
    backward_bytes: Amount = _NOTHING
    casts: int = 0


class Autocast:
    """Widths of the values of a graph that was profiled in float32.

    Args:
        products: The graph.
    """

    def __init__(self, products: Products) -> None:
        self._profile = products.profile
        self._moved: dict[int, Moved] = {}
        self._into: dict[int, list[OpEdge]] = defaultdict(list)
        self._from: dict[int, list[OpEdge]] = defaultdict(list)
        for edge in products.profile.edges:
            if edge.dtype == "float32" and edge.shape:
                self._into[edge.consumer].append(edge)
                self._from[edge.producer].append(edge)

    @cached_property
    def wide(self) -> tuple[bool, ...]:
        """Whether each op's result is float32."""
        found: list[bool] = []
        for op in self._profile.ops:
            found.append(self._is_wide(op, found))
        return tuple(found)

    def _is_wide(self, op: Op, known: list[bool]) -> bool:
        if op.forward_flop != _NOTHING:
            return False
        name = _name(op)
        if name in FLOAT32_OPS:
            return True
        given = [known[edge.producer] for edge in self._into[op.index]]
        if name in FOLLOW_INPUT and given:
            return given[0]
        return bool(op.parameters) or not given or any(given)

    def moved(self, op: Op) -> Moved:
        """What one op moves in place of its ``forward_bytes`` and ``backward_bytes``."""
        if op.index not in self._moved:
            self._moved[op.index] = self._counted(op)
        return self._moved[op.index]

    def _counted(self, op: Op) -> Moved:
        casts = [edge for edge in self._from[op.index] if self._is_cast(edge)]
        forward = _scaled((edge.size_bytes for edge in casts), CAST)
        backward = _scaled((edge.size_bytes for edge in casts if edge.needs_gradient), CAST)
        if op.forward_flop == _NOTHING:
            share = self._width(op)
            forward += _scaled([op.forward_bytes], share)
            backward += _scaled([op.backward_bytes], share)
        return Moved(forward, backward, len(casts))

    def _is_cast(self, edge: OpEdge) -> bool:
        """True when the reader computes in another width than the value has."""
        reader = self._profile.ops[edge.consumer]
        if reader.forward_flop != _NOTHING:
            return self.wide[edge.producer]
        return _name(reader) in FLOAT32_OPS and not self.wide[edge.producer]

    def _width(self, op: Op) -> float:
        """Bytes that an op of no product moves over its bytes in float32."""
        batch, wide = self._profile.batch, self.wide[op.index]
        always = _name(op) in FLOAT32_OPS
        sizes = [
            (edge.size_bytes.at(batch), always or self.wide[edge.producer])
            for edge in self._into[op.index]
        ]
        sizes.append((op.output_bytes.at(batch), wide))
        whole = sum(size for size, _ in sizes)
        if whole <= 0:
            return 1.0 if wide else 0.5
        return sum(size * (1.0 if own else 0.5) for size, own in sizes) / whole


def _name(op: Op) -> str:
    """``aten.layer_norm.default`` -> ``layer_norm``."""
    parts = op.target.split(".")
    return parts[1] if len(parts) > 1 else op.target


def _scaled(amounts: Iterable[Amount], factor: float) -> Amount:
    total = Amount.total(list(amounts))
    return Amount(total.fixed * factor, total.per_sample * factor)
