"""Images in one folder per class, decoded by Pillow."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from autopar.core.errors import EnvironmentUnableError, InputError
from autopar.data.pixels import Scaling

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp")


class ImageFolder(Dataset[tuple[torch.Tensor, int]]):
    """``root/CLASS/any/where.png``, a class per folder, classes and files in name order.

    A sample is ``(image, class number)``: float32 of shape ``[channels, size, size]``, the whole
    image scaled with bilinear interpolation, then ``(pixel / 255 - mean) / std``.

    Attributes:
        classes: Class names; a class's number is its place.
        files: File of each sample.
        targets: Class number of each sample.

    Args:
        root: The folder of class folders.
        size: Height and width in pixels.
        channels: 3 for colour, 1 for grey.
        mean: Per channel, of pixels scaled to 0..1.
        std: Per channel.

    Raises:
        InputError: No such folder, a folder without images, or a number that makes no sense.
        EnvironmentUnableError: Pillow is missing.
    """

    def __init__(
        self,
        root: Path | str,
        *,
        size: int,
        channels: int = 3,
        mean: Sequence[float] = (),
        std: Sequence[float] = (),
    ) -> None:
        pillow()
        if size < 1 or channels not in (1, 3):
            raise InputError(
                f"images of size={size}, channels={channels}",
                hint="use a size of 1 or more and 1 or 3 channels",
            )
        self._size, self._mode = size, "RGB" if channels == 3 else "L"
        self._scaling = Scaling(channels, mean, std)
        folder = Path(root).expanduser()
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder", hint="give the folder of class folders")
        places = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
        if not places:
            raise InputError(f"{folder} has no class folders", hint="put images in root/CLASS/")
        self.classes = tuple(place.name for place in places)
        self.files: list[Path] = []
        self.targets: list[int] = []
        for number, place in enumerate(places):
            found = sorted(p for p in place.rglob("*") if p.suffix.lower() in EXTENSIONS)
            if not found:
                raise InputError(
                    f"{place} has no images",
                    hint="remove the folder; images end in " + ", ".join(EXTENSIONS),
                )
            self.files += found
            self.targets += [number] * len(found)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        """One sample.

        Raises:
            InputError: The file is no image Pillow can read.
        """
        image = pillow()
        path = self.files[i]
        try:
            with image.open(path) as opened:
                scaled = opened.convert(self._mode).resize(
                    (self._size, self._size), image.Resampling.BILINEAR
                )
        except (OSError, ValueError, SyntaxError) as error:  # what Pillow's decoders raise
            raise InputError(
                f"{path}: cannot read the image: {error}", hint="repair or remove the file"
            ) from error
        pixels = np.array(scaled, dtype=np.uint8).reshape(self._size, self._size, -1)
        return self._scaling(torch.from_numpy(pixels).permute(2, 0, 1)), self.targets[i]


def pillow() -> Any:
    """Pillow's ``Image`` module.

    Raises:
        EnvironmentUnableError: It is not installed.
    """
    try:
        return importlib.import_module("PIL.Image")
    except ImportError as error:
        raise EnvironmentUnableError(
            "reading image files needs Pillow", hint="pip install autopar[images]"
        ) from error
