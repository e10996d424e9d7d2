"""U-Net: the convolutional encoder and decoder with long skip connections."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from autopar.core.errors import InputError
from autopar.tasks.task import Task
from autopar.tasks.zoo import data
from autopar.tasks.zoo.common import require_at_least, require_positive, sgd_momentum


def unet(
    *,
    channels: int = 64,
    depth: int = 4,
    image: int = 512,
    colours: int = 1,
    classes: int = 2,
) -> Task:
    """A U-Net; the defaults are the published one with 31.0 M parameters.

    Convolutions are padded, so that the mask has the size of the image; the published ones are
    not and cut a 572 pixel image to a 388 pixel mask.

    Args:
        channels: Width of the first level; it doubles with every level below.
        depth: Times the resolution is halved; ``image`` is a multiple of 2 to this power.
        image: Height and width in pixels.
        colours: Channels of the image.
        classes: Classes of a pixel; at least 2, of which the data use two.
    """
    require_positive(channels=channels, depth=depth, image=image, colours=colours)
    require_at_least(2, classes=classes)
    if image % 2**depth:
        raise InputError(
            f"image={image}: must be a multiple of 2**depth={2**depth}",
            hint=f"image={max(1, image // 2**depth) * 2**depth}",
        )

    def model() -> nn.Module:
        return UNet(channels, depth, colours, classes)

    def batch(n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        return data.discs(n, colours, image, generator)

    return Task(name="unet", model=model, batch=batch, loss=pixel_loss, optimizer=sgd_momentum)


def pixel_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy over all pixels of all samples, in nats.

    Args:
        output: Logits, ``[n, classes, height, width]``.
        target: Class indices, ``[n, height, width]``.
    """
    return functional.cross_entropy(output, target)


class UNet(nn.Module):
    """Halves the resolution, then doubles it again beside the features of the way down.

    Args:
        channels: Width of the first level.
        depth: Levels below the first.
        colours: Channels of the image.
        classes: Channels of the output.
    """

    def __init__(self, channels: int, depth: int, colours: int, classes: int) -> None:
        super().__init__()
        widths = [channels * 2**level for level in range(depth + 1)]
        self.down = nn.ModuleList(
            DoubleConv(before, after)
            for before, after in zip([colours, *widths], widths, strict=False)
        )
        self.grow = nn.ModuleList(
            nn.ConvTranspose2d(2 * width, width, 2, stride=2) for width in reversed(widths[:-1])
        )
        self.up = nn.ModuleList(DoubleConv(2 * width, width) for width in reversed(widths[:-1]))
        self.output = nn.Conv2d(channels, classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits, ``[n, classes, height, width]``.

        Args:
            x: Images, ``float[n, colours, height, width]``.
        """
        skips: list[torch.Tensor] = []
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else functional.max_pool2d(x, 2))
            skips.append(x)
        skips.pop()
        for grow, block in zip(self.grow, self.up, strict=True):
            x = block(torch.cat((skips.pop(), grow(x)), dim=1))
        logits: torch.Tensor = self.output(x)
        return logits


class DoubleConv(nn.Module):
    """Two 3x3 convolutions with rectifiers.

    Args:
        before: Channels in.
        after: Channels out.
    """

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(before, after, 3, padding=1)
        self.second = nn.Conv2d(after, after, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features, ``[n, after, height, width]``.

        Args:
            x: ``[n, before, height, width]``.
        """
        return torch.relu(self.second(torch.relu(self.first(x))))
