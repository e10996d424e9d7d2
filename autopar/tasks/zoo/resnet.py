"""ResNet: the residual convolutional network."""

from __future__ import annotations

import torch

from autopar.tasks.task import Task
from autopar.tasks.zoo import data, hf
from autopar.tasks.zoo.common import class_loss, parse_sizes, require_positive, sgd_momentum


def resnet50(
    *,
    channels: int = 64,
    depths: str = "3-4-6-3",
    image: int = 224,
    classes: int = 1000,
) -> Task:
    """A bottleneck ResNet; the defaults are ResNet-50 with 25.56 M parameters.

    Batch normalisation takes its statistics over the samples a rank sees, so it is the one
    layer here whose result depends on how a batch is cut.

    Args:
        channels: Width of the stem; the stages have 4, 8, 16, ... times as many.
        depths: Blocks in each stage, joined by '-' ("3-4-23-3" is ResNet-101).
        image: Height and width of the RGB image in pixels.
        classes: Number of classes.
    """
    hf.require_transformers("resnet50")
    require_positive(channels=channels, image=image, classes=classes)
    blocks = parse_sizes("depths", depths)

    def model() -> torch.nn.Module:
        network = hf.build(
            "ResNetForImageClassification",
            "ResNetConfig",
            embedding_size=channels,
            hidden_sizes=[channels * 4 * 2**stage for stage in range(len(blocks))],
            depths=blocks,
            layer_type="bottleneck",
            num_labels=classes,
        )
        return hf.Logits(network)

    def batch(n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        return data.images(n, 3, image, classes, generator)

    return Task(name="resnet50", model=model, batch=batch, loss=class_loss, optimizer=sgd_momentum)
