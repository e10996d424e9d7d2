"""Lower bounds of a pipeline's simulated time for given stages, from paths of its action lists.

A path comes down the chain of stages with microbatch 0, joins a rank at one of its actions, does
all the rank has left, and may leave it for the chain again with the last microbatch, up to the
rank of the first stage and its remaining actions. Its weight is a bound, whatever the schedule:
each path is counted from the lists themselves. Messages are taken to take no time, and every
stage to wait for the one before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from autopar.schedules import AbstractSchedule, Action

Array = npt.NDArray[np.float64]
NODES = {"forward": 0, "backward": 1, "backward_input": 1, "backward_weight": 2}
"""Node of an action, in units of the stages."""


@dataclass(frozen=True, kw_only=True)
class StagePaths:
    """The paths of one schedule with given numbers.

    Attributes:
        counts: ``[path, node]``: how often a path does a node; nodes are the forwards of all
            stages, then their backwards (or input halves), then their weight halves if split.
    """

    counts: Array

    def seconds(self, durations: Array) -> Array:
        """Weight of the heaviest path.

        Args:
            durations: Seconds by node, ``[..., node]``.
        """
        return np.asarray((durations @ self.counts.T).max(axis=-1))


def stage_paths(
    schedule: AbstractSchedule, ranks: int, stages: int, microbatches: int
) -> StagePaths:
    """Count the paths; as much work as building the action lists and a little more."""
    lists = schedule.actions(ranks, stages, microbatches)
    nodes = (3 if schedule.splits_backward else 2) * stages
    counter = _Counter(lists, stages, nodes, microbatches)
    paths = [
        path
        for rank in range(ranks)
        for path in counter.paths(rank, schedule.stages_of(rank, ranks, stages))
    ]
    return StagePaths(counts=np.unique(np.array(paths, dtype=float), axis=0))


class _Counter:
    """Positions of actions in the lists, and the chain of one microbatch."""

    def __init__(
        self, lists: Sequence[Sequence[Action]], stages: int, nodes: int, microbatches: int
    ) -> None:
        self.stages, self.nodes = stages, nodes
        self.last = microbatches - 1
        self.lists = [[NODES[a.kind] * stages + a.stage for a in actions] for actions in lists]
        self.at = {
            (NODES[a.kind] * stages + a.stage, a.microbatch): (rank, index)
            for rank, actions in enumerate(lists)
            for index, a in enumerate(actions)
        }
        self.chain = [*range(stages), *reversed(range(stages, 2 * stages))]
        self.place = {node: index for index, node in enumerate(self.chain)}

    def paths(self, rank: int, own: Sequence[int]) -> list[Array]:
        """All ways to join the rank and to leave it."""
        joins = [node for stage in own for node in (stage, self.stages + stage)]
        leaves = [self.stages + stage for stage in own]
        found = []
        for join in joins:
            start = self.at[join, 0][1]
            before = self._times(self.chain[: self.place[join]])
            found.append(before + self._times(self.lists[rank][start:]))
            for leave in leaves:
                stop = self.at[leave, self.last][1]
                if stop >= start:
                    between = self._times(self.lists[rank][start : stop + 1])
                    found.append(before + between + self._way_out(leave))
        return found

    def _way_out(self, node: int) -> Array:
        """From a node of the last microbatch up the chain, then the first stage's rank."""
        rank, index = self.at[self.chain[-1], self.last]
        after = self._times(self.chain[self.place[node] + 1 :])
        return after + self._times(self.lists[rank][index + 1 :])

    def _times(self, nodes: Sequence[int]) -> Array:
        return np.bincount(np.array(nodes, dtype=np.intp), minlength=self.nodes).astype(float)
