"""Pipeline schedules: the action list per rank, simulated by cost and run by the executor."""

from autopar.core.registry import Entry, Registry
from autopar.schedules.base import AbstractSchedule, Action

SCHEDULES: Registry[AbstractSchedule] = Registry(
    "schedule",
    {
        "none": Entry("autopar.schedules.none:NONE", "one rank per replica, no pipeline"),
        "gpipe": Entry("autopar.schedules.gpipe:GPIPE", "all forwards, then all backwards"),
        "1f1b": Entry(
            "autopar.schedules.one_f_one_b:ONE_F_ONE_B",
            "one forward, one backward; keeps at most pp microbatches",
        ),
        "interleaved": Entry(
            "autopar.schedules.interleaved:INTERLEAVED",
            "1F1B over several stages per rank; smaller bubble, more communication",
        ),
    },
)

__all__ = ["SCHEDULES", "AbstractSchedule", "Action"]
