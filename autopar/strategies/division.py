"""What one block computes, keeps, holds and sends on one rank, for any split."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

from autopar.graph import Amount, Block, Op
from autopar.strategies.matmul import Attention, Matmul
from autopar.strategies.parts import scaled, smaller, weighed
from autopar.strategies.split import Split
from autopar.strategies.tensor import Collective
from autopar.strategies.work import BlockWork

if TYPE_CHECKING:
    from autopar.strategies.strategies import Strategies


class Division:
    """Divides the ops of one block.

    Args:
        strategies: What divides the profile the block is of.
        split: Degrees.
        block: The block.
    """

    def __init__(self, strategies: Strategies, split: Split, block: Block) -> None:
        self.s = strategies
        self.split = split
        self.block = block
        self.seen = strategies.block_ops(block)
        self.ops = self.seen.ops

    def work(self) -> BlockWork:
        """The block on one rank."""
        if self.split == Split():
            return self._whole()
        matmuls, attention = self._products()
        shares = {place: self._share_at(*place) for place in set(self.seen.places)}
        parts = [shares[place] for place in self.seen.places]
        streams = [(self.ops[i], parts[i]) for i in self.seen.streams]
        dense, experts = self._parameters()
        whole = self._whole_share()
        work = self._whole()
        collectives = tuple(self._collectives())
        streamed = weighed((op.forward_bytes, share) for op, share in streams)
        saved = self._saved(parts)
        return replace(
            work,
            matmuls=matmuls,
            attention=attention,
            forward_bytes=streamed,
            backward_bytes=weighed((op.backward_bytes, share) for op, share in streams),
            forward_flop_share=self._flop_share(parts),
            parameter_bytes=dense,
            expert_parameter_bytes=experts,
            saved_bytes=saved,
            selective_saved_bytes=self._selective(parts, saved),
            boundary_bytes=scaled(self.block.boundary_bytes, whole),
            peak_transient_bytes=self._largest(parts, collectives),
            logit_bytes=self._logits(parts),
            collectives=collectives,
        )

    def _whole(self) -> BlockWork:
        """The undivided block, the same for every split."""
        known = self.s.undivided
        if self.block.index not in known:
            known[self.block.index] = self._undivided()
        return known[self.block.index]

    def _undivided(self) -> BlockWork:
        block = self.block
        ones = [1.0] * len(self.ops)
        streams = [self.ops[i] for i in self.seen.streams]
        streamed = Amount.total([op.forward_bytes for op in streams])
        experts = sum(
            self.s.profile.parameters[name][1]
            for name in block.parameters
            if name in self.s.expert.parameters
        )
        return BlockWork(
            matmuls=tuple(matmul for _, matmul in self.seen.matmuls),
            attention=tuple(call for _, call in self.seen.attention),
            forward_bytes=streamed,
            backward_bytes=Amount.total([op.backward_bytes for op in streams]),
            forward_flop_share=1.0,
            kernels=block.kernels,
            parameter_bytes=block.parameter_bytes - experts,
            expert_parameter_bytes=float(experts),
            saved_bytes=block.saved_bytes,
            selective_saved_bytes=self._selective(ones, self._saved(ones)),
            boundary_bytes=block.boundary_bytes,
            peak_transient_bytes=block.peak_transient_bytes,
            logit_bytes=self._logits(ones),
            collectives=(),
        )

    def _whole_share(self) -> float:
        """Part of a tensor outside tensor parallel regions."""
        sequence = self.split.tp if self.split.sequence_parallel else 1
        return 1.0 / (self.split.cp * sequence)

    def _cp(self, op: Op) -> int:
        """Context parallel ranks that share the positions of an op."""
        if self.split.cp == 1 or op.index in self.s.context.whole:
            return 1
        return self.split.cp

    def _share_at(self, divided: bool, whole: bool) -> float:
        """Part of an op's output that a rank holds."""
        cp = 1 if whole else self.split.cp
        if self.split.tp > 1 and divided:
            return 1.0 / (self.split.tp * cp)
        sequence = self.split.tp if self.split.sequence_parallel else 1
        return 1.0 / (cp * sequence)

    def _flop_share(self, parts: list[float]) -> float:
        total = self.block.forward_flop.at(self.s.profile.batch)
        if total <= 0:
            return self._whole_share()
        mine = 0.0
        for op, flop, part in zip(self.ops, self.seen.flops, parts, strict=True):
            share = part
            if self.split.tp > 1 and op.index in self.s.tensor.rows:
                share = 1.0 / (self.split.tp * self._cp(op))
            mine += flop * share
        return mine / total

    def _products(self) -> tuple[tuple[Matmul, ...], tuple[Attention, ...]]:
        matmuls = tuple(self._matmul(self.ops[i], matmul) for i, matmul in self.seen.matmuls)
        calls = []
        for i, call in self.seen.attention:
            divided = self.seen.places[i][0]
            share = self._share_at(*self.seen.places[i])
            heads = max(1, call.heads // (self.split.tp if divided else 1))
            calls.append(replace(call, flop=scaled(call.flop, share), heads=heads))
        return matmuls, tuple(calls)

    def _matmul(self, op: Op, matmul: Matmul) -> Matmul:
        split, tensor = self.split, self.s.tensor
        m, n, k, batch = matmul.m, matmul.n, matmul.k, matmul.batch
        rows = 1.0 / self._cp(op)
        if split.tp > 1 and op.index in tensor.rows:
            k /= split.tp
        elif split.tp > 1 and op.index in tensor.divided:
            if matmul.weight:
                n /= split.tp
            else:
                batch = scaled(batch, 1.0 / split.tp)
        elif split.sequence_parallel:
            rows /= split.tp
        if split.ep > 1 and set(op.parameters) & self.s.expert.parameters:
            rows *= split.ep
            batch = Amount(batch.fixed / split.ep, batch.per_sample / split.ep)
        per_sample = m.per_sample if m.per_sample else m.fixed
        m = Amount(0.0, per_sample * rows) if m.per_sample else Amount(m.fixed * rows, 0.0)
        return replace(matmul, m=m, n=n, k=k, batch=batch)

    def _parameters(self) -> tuple[float, float]:
        dense = experts = 0.0
        for name in self.block.parameters:
            count, size = self.s.profile.parameters[name]
            mine = self.s.elements(self.split, name) * size / max(1, count)
            if name in self.s.expert.parameters:
                experts += mine
            else:
                dense += mine
        return dense, experts

    def _selective(self, parts: list[float], saved: Amount) -> Amount:
        """Outputs of products and attention, and what enters the block."""
        kept = [(size, parts[i]) for i, size in self.seen.products]
        outputs = weighed(kept) + scaled(self.block.boundary_bytes, self._whole_share())
        return smaller(outputs + self._gathered, saved)

    def _saved(self, parts: list[float]) -> Amount:
        """Parts of what ops keep for backward, and what attention has gathered for it."""
        own = weighed((op.saved_bytes, share) for op, share in zip(self.ops, parts, strict=True))
        return own + self._gathered

    @cached_property
    def _gathered(self) -> Amount:
        """Keys and values of other context ranks."""
        cp = self.split.cp
        if cp == 1:
            return Amount()
        found = self.s.context.gathered
        return weighed(
            (found[op.index].forward, (1.0 - 1.0 / cp) * self._heads_share(op))
            for op in self.ops
            if op.index in found and found[op.index].kept
        )

    def _heads_share(self, op: Op) -> float:
        """Part of the keys and values of all heads that a rank has."""
        divided = self.split.tp > 1 and op.index in self.s.tensor.divided
        return 1.0 / self.split.tp if divided else 1.0

    def _largest(self, parts: list[float], collectives: tuple[Collective, ...]) -> Amount:
        """Largest op output, or tensor that tensor parallel ranks gather or sum."""
        batch = self.s.profile.batch
        sizes = [(op.output_bytes, share) for op, share in zip(self.ops, parts, strict=True)]
        sizes += [(item.size_bytes, 1.0) for item in collectives if item.axis == "tp"]
        if not sizes:
            return Amount()
        whole = [size.fixed + size.per_sample * share * batch for size, share in sizes]
        return scaled(*sizes[whole.index(max(whole))])

    def _logits(self, parts: list[float]) -> Amount:
        """What losses keep is as large as the scores they read."""
        return weighed((size, parts[i]) for i, size in self.seen.losses)

    def _collectives(self) -> list[Collective]:
        split, found = self.split, []
        for axis, sequence, active in (
            ("tp", split.sequence_parallel, split.tp > 1),
            ("cp", False, split.cp > 1),
            ("ep", False, split.ep > 1),
        ):
            if not active:
                continue
            for op, item in self.seen.collectives[axis, sequence]:
                share = self._collective_share(op, axis)
                found.append(replace(item, size_bytes=scaled(item.size_bytes, share)))
        return found

    def _collective_share(self, op: Op, axis: str) -> float:
        """Part of the whole tensor that the group of the collective holds together."""
        if axis == "cp":
            return self._heads_share(op)
        sequence = self.split.tp if axis == "ep" and self.split.sequence_parallel else 1
        return 1.0 / (self.split.cp * sequence)
