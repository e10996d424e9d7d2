"""Tasks to graph profiles, and machines to measured clusters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autopar.profiler.profile import ProfileOutcome, count_task, profile_task

__all__ = ["ProfileOutcome", "count_task", "profile_task"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from autopar.profiler import profile

        return getattr(profile, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
