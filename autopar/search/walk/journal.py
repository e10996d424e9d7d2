"""A journal file that several processes append to."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import IO

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend


class KernelLock:
    """Waits in the kernel until the file is free.

    Optuna's own locks ask again after pauses that double up to a second, in which a worker that
    appends often takes the lock many times: the other one starves.

    Args:
        path: The file beside the journal that is locked; it stays there, empty.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._held: IO[bytes] | None = None

    def acquire(self) -> bool:
        """Take the lock, after others have left it."""
        file = self._path.open("ab")
        fcntl.flock(file, fcntl.LOCK_EX)
        self._held = file
        return True

    def release(self) -> None:
        """Leave it to the next worker; a worker that dies leaves it too."""
        held, self._held = self._held, None
        if held is not None:
            held.close()


def open_journal(path: str) -> JournalStorage:
    """Optuna storage in a journal file, made when it is missing."""
    lock = KernelLock(Path(f"{path}.lock"))
    return JournalStorage(JournalFileBackend(path, lock_obj=lock))
