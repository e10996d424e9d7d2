"""WaveNet: the autoregressive model of raw audio with dilated causal convolutions."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from autopar.tasks.task import Task
from autopar.tasks.zoo import data
from autopar.tasks.zoo.common import require_at_least, require_positive, sgd_momentum, token_loss


def wavenet(
    *,
    layers: int = 30,
    cycle: int = 10,
    residual: int = 512,
    gate: int = 256,
    skip: int = 256,
    kernel: int = 3,
    levels: int = 256,
    samples: int = 7680,
) -> Task:
    """A WaveNet; the defaults are the published teacher of Parallel WaveNet.

    That is 30 layers in 3 cycles of dilations 1 to 512, 512 gating units in two halves, 512
    residual and 256 skip channels, on clips of 7680 samples; the output is the 256-way softmax
    over mu-law levels of the first WaveNet.

    Args:
        layers: Residual blocks.
        cycle: Blocks after which the dilation starts again at 1.
        residual: Channels of the residual stream.
        gate: Channels of each half of the gated activation.
        skip: Channels of the sum that the output is made from.
        kernel: Taps of a dilated convolution.
        levels: Quantisation levels of the audio.
        samples: Audio samples in a clip.
    """
    require_positive(layers=layers, cycle=cycle, residual=residual, gate=gate, skip=skip)
    require_positive(kernel=kernel, samples=samples)
    require_at_least(2, levels=levels)
    dilations = [2 ** (layer % cycle) for layer in range(layers)]

    def model() -> nn.Module:
        return WaveNet(dilations, residual, gate, skip, kernel, levels)

    def batch(n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        clip = data.waves(n, samples + 1, levels, generator)
        return clip[:, :-1].contiguous(), clip[:, 1:].contiguous()

    return Task(name="wavenet", model=model, batch=batch, loss=token_loss, optimizer=sgd_momentum)


class WaveNet(nn.Module):
    """Predicts every audio sample from those before it.

    Args:
        dilations: Samples between the taps, one for each block.
        residual: Channels of the residual stream.
        gate: Channels of each half of the gated activation.
        skip: Channels of the skip sum.
        kernel: Taps of a dilated convolution.
        levels: Quantisation levels.
    """

    def __init__(
        self, dilations: list[int], residual: int, gate: int, skip: int, kernel: int, levels: int
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(levels, residual)
        self.blocks = nn.ModuleList(
            ResidualBlock(dilation, residual, gate, skip, kernel, last=depth == len(dilations))
            for depth, dilation in enumerate(dilations, start=1)
        )
        self.mix = nn.Conv1d(skip, skip, 1)
        self.output = nn.Conv1d(skip, levels, 1)

    def forward(self, levels: torch.Tensor) -> torch.Tensor:
        """Logits of the next sample's level, ``[n, samples, levels]``.

        Args:
            levels: Quantised audio, ``int64[n, samples]``.
        """
        x = self.embed(levels).transpose(1, 2)
        total: torch.Tensor | None = None
        for block in self.blocks:
            x, skipped = block(x)
            total = skipped if total is None else total + skipped
        assert total is not None
        logits: torch.Tensor = self.output(torch.relu(self.mix(torch.relu(total))))
        return logits.transpose(1, 2)


class ResidualBlock(nn.Module):
    """A gated dilated causal convolution with a residual and a skip output.

    Args:
        dilation: Samples between the taps.
        residual: Channels of the residual stream.
        gate: Channels of each half of the gated activation.
        skip: Channels of the skip output.
        kernel: Taps.
        last: Whether nothing reads the residual output, which is then left out.
    """

    def __init__(
        self, dilation: int, residual: int, gate: int, skip: int, kernel: int, *, last: bool
    ) -> None:
        super().__init__()
        self.past = dilation * (kernel - 1)
        self.dilated = nn.Conv1d(residual, 2 * gate, kernel, dilation=dilation)
        self.residual = None if last else nn.Conv1d(gate, residual, 1)
        self.skip = nn.Conv1d(gate, skip, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The next block's input and this block's share of the skip sum.

        Args:
            x: ``[n, residual, samples]``.
        """
        signal, control = self.dilated(functional.pad(x, (self.past, 0))).chunk(2, dim=1)
        gated = torch.tanh(signal) * torch.sigmoid(control)
        if self.residual is not None:
            x = x + self.residual(gated)
        return x, self.skip(gated)
