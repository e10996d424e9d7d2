"""EfficientNet: the mobile convolutional network with squeeze-and-excitation."""

from __future__ import annotations

import torch
from torch import nn

from autopar.tasks.task import Task
from autopar.tasks.zoo import data, hf
from autopar.tasks.zoo.common import (
    class_loss,
    require_positive,
    require_probability,
    sgd_momentum,
)

BATCH_NORM_MOMENTUM = 0.01
"""Weight of the newest batch; published as a decay of 0.99."""
HEAD_CHANNELS = 1280
"""Channels before the classifier at width 1."""


def efficientnet_b0(
    *,
    width: float = 1.0,
    depth: float = 1.0,
    image: int = 224,
    classes: int = 1000,
    dropout: float = 0.0,
) -> Task:
    """An EfficientNet; the defaults are B0 with 5.29 M parameters.

    Batch normalisation takes its statistics over the samples a rank sees, so it is the one
    layer here whose result depends on how a batch is cut.

    Args:
        width: Factor of all channel counts (B7 has 2.0).
        depth: Factor of the blocks in a stage (B7 has 3.1).
        image: Height and width of the RGB image in pixels.
        classes: Number of classes.
        dropout: Probability before the classifier and of dropping a branch. 0 rather than the
            published 0.2, so that a parallel run can be compared exactly with a serial one.
    """
    hf.require_transformers("efficientnet_b0")
    require_positive(width=width, depth=depth, image=image, classes=classes)
    require_probability(dropout=dropout)

    def model() -> nn.Module:
        network = hf.build(
            "EfficientNetForImageClassification",
            "EfficientNetConfig",
            width_coefficient=width,
            depth_coefficient=depth,
            hidden_dim=_rounded(HEAD_CHANNELS * width),
            image_size=image,
            num_labels=classes,
            batch_norm_momentum=BATCH_NORM_MOMENTUM,
            dropout_rate=dropout,
            drop_connect_rate=dropout,
        )
        _initialise(network)
        return hf.Logits(network)

    def batch(n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        return data.images(n, 3, image, classes, generator)

    return Task(
        name="efficientnet_b0",
        model=model,
        batch=batch,
        loss=class_loss,
        optimizer=sgd_momentum,
    )


def _initialise(network: nn.Module) -> None:
    """Draw the weights as published.

    ``transformers`` draws the scales of batch normalisation from a normal distribution of
    deviation 0.02, under which the signal fades to 1e-31 and nothing is learned.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.weight.shape[0] * module.weight[0, 0].numel() // module.groups
            nn.init.normal_(module.weight, std=(2.0 / fan_out) ** 0.5)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)


def _rounded(channels: float) -> int:
    """The nearest multiple of 8 that is not more than a tenth smaller, as published."""
    multiple = max(8, int(channels + 4) // 8 * 8)
    return multiple if multiple >= 0.9 * channels else multiple + 8
