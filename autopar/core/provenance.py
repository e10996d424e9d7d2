"""Who made a file, with what, where and when."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from datetime import UTC, datetime
from functools import cache
from typing import Any

from autopar.core.version import __version__

_PACKAGES = ("torch", "optuna", "networkx", "transformers")


def provenance() -> dict[str, Any]:
    """Versions, host, processor count, command line and UTC time, as plain JSON values."""
    return {
        "autopar": __version__,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "host": platform.node(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu_count": os.cpu_count(),
        "command": [os.path.basename(sys.argv[0]), *sys.argv[1:]] if sys.argv else [],
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


@cache
def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
