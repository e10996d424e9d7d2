"""ViT: the vision transformer."""

from __future__ import annotations

import torch

from autopar.tasks.task import Task
from autopar.tasks.zoo import data, hf
from autopar.tasks.zoo.common import (
    adamw,
    class_loss,
    require_divides,
    require_positive,
    require_probability,
)


def vit(
    *,
    layers: int = 12,
    hidden: int = 768,
    heads: int = 12,
    ffn: int | None = None,
    image: int = 224,
    patch: int = 16,
    classes: int = 1000,
    dropout: float = 0.0,
) -> Task:
    """A vision transformer; the defaults are ViT-B/16 with 86.6 M parameters.

    Args:
        layers: Encoder blocks.
        hidden: Width of the residual stream.
        heads: Attention heads; divides ``hidden``.
        ffn: Width of the feed-forward layer; None for four times ``hidden``.
        image: Height and width of the RGB image in pixels.
        patch: Height and width of a patch in pixels; divides ``image``.
        classes: Number of classes.
        dropout: Probability everywhere. 0, so that a parallel run can be compared exactly with
            a serial one.
    """
    hf.require_transformers("vit")
    ffn = 4 * hidden if ffn is None else ffn
    require_positive(layers=layers, hidden=hidden, heads=heads, ffn=ffn, classes=classes)
    require_positive(image=image, patch=patch)
    require_divides("heads", heads, "hidden", hidden)
    require_divides("patch", patch, "image", image)
    require_probability(dropout=dropout)

    def model() -> torch.nn.Module:
        network = hf.build(
            "ViTForImageClassification",
            "ViTConfig",
            num_hidden_layers=layers,
            hidden_size=hidden,
            num_attention_heads=heads,
            intermediate_size=ffn,
            image_size=image,
            patch_size=patch,
            num_labels=classes,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
        )
        return hf.Logits(network)

    def batch(n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        return data.images(n, 3, image, classes, generator)

    return Task(name="vit", model=model, batch=batch, loss=class_loss, optimizer=adamw)
