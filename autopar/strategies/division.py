"""What one block computes, keeps, holds and sends on one rank, for any split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

from autopar.graph import Amount, Block, Op
from autopar.strategies.matmul import Attention, Matmul
from autopar.strategies.parts import Place, PlaceSums, scaled, smaller, weighed
from autopar.strategies.split import Split
from autopar.strategies.tensor import Collective
from autopar.strategies.work import BlockWork

if TYPE_CHECKING:
    from autopar.strategies.strategies import Strategies

Shares = dict[Place, float]
"""Part of an op's output that a rank holds, by the place of the op."""


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
        shares = {place: self._share_at(place) for place in self.seen.sums}
        matmuls, attention = self._products(shares)
        dense, experts = self._parameters()
        whole = self._whole()
        collectives = tuple(self._collectives())
        saved = self._saved(shares)
        return BlockWork(
            matmuls=matmuls,
            attention=attention,
            forward_bytes=self._sum(shares, lambda sums: sums.forward_bytes),
            backward_bytes=self._sum(shares, lambda sums: sums.backward_bytes),
            autocast_forward_bytes=self._sum(shares, lambda sums: sums.autocast_forward_bytes),
            autocast_backward_bytes=self._sum(shares, lambda sums: sums.autocast_backward_bytes),
            autocast_kernels=whole.autocast_kernels,
            cast_elements=self._cast_elements(self.split),
            forward_flop_share=self._flop_share(shares),
            kernels=whole.kernels,
            parameter_bytes=dense,
            expert_parameter_bytes=experts,
            saved_bytes=saved,
            selective_saved_bytes=self._selective(shares, saved),
            boundary_bytes=scaled(self.block.boundary_bytes, self._whole_share()),
            peak_transient_bytes=self._largest(shares, collectives),
            logit_bytes=self._sum(shares, lambda sums: sums.loss_bytes),
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
        ones = dict.fromkeys(self.seen.sums, 1.0)
        experts = sum(
            self.s.profile.parameters[name][1]
            for name in block.parameters
            if name in self.s.expert.parameters
        )
        return BlockWork(
            matmuls=tuple(matmul for _, matmul in self.seen.matmuls),
            attention=tuple(call for _, call in self.seen.attention),
            forward_bytes=self._sum(ones, lambda sums: sums.forward_bytes),
            backward_bytes=self._sum(ones, lambda sums: sums.backward_bytes),
            autocast_forward_bytes=self._sum(ones, lambda sums: sums.autocast_forward_bytes),
            autocast_backward_bytes=self._sum(ones, lambda sums: sums.autocast_backward_bytes),
            autocast_kernels=block.kernels + self.seen.casts + len(self.seen.weights),
            cast_elements=self._cast_elements(Split()),
            forward_flop_share=1.0,
            kernels=block.kernels,
            parameter_bytes=block.parameter_bytes - experts,
            expert_parameter_bytes=float(experts),
            saved_bytes=block.saved_bytes,
            selective_saved_bytes=self._selective(ones, self._saved(ones)),
            boundary_bytes=block.boundary_bytes,
            peak_transient_bytes=block.peak_transient_bytes,
            logit_bytes=self._sum(ones, lambda sums: sums.loss_bytes),
            collectives=(),
        )

    def _whole_share(self) -> float:
        """Part of a tensor outside tensor parallel regions."""
        sequence = self.split.tp if self.split.sequence_parallel else 1
        return 1.0 / (self.split.cp * sequence)

    def _sum(self, shares: Shares, fact: Callable[[PlaceSums], Amount]) -> Amount:
        """Sum over the ops, of which a rank has a part each."""
        return weighed((fact(self.seen.sums[place]), share) for place, share in shares.items())

    def _cast_elements(self, split: Split) -> float:
        """Elements of the weights of products."""
        return sum(self.s.elements(split, name) for name in self.seen.weights)

    def _cp(self, place: Place) -> int:
        """Context parallel ranks that share the positions of an op."""
        return 1 if place.whole else self.split.cp

    def _share_at(self, place: Place) -> float:
        """Part of an op's output that a rank holds."""
        cp = self._cp(place)
        if self.split.tp > 1 and place.divided:
            return 1.0 / (self.split.tp * cp)
        sequence = self.split.tp if self.split.sequence_parallel else 1
        return 1.0 / (cp * sequence)

    def _flop_share(self, shares: Shares) -> float:
        total = self.block.forward_flop.at(self.s.profile.batch)
        if total <= 0:
            return self._whole_share()
        mine = 0.0
        for place, share in shares.items():
            divided = self.split.tp > 1 and place.row
            part = 1.0 / (self.split.tp * self._cp(place)) if divided else share
            mine += self.seen.sums[place].flop * part
        return mine / total

    def _products(self, shares: Shares) -> tuple[tuple[Matmul, ...], tuple[Attention, ...]]:
        places = self.seen.places
        matmuls = tuple(
            self._matmul(self.ops[i], matmul, places[i]) for i, matmul in self.seen.matmuls
        )
        calls = []
        for i, call in self.seen.attention:
            heads = max(1, call.heads // (self.split.tp if places[i].divided else 1))
            calls.append(replace(call, flop=scaled(call.flop, shares[places[i]]), heads=heads))
        return matmuls, tuple(calls)

    def _matmul(self, op: Op, matmul: Matmul, place: Place) -> Matmul:
        split = self.split
        m, n, k, batch = matmul.m, matmul.n, matmul.k, matmul.batch
        rows = 1.0 / self._cp(place)
        if split.tp > 1 and place.row:
            k /= split.tp
        elif split.tp > 1 and place.divided:
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
        return Matmul(m=m, n=n, k=k, batch=batch, weight=matmul.weight, grouped=matmul.grouped)

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

    def _selective(self, shares: Shares, saved: Amount) -> Amount:
        """Outputs of products and attention, and what enters the block."""
        products = self._sum(shares, lambda sums: sums.product_bytes)
        outputs = products + scaled(self.block.boundary_bytes, self._whole_share())
        return smaller(outputs + self._gathered, saved)

    def _saved(self, shares: Shares) -> Amount:
        """Parts of what ops keep for backward, and what attention has gathered for it."""
        return self._sum(shares, lambda sums: sums.saved_bytes) + self._gathered

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

    def _largest(self, shares: Shares, collectives: tuple[Collective, ...]) -> Amount:
        """Largest op output, or tensor that tensor parallel ranks gather or sum."""
        batch, places = self.s.profile.batch, self.seen.places
        parts = [(op.output_bytes, shares[p]) for op, p in zip(self.ops, places, strict=True)]
        parts += [(item.size_bytes, 1.0) for item in collectives if item.axis == "tp"]
        if not parts:
            return Amount()
        sizes = [size.fixed + size.per_sample * share * batch for size, share in parts]
        return scaled(*parts[sizes.index(max(sizes))])

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
                found.append(item.of(scaled(item.size_bytes, share)))
        return found

    def _collective_share(self, op: Op, axis: str) -> float:
        """Part of the whole tensor that the group of the collective holds together."""
        if axis == "cp":
            return self._heads_share(op)
        sequence = self.split.tp if axis == "ep" and self.split.sequence_parallel else 1
        return 1.0 / (self.split.cp * sequence)
