"""Run a function on several ranks, as forks of this process, and bring the results back."""

from __future__ import annotations

import gc
import os
import pickle
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import FileStore

from autopar.core.errors import TrainingError

T = TypeVar("T")


def on_ranks(count: int, function: Callable[[int], T]) -> list[T]:
    """``function(rank)`` on each of ``count`` gloo ranks with one thread; its results in order.

    Raises:
        TrainingError: It failed on a rank; the message has the traceback.
    """
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        children = [_child(rank, count, function, place) for rank in range(count)]
        for child in children:
            os.waitpid(child, 0)
        results = []
        for rank in range(count):
            good, value = pickle.loads((place / f"{rank}").read_bytes())
            if not good:
                raise TrainingError(f"rank {rank}:\n{value}")
            results.append(value)
        return results


def _child(rank: int, count: int, function: Callable[[int], T], place: Path) -> int:
    pid = os.fork()
    if pid:
        return pid
    gc.freeze()  # what the parent holds is not this rank's to collect, nor to copy
    torch.set_num_threads(1)
    try:
        store = FileStore(str(place / "store"), count)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=count)
        result: tuple[bool, object] = (True, function(rank))
    except BaseException:
        result = (False, traceback.format_exc())
    (place / f"{rank}").write_bytes(pickle.dumps(result))
    os._exit(0)
