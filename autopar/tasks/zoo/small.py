"""Options that make each zoo model small enough for a real run on one CPU thread."""

from __future__ import annotations

from autopar.core.errors import InputError
from autopar.core.registry import did_you_mean

SMALL: dict[str, dict[str, int | float | str]] = {
    "mlp": {"inputs": 16, "width": 32, "depth": 4, "classes": 10},
    "resnet50": {"channels": 8, "depths": "2-2", "image": 32, "classes": 10},
    "efficientnet_b0": {"width": 0.25, "depth": 1.0, "image": 32, "classes": 10},
    "bert": {"layers": 4, "hidden": 64, "heads": 4, "vocab": 256, "seq": 32},
    "gpt": {"layers": 4, "hidden": 64, "heads": 4, "vocab": 256, "seq": 32},
    "llama": {
        "layers": 4,
        "hidden": 64,
        "heads": 4,
        "kv_heads": 2,
        "ffn": 128,
        "vocab": 256,
        "seq": 32,
    },
    "transformer": {"layers": 2, "hidden": 64, "heads": 4, "vocab": 256, "seq": 32},
    "wavenet": {
        "layers": 6,
        "cycle": 3,
        "residual": 16,
        "gate": 16,
        "skip": 16,
        "levels": 64,
        "samples": 128,
    },
    "vit": {"layers": 4, "hidden": 64, "heads": 4, "image": 32, "patch": 8, "classes": 10},
    "moe": {
        "layers": 2,
        "hidden": 64,
        "heads": 4,
        "kv_heads": 2,
        "ffn": 96,
        "experts": 4,
        "vocab": 256,
        "seq": 32,
    },
    "dlrm": {
        "tables": 6,
        "max_rows": 200,
        "dim": 16,
        "bottom": "32-16",
        "top": "64-64-64-1",
    },
    "unet": {"channels": 8, "depth": 2, "image": 32},
    "shapes": {"channels": 16, "depth": 2, "image": 16},
    "chars": {"layers": 2, "hidden": 64, "heads": 4, "seq": 32},
}
"""Zoo name to options; every model keeps at least two repeated blocks to cut between."""


def small_target(name: str) -> str:
    """The target string of a model's small version.

    Args:
        name: Zoo name.

    Returns:
        For example ``"zoo:mlp?inputs=16&width=32&depth=4&classes=10"``.

    Raises:
        InputError: The name is unknown.
    """
    if name not in SMALL:
        raise InputError(f"unknown zoo model '{name}'", hint=did_you_mean(name, list(SMALL)))
    return f"zoo:{name}?" + "&".join(f"{key}={value}" for key, value in SMALL[name].items())
