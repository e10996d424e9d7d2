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
        "looped_bfs": Entry(
            "autopar.schedules.looped_bfs:LOOPED_BFS",
            "GPipe over several stages per rank, breadth first; keeps all microbatches",
        ),
        "zero_bubble": Entry(
            "autopar.schedules.zero_bubble:ZERO_BUBBLE",
            "1F1B that leaves weight gradients for the bubble (ZB-H1)",
        ),
        "interleaved_zb": Entry(
            "autopar.schedules.zero_bubble:INTERLEAVED_ZERO_BUBBLE",
            "interleaved 1F1B that leaves weight gradients for the bubble",
        ),
        "zbv": Entry(
            "autopar.schedules.zbv:ZBV_SCHEDULE",
            "two stages per rank in a V, weight gradients fill the bubble",
        ),
        "dualpipev": Entry(
            "autopar.schedules.dualpipev:DUAL_PIPE_V",
            "two stages per rank in a V, forward and backward of both alternate",
        ),
    },
)

__all__ = ["SCHEDULES", "AbstractSchedule", "Action"]
