"""Context parallelism: each rank holds a part of every sequence, attention gathers the keys.

Before attention the ranks gather all keys and values; backward scatters the sums of their
gradients, as in Llama 3 (Grattafiori et al. 2024, arXiv 2407.21783, section 3.3.2). Queries stay,
and almost everything else works on each position alone. An op that mixes positions in another
way has its operands gathered and is computed whole on every rank.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from autopar.graph import Amount, GraphProfile, Op
from autopar.strategies.matmul import Products
from autopar.strategies.tensor import Collective, short

_MIXING_NAMES = """
cumprod cummax cummin logcumsumexp flip roll sort argsort unfold as_strided scatter
conv1d conv2d conv3d convolution conv_transpose1d conv_transpose2d conv_transpose3d
batch_norm native_batch_norm _native_batch_norm_legit instance_norm group_norm
max_pool1d max_pool2d avg_pool1d avg_pool2d adaptive_avg_pool1d adaptive_avg_pool2d
lstm gru rnn_tanh rnn_relu fft_fft fft_rfft fft_fft2 fft_irfft
"""
MIXING = frozenset(_MIXING_NAMES.split())
"""Ops that read several positions to make one."""
REDUCTIONS = frozenset({"select", "mean", "sum"})
"""Ops whose result over the sequence the ranks make with one small sum."""
PRODUCTS = frozenset({"matmul", "bmm", "baddbmm", "einsum"})
SHAPED = frozenset({"view", "reshape", "_unsafe_view", "unflatten", "flatten"})
RESIZED = frozenset({"slice", "pad", "constant_pad_nd"})
"""Ops that mix positions if they change the size of the sequence."""
POSITIONAL = MIXING | SHAPED | RESIZED
"""Ops that may mix positions."""
_SEQUENCE_RANK = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathered:
    """What an op reads of other ranks' positions, of the whole sequence.

    Attributes:
        forward: Bytes gathered.
        backward: Bytes of gradients that are summed and scattered.
        kept: They are keys or values, which stay until backward.
    """

    forward: Amount
    backward: Amount
    kept: bool = False


class ContextSplit:
    """What context parallelism does to a profile, for any degree.

    Args:
        products: Products of the profile's ops.
    """

    def __init__(self, products: Products) -> None:
        self._products = products
        self._profile: GraphProfile = products.profile
        self._fused = {
            op.index: call
            for op in self._profile.ops
            if (call := products.attention(op)) is not None
        }
        self._scores = frozenset(op.index for op in self._profile.ops if self._is_scores(op))
        queries = [call.query for call in self._fused.values()]
        queries += [products.shapes[i][-2] for i in self._scores]
        self.length = min(queries, default=0)
        self._lengths = {call.key for call in self._fused.values()} | set(queries)
        self._lengths |= {products.shapes[i][-1] for i in self._scores}
        self._sequences: dict[tuple[int, ...], bool] = {}

    def _is_scores(self, op: Op) -> bool:
        """True for a product of two values whose rows go through a softmax."""
        shapes, shape = self._products.shapes, self._products.shapes.get(op.index, ())
        if short(op.target) not in PRODUCTS or op.parameters or len(shape) < _SEQUENCE_RANK:
            return False
        seen: set[int] = set()
        waiting = list(self._products.consumers[op.index])
        while waiting:
            index = waiting.pop()
            if index in seen or shapes.get(index, ())[-2:] != shape[-2:]:
                continue
            seen.add(index)
            name = short(self._profile.ops[index].target)
            if name in ("softmax", "_softmax"):
                return True
            if name not in PRODUCTS:
                waiting += self._products.consumers[index]
        return False

    def why_not(self, cp: int) -> str | None:
        """Why sequences cannot be divided over ``cp`` ranks, or ``None``."""
        if cp == 1:
            return None
        if not self._lengths:
            return "the model has no attention over a sequence to divide"
        for length in sorted(self._lengths):
            if length % (2 * cp):
                return f"cp={cp} needs sequences of a multiple of {2 * cp}, one has {length}"
        return None

    @property
    def gathered(self) -> dict[int, Gathered]:
        """Op -> what it reads of other ranks' positions."""
        return self._flow.gathered

    @property
    def whole(self) -> frozenset[int]:
        """Ops that every rank computes whole, because they or ops before them mix positions."""
        return frozenset(self._flow.whole)

    @cached_property
    def _flow(self) -> _Flow:
        """Follow the sequence from where a value first has it as its second dimension.

        The profile tells shapes, not arguments, so that a name may stand for an op that runs
        along another dimension (a maximum over features).
        """
        flow = _Flow()
        for op in self._profile.ops:
            shape = self._products.shapes.get(op.index)
            if op.replicated or shape is None:
                continue
            sources = self._products.inputs[op.index]
            carried = [i for i in sources if i in flow.carried]
            shapes = [self._products.shapes[i] for i in carried]
            mixes = short(op.target) in POSITIONAL and any(
                self._mixes(op, source, shape) for source in shapes
            )
            found = self._gathered(op, carried, flow, mixes=mixes)
            if found is not None:
                flow.gathered[op.index] = found
            away = any(i in flow.stacked for i in sources) and not self._comes_home(op)
            if away or op.index in self._stacks:
                flow.stacked.add(op.index)
            elif self._carries(op, shapes, shape) and not (mixes and shape not in shapes):
                flow.carried.add(op.index)
            elif mixes or any(i in flow.whole or i in flow.stacked for i in sources):
                flow.whole.add(op.index)
            if mixes:
                flow.whole.add(op.index)
        return flow

    @cached_property
    def _stacks(self) -> frozenset[int]:
        """Products of a stack of weights: their rows are divided, whatever they are."""
        found = set()
        for op in self._profile.ops:
            if short(op.target) not in PRODUCTS or not op.parameters:
                continue
            shape, matmul = self._products.shapes.get(op.index, ()), self._products.matmul(op)
            several = matmul is not None and matmul.batch != Amount(1.0, 0.0)
            if len(shape) == _SEQUENCE_RANK and several:
                found.add(op.index)
        return frozenset(found)

    def _comes_home(self, op: Op) -> bool:
        """True for a view that takes the rows of a stack apart."""
        shape = self._products.shapes[op.index]
        sources = [self._products.shapes[i] for i in self._products.inputs[op.index]]
        return short(op.target) in SHAPED and any(shape[:2] != s[:2] for s in sources)

    def _gathered(
        self, op: Op, carried: list[int], flow: _Flow, *, mixes: bool
    ) -> Gathered | None:
        """What an op gathers: keys and values, operands of an op that mixes, experts' results."""
        call = self._fused.get(op.index)
        if call is not None:
            return Gathered(forward=call.key_bytes, backward=call.key_bytes, kept=True)
        if flow.stacked:
            stacked = [i for i in self._products.inputs[op.index] if i in flow.stacked]
            if stacked and self._comes_home(op):
                return self._of(op, stacked)
        if op.index in self._scores:
            return self._keys(op, carried)
        if short(op.target) in PRODUCTS and not op.parameters:
            shapes = self._products.shapes
            scores = [i for i in carried if set(shapes[i][-2:]) <= self._lengths]
            if scores:
                found = self._of(op, [i for i in carried if i not in scores])
                return Gathered(forward=found.forward, backward=found.backward, kept=True)
        return self._of(op, carried) if mixes else None

    def _keys(self, op: Op, carried: list[int]) -> Gathered:
        """The smaller operand: queries have as many heads, and seldom fewer positions."""
        sizes = [self._of(op, [i]) for i in carried]
        keys = min(sizes, key=lambda g: g.forward.at(1), default=self._of(op, []))
        return Gathered(forward=keys.forward, backward=keys.backward, kept=True)

    def _of(self, op: Op, sources: list[int]) -> Gathered:
        trained = set(self._products.trained(op.index))
        sizes = {i: self._products.edge_bytes(i, op.index) for i in sources}
        return Gathered(
            forward=Amount.total(list(sizes.values())),
            backward=Amount.total([size for i, size in sizes.items() if i in trained]),
        )

    def _mixes(self, op: Op, source: tuple[int, ...], shape: tuple[int, ...]) -> bool:
        name = short(op.target)
        if name in RESIZED and len(source) == len(shape):
            changed = [d for d, size in enumerate(source) if size != shape[d]]
            features = max(1, len(source) - 1)
            return any(d < features and source[d] in self._lengths for d in changed)
        if name in SHAPED:
            return not self._has_sequence(shape)
        return name in MIXING

    def _has_sequence(self, shape: tuple[int, ...]) -> bool:
        if shape not in self._sequences:
            self._sequences[shape] = any(
                size % length == 0 for size in shape for length in self._lengths
            )
        return self._sequences[shape]

    def _carries(self, op: Op, sources: list[tuple[int, ...]], shape: tuple[int, ...]) -> bool:
        if not sources:
            return len(shape) == _SEQUENCE_RANK and shape[1] in self._lengths
        if short(op.target) in REDUCTIONS:
            before = sum(size in self._lengths for size in sources[0])
            if before > sum(size in self._lengths for size in shape):
                return False
        return self._has_sequence(shape)

    def collectives(self) -> list[Collective]:
        """What attention and other ops gather; sizes are of the whole sequence.

        Sums of single tokens, means over tokens and counts of tokens are too small to price.
        """
        return [
            Collective(axis="cp", kind=kind, phase=phase, size_bytes=size, op=index)
            for index, found in self.gathered.items()
            for kind, phase, size in (
                ("all_gather", "forward", found.forward),
                ("reduce_scatter", "backward", found.backward),
            )
            if size != Amount()
        ]


@dataclass(slots=True)
class _Flow:
    """Where sequences go.

    Attributes:
        carried: Ops whose result is divided along the sequence.
        stacked: Ops whose result is divided along the rows of a stack of products.
        whole: See :attr:`ContextSplit.whole`.
        gathered: See :attr:`ContextSplit.gathered`.
    """

    carried: set[int] = field(default_factory=set)
    stacked: set[int] = field(default_factory=set)
    whole: set[int] = field(default_factory=set)
    gathered: dict[int, Gathered] = field(default_factory=dict)
