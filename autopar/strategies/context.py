"""Context parallelism: each rank holds a part of every sequence, attention gathers the keys.

Before attention the ranks gather all keys and values; backward scatters the sums of their
gradients, as in Llama 3 (Grattafiori et al. 2024, arXiv 2407.21783, section 3.3.2). Queries stay,
and everything else works on each position alone. An op that mixes positions in another way keeps
a model from being divided so.
"""

from __future__ import annotations

from functools import cached_property

from autopar.graph import GraphProfile, Op
from autopar.strategies.matmul import Products
from autopar.strategies.tensor import Collective, short

_MIXING_NAMES = """
cumsum cumprod cummax cummin logcumsumexp flip roll sort argsort unfold as_strided scatter
conv1d conv2d conv3d convolution conv_transpose1d conv_transpose2d conv_transpose3d
batch_norm native_batch_norm _native_batch_norm_legit instance_norm group_norm
max_pool1d max_pool2d avg_pool1d avg_pool2d adaptive_avg_pool1d adaptive_avg_pool2d
lstm gru rnn_tanh rnn_relu fft_fft fft_rfft fft_fft2 fft_irfft
"""
MIXING = frozenset(_MIXING_NAMES.split())
"""Ops that read several positions to make one."""
REDUCTIONS = frozenset({"select", "mean", "sum"})
"""Ops whose result over the sequence the ranks make with one small sum."""
PRODUCTS = frozenset({"matmul", "bmm", "baddbmm"})
_SEQUENCE_RANK = 3


class ContextSplit:
    """What context parallelism does to a profile, for any degree.

    Args:
        products: Products of the profile's ops.
    """

    def __init__(self, products: Products) -> None:
        profile: GraphProfile = products.profile
        found = [(op, products.attention(op)) for op in profile.ops]
        self.calls = [(op, call) for op, call in found if call is not None]
        self.length = min((call.query for _, call in self.calls), default=0)
        self._lengths = {n for _, call in self.calls for n in (call.query, call.key)}
        self._products = products

    def why_not(self, cp: int) -> str | None:
        """Why sequences cannot be divided over ``cp`` ranks, or ``None``."""
        if cp == 1:
            return None
        if not self.calls:
            return "the model has no attention over a sequence to divide"
        for length in sorted(self._lengths):
            if length % (2 * cp):
                return f"cp={cp} needs sequences of a multiple of {2 * cp}, one has {length}"
        return self._mixed

    @cached_property
    def _mixed(self) -> str | None:
        """Why an op cannot work on a part of the sequence, ``None`` when all can.

        Follows the sequence from where a value first has it as its second dimension. The profile
        tells shapes, not arguments, so that a name may refuse an op that runs along another
        dimension (a cumulative sum over features).
        """
        inputs = self._products.inputs
        carried: set[int] = set()
        for op in self._products.profile.ops:
            shape = self._products.shapes.get(op.index)
            if op.replicated or shape is None:
                continue
            sources = [i for i in inputs[op.index] if i in carried]
            if any(self._mixes(op, self._products.shapes[i], shape) for i in sources):
                return (
                    f"op '{op.name}' ({short(op.target)}) mixes positions of the sequence, which "
                    "context parallel ranks divide"
                )
            if self._carries(op, [self._products.shapes[i] for i in sources], shape):
                carried.add(op.index)
        return None

    def _mixes(self, op: Op, source: tuple[int, ...], shape: tuple[int, ...]) -> bool:
        name = short(op.target)
        if name in PRODUCTS and not op.parameters:
            return len(shape) > 1 and shape[-1] in self._lengths and shape[-2] in self._lengths
        if name == "slice":
            changed = [d for d, size in enumerate(source) if size != shape[d]]
            features = max(1, len(source) - 1)
            return any(d < features and source[d] in self._lengths for d in changed)
        return name in MIXING

    def _carries(self, op: Op, sources: list[tuple[int, ...]], shape: tuple[int, ...]) -> bool:
        if not sources:
            return len(shape) == _SEQUENCE_RANK and shape[1] in self._lengths
        if short(op.target) in REDUCTIONS:
            before = sum(size in self._lengths for size in sources[0])
            if before > sum(size in self._lengths for size in shape):
                return False
        return any(size % length == 0 for size in shape for length in self._lengths)

    def collectives(self) -> list[Collective]:
        """Keys and values of all attention calls; sizes are of the whole sequence.

        Sums of single tokens, means over tokens and counts of tokens are too small to price.
        """
        return [
            Collective(axis="cp", kind=kind, phase=phase, size_bytes=call.key_bytes, op=op.index)
            for op, call in self.calls
            for kind, phase in (("all_gather", "forward"), ("reduce_scatter", "backward"))
        ]
