"""Matrix products behind the FLOPs of an op, from its FLOP count and output shape."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass

from autopar.graph import Amount, GraphProfile, Op

CONVOLUTIONS = ("aten.convolution", "aten.conv")
ATTENTION = "scaled_dot_product"
BATCHED = ("aten.bmm", "aten.baddbmm", "aten.matmul")
KEYS_AND_VALUES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Matmul:
    """``batch`` products of ``m x k`` by ``k x n``.

    Attributes:
        m: Rows of the result; for a layer's product, the tokens.
        n: Columns.
        k: Contraction length.
        batch: Independent products.
        weight: True when one operand is a parameter.
        grouped: True for a convolution whose output channels read few input channels.
    """

    m: Amount
    n: float
    k: float
    batch: Amount
    weight: bool
    grouped: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """One fused attention call.

    Attributes:
        flop: Forward FLOPs over the whole score matrix.
        heads: Query heads.
        query: Query length.
        key: Key length.
        head_dim: Size of a head.
        key_bytes: Bytes of keys and values, as profiled.
    """

    flop: Amount
    heads: int
    query: int
    key: int
    head_dim: int
    key_bytes: Amount


class Products:
    """Looks up the products of a profile's ops.

    Args:
        profile: The traced graph; its edges carry the shapes at the profiled batch.
    """

    def __init__(self, profile: GraphProfile) -> None:
        self.profile = profile
        self.shapes: dict[int, tuple[int, ...]] = {}
        self.inputs: dict[int, list[int]] = defaultdict(list)
        self.consumers: dict[int, list[int]] = defaultdict(list)
        self._trained_inputs: dict[int, set[int]] = defaultdict(set)
        self._sizes: dict[tuple[int, int], Amount] = {}
        self._matmuls: dict[int, Matmul | None] = {}
        for edge in profile.edges:
            self.shapes.setdefault(edge.producer, edge.shape)
            self.inputs[edge.consumer].append(edge.producer)
            self.consumers[edge.producer].append(edge.consumer)
            if edge.needs_gradient:
                self._trained_inputs[edge.consumer].add(edge.producer)
            self._sizes[edge.producer, edge.consumer] = edge.size_bytes

    def edge_bytes(self, producer: int, consumer: int) -> Amount:
        """Bytes of a tensor that one op hands another."""
        return self._sizes[producer, consumer]

    def trained(self, index: int) -> list[int]:
        """Producers of an op's inputs that backward gives a gradient, in order."""
        return sorted(self._trained_inputs[index])

    def attention(self, op: Op) -> Attention | None:
        """The fused attention of an op, if it is one.

        Edges tell no argument order. Masks need no gradient, and queries have at least as many
        heads as keys and values, so the two smallest trained inputs of the keys' length are those.
        """
        shape = self.shapes.get(op.index, ())
        if ATTENTION not in op.target or len(shape) != 4:
            return None
        batch, heads, query, head_dim = shape
        flop = op.forward_flop.at(self.profile.batch)
        key = max(1, round(flop / max(1, 4 * batch * heads * query * head_dim)))
        keys = [
            self.edge_bytes(i, op.index)
            for i in self.inputs[op.index]
            if i in self._trained_inputs[op.index]
            and len(self.shapes[i]) == 4
            and self.shapes[i][2] == key
        ]
        keys.sort(key=lambda size: size.at(self.profile.batch))
        return Attention(
            flop=op.forward_flop,
            heads=heads,
            query=query,
            key=key,
            head_dim=head_dim,
            key_bytes=Amount.total(keys[:KEYS_AND_VALUES]),
        )

    def matmul(self, op: Op) -> Matmul | None:
        """The product of an op with FLOPs that is no fused attention, else ``None``.

        An op of unknown kind stands for one product with its output's last axis as columns; one
        whose output no later op reads, so that its shape is unknown, for a cube.
        """
        if op.index not in self._matmuls:
            self._matmuls[op.index] = self._product_of(op)
        return self._matmuls[op.index]

    def _product_of(self, op: Op) -> Matmul | None:
        batch = self.profile.batch
        flop = op.forward_flop.at(batch)
        if flop <= 0 or ATTENTION in op.target:
            return None
        shape = self.shapes.get(op.index)
        per_sample = op.forward_flop.per_sample > 0
        if shape is None:
            return _cube(flop, batch, per_sample, bool(op.parameters))
        if op.target.startswith(CONVOLUTIONS) and len(shape) > 2:
            n, groups, rows = shape[1], 1, shape[0] * math.prod(shape[2:])
        elif op.target.startswith(BATCHED) and len(shape) > 2 and not self._linear(op, shape):
            n, groups, rows = shape[-1], math.prod(shape[:-2]), shape[-2]
        else:
            n, groups, rows = shape[-1], 1, math.prod(shape[:-1])
        k = flop / (2.0 * max(1, rows * n * groups))
        in_rows = bool(op.parameters) or groups == 1
        return Matmul(
            m=_amount(rows, batch, per_sample and in_rows),
            n=float(n),
            k=k,
            batch=_amount(groups, batch, per_sample and not in_rows),
            weight=bool(op.parameters),
            grouped=self._grouped(op, k),
        )

    def _linear(self, op: Op, shape: tuple[int, ...]) -> bool:
        """True for a product with one weight matrix; expert weights come in stacks."""
        if not op.parameters:
            return False
        count = max(self.profile.parameters[name][0] for name in op.parameters)
        stack = math.prod(shape[:-2])
        k = op.forward_flop.at(self.profile.batch) / (2.0 * math.prod(shape))
        return count < stack * k * shape[-1] or stack == 1

    def _grouped(self, op: Op, k: float) -> bool:
        if not op.target.startswith(CONVOLUTIONS):
            return False
        channels = [self.shapes[i][1] for i in self.inputs[op.index] if len(self.shapes[i]) > 2]
        if not channels:
            return False
        # k is input channels of a group times taps of the kernel: a multiple of all channels
        # when there is one group
        return k < max(channels) or round(k) % max(channels) != 0


def _cube(flop: float, batch: int, per_sample: bool, weight: bool) -> Matmul:
    side = (flop / 2.0) ** (1.0 / 3.0)
    one = Amount(1.0, 0.0)
    return Matmul(m=_amount(side, batch, per_sample), n=side, k=side, batch=one, weight=weight)


def _amount(count: float, batch: int, per_sample: bool) -> Amount:
    return Amount(0.0, count / batch) if per_sample else Amount(float(count), 0.0)
