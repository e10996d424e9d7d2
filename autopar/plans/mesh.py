"""Mesh degrees and the rank <-> coordinate map."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import product

from autopar.core.errors import InputError

AXES = ("pp", "dp_replicate", "dp_shard", "cp", "tp")
"""Axes from slowest to fastest varying rank; ``ep`` reuses the data axes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mesh:
    """Degrees of parallelism, in torchtitan's words.

    Attributes:
        dp_replicate: Replicas that all-reduce gradients.
        dp_shard: Ranks that shard parameters, gradients or optimizer state.
        cp: Context parallel ranks.
        tp: Tensor parallel ranks.
        pp: Pipeline ranks.
        ep: Expert parallel ranks, a divisor of the data ranks.

    Raises:
        InputError: A degree is not a positive integer.
    """

    dp_replicate: int = 1
    dp_shard: int = 1
    cp: int = 1
    tp: int = 1
    pp: int = 1
    ep: int = 1

    def __post_init__(self) -> None:
        for axis in (*AXES, "ep"):
            degree = getattr(self, axis)
            if isinstance(degree, bool) or not isinstance(degree, int) or degree < 1:
                raise InputError(
                    f"mesh degree {axis}={degree!r} is not a positive whole number",
                    hint=f"set {axis} to 1 or more",
                )

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.dp_replicate * self.dp_shard * self.cp * self.tp * self.pp

    @property
    def replicas(self) -> int:
        """Ranks that see different samples: dp_replicate x dp_shard."""
        return self.dp_replicate * self.dp_shard

    def coordinates(self, rank: int) -> dict[str, int]:
        """Axis -> coordinate of a rank; ``tp`` varies fastest, ``pp`` slowest."""
        result = {}
        for axis in reversed(AXES):
            degree = getattr(self, axis)
            result[axis] = rank % degree
            rank //= degree
        return result

    def rank(self, **coordinates: int) -> int:
        """Rank at the given coordinates; an axis left out is 0."""
        rank = 0
        for axis in AXES:
            rank = rank * getattr(self, axis) + coordinates.get(axis, 0)
        return rank

    def group(self, *axes: str, rank: int) -> tuple[int, ...]:
        """Ranks that differ from ``rank`` along some axes only, ``rank`` included, in order."""
        coordinates = self.coordinates(rank)
        choices = [
            {**coordinates, **dict(zip(axes, values, strict=True))}
            for values in product(*(range(int(getattr(self, axis))) for axis in axes))
        ]
        return tuple(sorted(self.rank(**choice) for choice in choices))

    def to_dict(self) -> dict[str, int]:
        """Degrees by axis."""
        return asdict(self)

    def fits(self, axes: tuple[str, ...]) -> bool:
        """True when every axis outside ``axes`` has degree 1."""
        return all(getattr(self, axis) == 1 for axis in (*AXES, "ep") if axis not in axes)
