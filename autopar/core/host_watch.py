"""How busy other programs keep this host while something is measured."""

from __future__ import annotations

import os
import time

NOTEWORTHY = 0.1
"""Share of the processors above which a measurement is said to be disturbed: an idle host with its
daemons stays below a tenth of that, one other process that computes on 8 processors is above."""


class HostWatch:
    """Counts, from its making on, what others took of the processors this process may use.

    All time the kernel counts as busy (stolen by a hypervisor included), minus that of this
    process and of its children that ended and were waited for.

    Limits: where a container sees the counts of a whole host, processors outside its quota count
    too; children that were not waited for count as others.
    """

    def __init__(self) -> None:
        self._started_s = time.monotonic()
        self._busy_s = _busy_s()
        self._own_s = _own_s()

    def others(self) -> float | None:
        """Share of the processors' time that others took, 0 to 1; ``None`` where unknown."""
        busy_s, elapsed_s = _busy_s(), time.monotonic() - self._started_s
        if busy_s is None or self._busy_s is None or elapsed_s <= 0:
            return None
        taken_s = busy_s - self._busy_s - (_own_s() - self._own_s)
        return round(min(max(taken_s / (elapsed_s * len(_processors())), 0.0), 1.0), 3)


def quiet_again(others: float | None, seconds: float = 0.3) -> bool:
    """Whether a disturbed measurement could be made better now, as the others have gone.

    Args:
        others: Share that others took then; where little or unknown nothing is looked at.
        seconds: How long to look.
    """
    if others is None or others < NOTEWORTHY:
        return False
    watch = HostWatch()
    time.sleep(seconds)
    now = watch.others()
    return now is not None and now < NOTEWORTHY


def disturbed(what: str, others: float | None) -> str | None:
    """A sentence on a measurement beside other programs; ``None`` when they took little.

    Args:
        what: What was measured, the start of the sentence.
        others: Share of the processors that others took, as :meth:`HostWatch.others` gives it.
    """
    if others is None or others < NOTEWORTHY:
        return None
    return (
        f"{what} was measured while other programs took {others:.0%} of this host's processors: "
        "measure again when it is idle"
    )


def _processors() -> set[int]:
    affinity = getattr(os, "sched_getaffinity", None)
    return affinity(0) if affinity else set(range(os.cpu_count() or 1))


def _busy_s() -> float | None:
    """Seconds the usable processors were busy since the host started."""
    import psutil

    every = psutil.cpu_times(percpu=True)
    rows = [every[number] for number in _processors() if number < len(every)]
    if not rows:
        return None
    idle = ("idle", "iowait", "guest", "guest_nice")  # guests are counted in user time already
    return sum(sum(v for k, v in row._asdict().items() if k not in idle) for row in rows)


def _own_s() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
