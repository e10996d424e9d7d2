"""Points that several workers price together through one stored study.

A worker claims a point by adding a running trial with a heartbeat, solves it and finishes the
trial. The others leave a claimed point for later and take over what a finished trial says. A
claim whose heartbeat stopped is ignored. Should two workers price the same point, by a race or
because clocks of hosts differ by more than the grace period, work is lost but no result changes.
"""

from __future__ import annotations

import math
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from autopar.cost.layout import Cuts
from autopar.cost.work import Levels
from autopar.search.space.point import PARAMETERS, Point
from autopar.search.stages.partition import Solution

GRACE_S = 20.0
"""Age of the last heartbeat after which a worker is taken for dead."""
BEAT_S = 4.0
"""Time between heartbeats."""
ENDED = (TrialState.COMPLETE, TrialState.PRUNED)


@dataclass(frozen=True, kw_only=True)
class Finished:
    """What a finished trial says about a point.

    Attributes:
        point: The choices.
        cuts: Best boundaries; ``None`` when none was better than the best its worker knew.
        value: Their objective, infinite without boundaries.
        bound: No plan of the point has a smaller objective; infinite when none fits.
        levels: Recompute level of every block, where the point left it open.
    """

    point: Point
    cuts: Cuts | None
    value: float
    bound: float
    levels: Levels | None


@dataclass(kw_only=True)
class SharedPoints:
    """One worker's view of a study.

    Attributes:
        study: The stored study.
        distributions: Values of each axis.
        worker: Name of this worker; claims carry it.
        numbers: Point -> number of the trial that priced it.
    """

    study: optuna.Study
    distributions: dict[str, BaseDistribution]
    worker: str = field(default_factory=lambda: uuid.uuid4().hex)
    numbers: dict[Point, int] = field(default_factory=dict)
    _read: set[int] = field(default_factory=set)

    def absorb(self) -> list[Finished]:
        """What other workers finished since the last call, in the order of trial numbers."""
        result = []
        for trial in self._trials(*ENDED):
            if trial.number in self._read:
                continue
            self._read.add(trial.number)
            point = _point(trial)
            if point is None:
                continue
            if trial.state == TrialState.COMPLETE:
                self.numbers.setdefault(point, trial.number)
            if "found" in trial.user_attrs:
                result.append(_finished(point, trial))
        return result

    def claim(self, point: Point) -> int | None:
        """Number of the running trial that stands for a point.

        ``None`` if another worker has it, or finished it since the last :meth:`absorb`. Of two
        workers that claim at the same moment the one with the lower number has it.
        """
        if self._others(point, before=math.inf) or self._just_finished(point):
            return None
        mine = self._add(point, TrialState.RUNNING, heartbeat=time.time())
        if self._others(point, before=mine) or self._just_finished(point):
            self.study.tell(mine, state=TrialState.FAIL)
            return None
        return mine

    def add(self, point: Point, value: float, **attributes: Any) -> int:
        """Write a priced point that needed no claim, in one append; returns its number."""
        number = self._add(point, TrialState.COMPLETE, value, **attributes)
        self._read.add(number)
        self.numbers[point] = number
        return number

    def _add(
        self, point: Point, state: TrialState, value: float | None = None, **attributes: Any
    ) -> int:
        self.study.add_trial(
            create_trial(
                state=state,
                value=value,
                params=point.params(),
                distributions=self.distributions,
                user_attrs={"worker": self.worker, **attributes},
            )
        )
        return max(
            int(trial.number)
            for trial in self._trials(state)
            if trial.user_attrs.get("worker") == self.worker
        )

    def finish(self, number: int, point: Point, found: Solution, plan: str | None) -> None:
        """End a claimed trial with what was found and the name of its plan."""
        result = {
            "bound": found.bound if math.isfinite(found.bound) else None,
            "cuts": None if found.cuts is None else list(found.cuts),
            "levels": None if found.levels is None else list(found.levels),
        }
        self._note(number, "found", result)
        self._read.add(number)
        if found.cuts is None:
            self.study.tell(number, state=TrialState.PRUNED)
            return
        self._note(number, "plan", plan)
        self.study.tell(number, found.value)
        self.numbers[point] = number

    @contextmanager
    def beating(self, number: int) -> Iterator[None]:
        """Renew the heartbeat of a claimed trial while the block runs."""
        done = threading.Event()

        def beat() -> None:
            while not done.wait(BEAT_S):
                self._note(number, "heartbeat", time.time())

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _others(self, point: Point, before: float) -> bool:
        """True when a living worker claimed the point, with a number below ``before``."""
        now = time.time()
        return any(
            trial.number < before
            and trial.user_attrs.get("worker") != self.worker
            and abs(now - float(trial.user_attrs.get("heartbeat", -math.inf))) <= GRACE_S
            and _point(trial) == point
            for trial in self._trials(TrialState.RUNNING)
        )

    def _just_finished(self, point: Point) -> bool:
        """True when an end of the point waits to be absorbed."""
        return any(
            trial.number not in self._read and _point(trial) == point
            for trial in self._trials(*ENDED)
        )

    def _trials(self, *states: TrialState) -> list[FrozenTrial]:
        trials: list[FrozenTrial] = self.study.get_trials(deepcopy=False, states=states)
        return trials

    def _note(self, number: int, name: str, value: Any) -> None:
        """A user attribute of a trial that was not made by ``ask``."""
        storage = self.study._storage
        trial = storage.get_trial_id_from_study_id_trial_number(self.study._study_id, number)
        storage.set_trial_user_attr(trial, name, value)


def _point(trial: FrozenTrial) -> Point | None:
    """The point of a trial, ``None`` for one that stopped before it had all its parameters."""
    if any(name not in trial.params for name in PARAMETERS):
        return None
    return Point(**{name: trial.params[name] for name in PARAMETERS})


def _finished(point: Point, trial: FrozenTrial) -> Finished:
    found = trial.user_attrs["found"]
    levels, bound = found["levels"], found["bound"]
    return Finished(
        point=point,
        cuts=None if found["cuts"] is None else tuple(found["cuts"]),
        value=math.inf if found["cuts"] is None else float(trial.value),
        bound=math.inf if bound is None else bound,
        levels=None if levels is None else tuple(levels),
    )
