"""Sets of objective vectors, all to be minimised: who dominates whom, and how much they cover."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float64]
"""``[vector, objective]``."""
_EQUAL = 1e-9
"""Relative difference below which two values count as equal."""


def covered(vectors: Vectors, front: Vectors) -> npt.NDArray[np.bool_]:
    """Which vectors some vector of a front equals or beats in every objective."""
    if not len(front):
        return np.zeros(len(vectors), dtype=bool)
    found = np.zeros(len(vectors), dtype=bool)
    for row in front:
        found |= (row <= vectors + np.abs(vectors) * _EQUAL).all(axis=1)
    return found


def undominated(vectors: Vectors) -> list[int]:
    """Indices of the vectors that no other one covers, by the first objective; of equals one."""
    kept: list[int] = []
    left = np.arange(len(vectors))
    scale = np.abs(vectors).mean(axis=0) if len(vectors) else np.ones(1)
    sums = (vectors / np.where(scale > 0, scale, 1.0)).sum(axis=1)
    while len(left):
        best = left[sums[left].argmin()]  # nothing that is left can beat the least sum
        kept.append(int(best))
        left = left[(left != best) & ~covered(vectors[left], vectors[best : best + 1])]
    return sorted(kept, key=lambda index: tuple(vectors[index]))


def hypervolume(vectors: Vectors, reference: npt.NDArray[np.float64]) -> float:
    """Volume between a reference and the vectors that beat it (Zitzler and Thiele 1998).

    Sliced along the last objective: between two of its values the cross section is the volume in
    one dimension less of the vectors up to the lower one.
    """
    inside = vectors[(vectors < reference).all(axis=1)]
    if not len(inside):
        return 0.0
    if vectors.shape[1] == 1:
        return float(reference[0] - inside[:, 0].min())
    ordered = inside[np.argsort(inside[:, -1], kind="stable")]
    ends = np.append(ordered[1:, -1], reference[-1])
    total = 0.0
    for count, (start, end) in enumerate(zip(ordered[:, -1], ends, strict=True), start=1):
        if end > start:
            total += float(end - start) * hypervolume(ordered[:count, :-1], reference[:-1])
    return total


def knee(vectors: Vectors) -> int:
    """The vector nearest to the best value of every objective at once.

    Distances are Euclidean, each objective scaled to 0 at its best and 1 at its worst value.
    """
    low, high = vectors.min(axis=0), vectors.max(axis=0)
    scaled = (vectors - low) / np.where(high > low, high - low, 1.0)
    return int(np.square(scaled).sum(axis=1).argmin())
