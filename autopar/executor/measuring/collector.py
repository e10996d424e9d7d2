"""Python's garbage collector kept out of the steps."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

INTERVAL = 50
"""Steps between two collections of young objects, as torchtitan does."""


@contextmanager
def quiet_collector() -> Iterator[None]:
    """Within it nothing is collected automatically; call :func:`tidy` between steps.

    A collection in the middle of a step stalls one rank and thereby all of them. What exists
    before training (model, libraries) is set aside for good.
    """
    was_on = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if was_on:
            gc.enable()


def tidy(step: int) -> bool:
    """Collect young objects after every :data:`INTERVAL`-th step; returns whether it did."""
    due = step % INTERVAL == 0
    if due:
        gc.collect(1)
    return due
