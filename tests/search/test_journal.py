"""The lock of a journal file."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from autopar.search.walk.journal import KernelLock


def test_a_held_lock_keeps_others_out_until_it_is_released(tmp_path: Path):
    path = tmp_path / "study.log.lock"
    lock = KernelLock(path)
    for _ in range(2):
        assert lock.acquire()
        with path.open("ab") as other:
            with pytest.raises(BlockingIOError):
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            lock.release()
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
