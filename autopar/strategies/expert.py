"""Expert parallelism: each rank holds some experts; tokens travel to theirs and back.

GShard (Lepikhin et al. 2020, arXiv 2006.16668): two all-to-alls forward, two backward. Routing is
taken as balanced, which is what a capacity limit or an auxiliary loss works towards.
"""

from __future__ import annotations

from autopar.graph import Amount, GraphProfile
from autopar.strategies.matmul import BATCHED, Products
from autopar.strategies.tensor import Collective


class ExpertSplit:
    """What expert parallelism does to a profile, for any degree.

    Args:
        products: Products of the profile's ops.
    """

    def __init__(self, products: Products) -> None:
        profile: GraphProfile = products.profile
        self.ops = []
        counts = set()
        for op in profile.ops:
            shape = products.shapes.get(op.index, ())
            matmul = products.matmul(op) if op.target.startswith(BATCHED) else None
            if matmul is not None and matmul.weight and len(shape) == 3:
                stack = round(matmul.batch.fixed)
                if stack > 1:
                    counts.add(stack)
                    self.ops.append((op, matmul))
        self.experts = min(counts, default=0)
        self.parameters = frozenset(name for op, _ in self.ops for name in op.parameters)
        self._products = products

    def why_not(self, ep: int) -> str | None:
        """Why experts cannot be divided over ``ep`` ranks, or ``None``."""
        if ep == 1:
            return None
        if not self.experts:
            return "the model has no experts"
        if self.experts % ep:
            return f"ep={ep} does not divide {self.experts} experts"
        return None

    def collectives(self) -> list[Collective]:
        """Tokens to their experts before the first product of a layer, back after the last.

        A product whose input is whole begins an expert layer; one that reads another expert
        product ends it. Products that read the same tokens (gate and up) share their arrival.
        """
        found = []
        arrived: set[int] = set()
        indices = {op.index for op, _ in self.ops}
        for op, matmul in self.ops:
            item = self._item_bytes(op.index)
            reads_expert = bool(self._ancestors(op.index) & indices)
            sources = set(self._products.inputs[op.index])
            if not reads_expert and sources & arrived:
                continue
            arrived |= sources
            width = matmul.n if reads_expert else matmul.k
            rows = matmul.m.per_sample * matmul.batch.fixed
            size = Amount(0.0, rows * width * item)
            for phase in ("forward", "backward"):
                found.append(
                    Collective(
                        axis="ep", kind="all_to_all", phase=phase, size_bytes=size, op=op.index
                    )
                )
        return found

    def _item_bytes(self, index: int) -> float:
        op = self._products.profile.ops[index]
        shape = self._products.shapes[index]
        count = 1
        for size in shape:
            count *= size
        return op.output_bytes.at(self._products.profile.batch) / count

    def _ancestors(self, index: int) -> set[int]:
        """Ops within a few steps before one: enough to reach the product before it."""
        seen: set[int] = set()
        border = {index}
        for _ in range(STEPS_BETWEEN_PRODUCTS):
            border = {s for i in border for s in self._products.inputs[i]} - seen
            seen |= border
        return seen


STEPS_BETWEEN_PRODUCTS = 6
"""Ops between the two products of an expert: chunk, getitem, activation, product, dropout."""
