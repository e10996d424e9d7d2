"""Ready datasets for ``Task.dataset``: images in folders, CIFAR-10's files, token files.

Each is a map-style dataset of ``(inputs, target)``; any other one works too. Names are imported
on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autopar.data.cifar import Cifar10
    from autopar.data.described import Described, batch_from, class_weights
    from autopar.data.images import ImageFolder
    from autopar.data.padding import PadCollate
    from autopar.data.tokens import TokenFile

_HOMES = {
    "Cifar10": "autopar.data.cifar",
    "Described": "autopar.data.described",
    "ImageFolder": "autopar.data.images",
    "PadCollate": "autopar.data.padding",
    "TokenFile": "autopar.data.tokens",
    "batch_from": "autopar.data.described",
    "class_weights": "autopar.data.described",
}

__all__ = [
    "Cifar10",
    "Described",
    "ImageFolder",
    "PadCollate",
    "TokenFile",
    "batch_from",
    "class_weights",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'autopar.data' has no attribute '{name}'")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
