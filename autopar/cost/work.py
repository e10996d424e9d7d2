"""What each block computes, holds and sends on one rank once it is divided."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from autopar.graph import Amount, GraphProfile
from autopar.strategies import BlockWork, Split, Strategies

Vector = npt.NDArray[np.float64]
NONE, SELECTIVE, FULL = 0, 1, 2
"""Recompute levels of a block."""
Levels = tuple[int, ...]
"""Recompute level of every block."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """Collectives of one kind over one axis inside the different blocks, as arrays.

    Attributes:
        kind: ``all_reduce``, ``all_gather``, ``reduce_scatter`` or ``all_to_all``.
        axis: Mesh axis whose ranks take part.
        places: Place of each among all collectives.
        fixed: Bytes of each, as profiled.
        per_sample: The same for each sample.
    """

    kind: str
    axis: str
    places: npt.NDArray[np.intp]
    fixed: Vector
    per_sample: Vector


@dataclass(frozen=True, kw_only=True)
class StageWork:
    """The blocks of a profile under one :class:`Split`, as arrays over the blocks.

    Attributes:
        strategies: Divides the blocks of the profile.
        split: How work inside a stage is divided.
    """

    strategies: Strategies
    split: Split

    @property
    def profile(self) -> GraphProfile:
        """What is trained."""
        return self.strategies.profile

    @cached_property
    def works(self) -> tuple[BlockWork, ...]:
        """One entry per block; blocks that are alike share theirs."""
        return self.strategies.works(self.split)

    @cached_property
    def unique(self) -> tuple[BlockWork, ...]:
        """The different entries of :attr:`works`, in the order they first occur."""
        return tuple({id(work): work for work in self.works}.values())

    @cached_property
    def places(self) -> npt.NDArray[np.intp]:
        """Place of every block's entry among :attr:`unique`."""
        numbers = {id(work): number for number, work in enumerate(self.unique)}
        return np.array([numbers[id(work)] for work in self.works], dtype=np.intp)

    @cached_property
    def sent(self) -> tuple[Sent, ...]:
        """Collectives inside the blocks of :attr:`unique`, by kind and axis."""
        items = [item for block in self.unique for item in block.collectives]
        alike: dict[tuple[str, str], list[int]] = {}
        for place, item in enumerate(items):
            alike.setdefault((item.kind, item.axis), []).append(place)
        return tuple(
            Sent(
                kind=kind,
                axis=axis,
                places=np.array(places, dtype=np.intp),
                fixed=np.array([items[i].size_bytes.fixed for i in places]),
                per_sample=np.array([items[i].size_bytes.per_sample for i in places]),
            )
            for (kind, axis), places in alike.items()
        )

    @cached_property
    def sent_by(self) -> npt.NDArray[np.intp]:
        """What waits for each collective: a place among :attr:`unique`, backwards after them."""
        count = len(self.unique)
        return np.array(
            [
                number + (count if item.phase == "backward" else 0)
                for number, block in enumerate(self.unique)
                for item in block.collectives
            ],
            dtype=np.intp,
        )

    @property
    def item_bytes(self) -> float:
        """Bytes of a parameter element in the profile."""
        return self.strategies.item_bytes

    @property
    def edge_share(self) -> float:
        """Part of a tensor between blocks that a rank holds."""
        sequence = self.split.tp if self.split.sequence_parallel else 1
        return 1.0 / (self.split.cp * sequence)

    @cached_property
    def parameters(self) -> Vector:
        """Parameter elements on a rank per block, experts left out."""
        return np.array([w.parameter_bytes for w in self.works]) / self.item_bytes

    @cached_property
    def cast_elements(self) -> Vector:
        """Weights of products on a rank per block."""
        return np.array([w.cast_elements for w in self.works])

    @cached_property
    def experts(self) -> Vector:
        """Expert parameter elements on a rank per block."""
        return np.array([w.expert_parameter_bytes for w in self.works]) / self.item_bytes

    def elements_of(self, parameter: str) -> float:
        """Elements of a parameter on a rank."""
        return self.strategies.elements(self.split, parameter)

    @cached_property
    def _kept(self) -> tuple[Vector, Vector]:
        """Fixed and per-sample bytes kept, ``[level, block]``."""
        rows = (
            [w.saved_bytes for w in self.works],
            [w.selective_saved_bytes for w in self.works],
            [w.boundary_bytes for w in self.works],
        )
        fixed = np.array([[a.fixed for a in row] for row in rows])
        return fixed, np.array([[a.per_sample for a in row] for row in rows])

    def kept(self, levels: Levels, samples: float) -> Vector:
        """Bytes that each block keeps per microbatch, as profiled."""
        fixed, per_sample = self._kept
        rows, columns = np.asarray(levels), np.arange(len(levels))
        return np.asarray(fixed[rows, columns] + per_sample[rows, columns] * samples)

    def at_level(self, level: int, samples: float | Vector) -> Vector:
        """:meth:`kept` when every block has one level."""
        fixed, per_sample = self._kept
        return np.asarray(fixed[level] + per_sample[level] * samples)

    def at_levels(self, samples: Vector) -> npt.NDArray[np.float64]:
        """:meth:`at_level` of every level and of a column of sizes ``[level, size, block]``."""
        fixed, per_sample = self._kept
        return np.asarray(fixed[:, None] + per_sample[:, None] * samples)

    @cached_property
    def _transient(self) -> tuple[Vector, Vector]:
        return _affine([w.peak_transient_bytes for w in self.works])

    def transient(self, samples: float) -> Vector:
        """Largest op output of each block, as profiled."""
        fixed, per_sample = self._transient
        return np.asarray(fixed + per_sample * samples)

    @cached_property
    def _logits(self) -> tuple[Vector, Vector]:
        return _affine([w.logit_bytes for w in self.works])

    def logits(self, samples: float) -> Vector:
        """Class scores that each block's losses read, as profiled."""
        fixed, per_sample = self._logits
        return np.asarray(fixed + per_sample * samples)


def _affine(amounts: Sequence[Amount]) -> tuple[Vector, Vector]:
    return np.array([a.fixed for a in amounts]), np.array([a.per_sample for a in amounts])
