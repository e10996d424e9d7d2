"""Local SGD (Stich 2019)."""

from __future__ import annotations

from typing import final

from autopar.executor.synchronising.periodic import Periodic


@final
class LocalSgd(Periodic):
    """Weights are averaged every ``period`` steps; nothing is sent in between."""
