"""Finding a checkpoint, and reading its index without running code from it."""

from __future__ import annotations

import enum
import pickle
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata

from autopar.core.errors import InputError

NOTES = "autopar.json"
"""What a checkpoint is, in its folder."""
LATEST = "latest"
"""Names the newest complete checkpoint beside it."""


def find_checkpoint(place: Path) -> Path:
    """A checkpoint folder: ``place`` itself, or the one its ``latest`` names.

    Raises:
        InputError: There is none.
    """
    if (place / NOTES).is_file():
        return place
    pointer = place / LATEST
    if pointer.is_file():
        name = pointer.read_text(encoding="utf-8").strip()
        folder = place / name
        if Path(name).name == name and (folder / NOTES).is_file():
            return folder
        raise InputError(f"{pointer} names '{name}', which is no complete checkpoint")
    raise InputError(
        f"no checkpoint in {place}",
        hint="pass a run's checkpoints folder, or one step-N folder in it",
    )


class SafeReader(FileSystemReader):
    """Reads ``.metadata`` with an allow-list: a plain unpickler would run code from the file."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The checkpoint's index.

        Raises:
            InputError: The index is missing, damaged, or holds anything but an index.
        """
        path = Path(self.path) / ".metadata"
        try:
            with path.open("rb") as stream:
                metadata = _MetadataUnpickler(stream).load()
        except (OSError, EOFError, pickle.UnpicklingError, AttributeError, ValueError) as error:
            raise InputError(
                f"cannot read {path}: {error}", hint="resume from another checkpoint"
            ) from error
        if not isinstance(metadata, Metadata):
            raise InputError(f"{path} holds no checkpoint index")
        if metadata.storage_meta is not None:
            metadata.storage_meta.load_id = self.load_id
        return metadata


def _enum_member(owner: object, name: object) -> enum.Enum:
    """``getattr`` for members of an enum, and nothing else."""
    if isinstance(owner, type) and issubclass(owner, enum.Enum) and isinstance(name, str):
        return owner[name]
    raise pickle.UnpicklingError(f"attribute {name!r} is not allowed in a checkpoint index")


class _MetadataUnpickler(pickle.Unpickler):
    _MODULES = (
        "torch.distributed.checkpoint.metadata",
        "torch.distributed.checkpoint.filesystem",
    )
    _NAMES = frozenset(
        {
            ("torch", "Size"),
            ("torch", "device"),
            ("torch.serialization", "_get_layout"),
            ("collections", "OrderedDict"),
            ("pathlib", "PosixPath"),
            ("pathlib", "Path"),
            ("torch._utils", "_rebuild_device"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        """Only what an index is made of."""
        if (module, name) == ("builtins", "getattr"):  # how Python 3.11.2 pickles enum members
            return _enum_member
        dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        classes = module in self._MODULES and not name.startswith("__") and "." not in name
        if (module, name) in self._NAMES or dtype:
            return super().find_class(module, name)
        if classes:
            found = super().find_class(module, name)
            if isinstance(found, type) and found.__module__ == module:
                return found
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a checkpoint index")
