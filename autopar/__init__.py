"""autopar: profile, plan, run and explain distributed PyTorch training.

The Python API uses the words of the command line; names are imported on first use, so that
``import autopar`` costs nothing and never imports torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from autopar.core.version import __version__

if TYPE_CHECKING:
    from autopar.api import (
        bench,
        choose_machines,
        export,
        measure_cluster,
        parallelize,
        plan,
        profile,
        report,
        run,
    )
    from autopar.cluster import Cluster
    from autopar.core.errors import AutoparError
    from autopar.core.estimate import Estimate
    from autopar.graph import GraphProfile
    from autopar.plans import Plan
    from autopar.results import RunRecord, SearchResult
    from autopar.tasks import Task

_HOMES = {
    "AutoparError": "autopar.core.errors",
    "Cluster": "autopar.cluster",
    "Estimate": "autopar.core.estimate",
    "GraphProfile": "autopar.graph",
    "Plan": "autopar.plans",
    "RunRecord": "autopar.results",
    "SearchResult": "autopar.results",
    "Task": "autopar.tasks",
    "bench": "autopar.api",
    "choose_machines": "autopar.api",
    "export": "autopar.api",
    "measure_cluster": "autopar.api",
    "parallelize": "autopar.api",
    "plan": "autopar.api",
    "profile": "autopar.api",
    "report": "autopar.api",
    "run": "autopar.api",
}

__all__ = [
    "AutoparError",
    "Cluster",
    "Estimate",
    "GraphProfile",
    "Plan",
    "RunRecord",
    "SearchResult",
    "Task",
    "__version__",
    "bench",
    "choose_machines",
    "export",
    "measure_cluster",
    "parallelize",
    "plan",
    "profile",
    "report",
    "run",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'autopar' has no attribute '{name}'")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
