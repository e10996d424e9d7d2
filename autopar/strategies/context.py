"""Context parallelism: each rank holds a part of every sequence; keys and values go round.

Ring attention (Liu et al. 2023, arXiv 2310.01889): the other ranks' keys and values pass by in
forward; in backward they pass again together with their gradients.
"""

from __future__ import annotations

from autopar.graph import GraphProfile
from autopar.strategies.matmul import Products
from autopar.strategies.tensor import Collective

BACKWARD_ROUNDS = 2
"""Keys and values once more, and their gradients."""


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

    def why_not(self, cp: int) -> str | None:
        """Why sequences cannot be divided over ``cp`` ranks, or ``None``."""
        if cp == 1:
            return None
        if not self.calls:
            return "the model has no attention over a sequence to divide"
        lengths = {length for _, call in self.calls for length in (call.query, call.key)}
        for length in sorted(lengths):
            if length % (2 * cp):
                return f"cp={cp} needs sequences of a multiple of {2 * cp}, one has {length}"
        return None

    def collectives(self) -> list[Collective]:
        """Keys and values of all attention calls; sizes are of the whole sequence."""
        found = []
        for op, call in self.calls:
            found.append(
                Collective(
                    axis="cp",
                    kind="all_gather",
                    phase="forward",
                    size_bytes=call.key_bytes,
                    op=op.index,
                )
            )
            found += [
                Collective(
                    axis="cp",
                    kind="all_gather",
                    phase="backward",
                    size_bytes=call.key_bytes,
                    op=op.index,
                )
            ] * BACKWARD_ROUNDS
        return found
