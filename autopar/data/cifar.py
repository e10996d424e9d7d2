"""CIFAR-10's binary files, read where they lie."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from autopar.core.errors import InputError
from autopar.data.pixels import Scaling

CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)
_SHAPE = (3, 32, 32)
_RECORD_BYTES = 1 + 3 * 32 * 32


class Cifar10(Dataset[tuple[torch.Tensor, int]]):
    """``data_batch_*.bin`` or ``test_batch.bin`` of the binary version of CIFAR-10.

    A record is one byte, the class, and 3072 bytes, the red, green and blue planes of 32 x 32
    pixels. A sample is ``(image, class number)``: float32 ``[3, 32, 32]``. Files are mapped into
    memory, not read as a whole.

    Attributes:
        classes: Class names.
        targets: Class number of each sample.

    Args:
        root: The folder with the files (``cifar-10-batches-bin``).
        train: The training files, else the test file.
        mean: Per channel, of pixels scaled to 0..1.
        std: Per channel.

    Raises:
        InputError: No such files, a truncated one, or one with other labels than 0 to 9.
    """

    classes = CLASSES

    def __init__(
        self,
        root: Path | str,
        *,
        train: bool = True,
        mean: Sequence[float] = MEAN,
        std: Sequence[float] = STD,
    ) -> None:
        folder = Path(root).expanduser()
        pattern = "data_batch_*.bin" if train else "test_batch.bin"
        files = sorted(folder.glob(pattern))
        if not files:
            raise InputError(
                f"{folder} has no {pattern}",
                hint="give the folder of the binary version, cifar-10-batches-bin",
            )
        self._scaling = Scaling(3, mean, std)
        self._records = [_records(path) for path in files]
        self._starts = np.cumsum([0, *(len(rows) for rows in self._records)])
        self.targets: list[int] = [
            int(label) for rows in self._records for label in np.array(rows[:, 0])
        ]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        if not 0 <= i < len(self):
            raise IndexError(i)
        file = int(np.searchsorted(self._starts, i, side="right")) - 1
        row = np.array(self._records[file][i - self._starts[file], 1:])
        return self._scaling(torch.from_numpy(row).view(_SHAPE)), self.targets[i]


def _records(path: Path) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    size = path.stat().st_size
    if size == 0 or size % _RECORD_BYTES:
        raise InputError(
            f"{path} has {size} bytes, no whole number of records of {_RECORD_BYTES} bytes",
            hint="the file is truncated or no CIFAR-10 binary file; fetch it again",
        )
    rows: np.ndarray[tuple[int, int], np.dtype[np.uint8]] = np.memmap(
        path, dtype=np.uint8, mode="r", shape=(size // _RECORD_BYTES, _RECORD_BYTES)
    )
    worst = int(rows[:, 0].max())
    if worst >= len(CLASSES):
        raise InputError(
            f"{path} has a record of class {worst}, classes are 0 to {len(CLASSES) - 1}",
            hint="this reads CIFAR-10's binary version, not CIFAR-100 or the Python version",
        )
    return rows
