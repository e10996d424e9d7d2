"""Small models that hold every construct a cut must survive."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional as F

from autopar.tasks import Task


class Mlp(nn.Module):
    def __init__(self, width: int, depth: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.drop = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = self.drop(torch.tanh(layer(x)))
        return x


def mlp(width: int = 8, depth: int = 4, dropout: float = 0.0, lr: float = 0.1) -> Task:
    return Task(
        name="mlp",
        model=lambda: Mlp(width, depth, dropout),
        batch=lambda n, g: (
            torch.randn(n, width, generator=g),
            torch.randn(n, width, generator=g),
        ),
        loss=F.mse_loss,
        optimizer=lambda params: torch.optim.SGD(params, lr=lr, momentum=0.9),
    )


class Knotted(nn.Module):
    """Tied weights, skips, BatchNorm, in-place ReLU, a mask, tuple ops, dropout, two outputs."""

    def __init__(self, dropout: float = 0.1) -> None:
        super().__init__()
        self.embedding = nn.Embedding(30, 8)
        self.blocks = nn.ModuleList(Block(8, dropout) for _ in range(3))
        self.skip = nn.Linear(8, 8)
        self.head = nn.Linear(8, 30, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        length = tokens.shape[1]
        mask = torch.ones(length, length, dtype=torch.bool, device=tokens.device).tril()
        hidden = self.embedding(tokens)
        first = hidden
        for block in self.blocks:
            hidden = block(hidden, mask)
        keep = (tokens > 2)[..., None]
        hidden = torch.where(keep, hidden, first) + self.skip(first)
        return self.head(hidden), hidden


class Block(nn.Module):
    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.norm = nn.BatchNorm1d(width)
        self.act = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        scores = (q @ k.transpose(1, 2)).masked_fill(~mask, -1e9).softmax(-1)
        x = x + self.drop(scores @ v)
        return x + self.act(self.norm(x.transpose(1, 2)).transpose(1, 2))


def knotted(dropout: float = 0.1) -> Task:
    def batch(n: int, g: torch.Generator) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        tokens = torch.randint(0, 30, (n, 5), generator=g)
        return {"tokens": tokens}, tokens.roll(1, 1)

    def loss(out: tuple[torch.Tensor, torch.Tensor], target: torch.Tensor) -> torch.Tensor:
        logits, hidden = out
        return (
            F.cross_entropy(logits.flatten(0, 1), target.flatten()) + 0.1 * hidden.square().mean()
        )

    return Task(
        name="knotted",
        model=lambda: Knotted(dropout),
        batch=batch,
        loss=loss,
        optimizer=lambda params: torch.optim.AdamW(params, lr=1e-2),
    )


class Unet(nn.Module):
    """Convolutions, values that skip over several stages, two inputs, a parameter without use."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(3))
        self.up = nn.ModuleList(nn.Conv2d(8, 4, 3, padding=1) for _ in range(3))
        self.idle = nn.Linear(2, 2)

    def forward(self, image: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        kept = []
        x = image + shift[:, :, None, None]
        for conv, norm in zip(self.down, self.norms, strict=True):
            x = F.relu_(norm(conv(x)))
            kept.append(x)
        for conv in self.up:
            x = conv(torch.cat([x, kept.pop()], 1))
        return x


def unet() -> Task:
    return Task(
        name="unet",
        model=Unet,
        batch=lambda n, g: (
            (torch.randn(n, 4, 6, 6, generator=g), torch.randn(n, 4, generator=g)),
            torch.randn(n, 4, 6, 6, generator=g),
        ),
        loss=F.mse_loss,
        optimizer=lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9),
    )


class Branching(nn.Module):
    """torch.export cannot capture it; each microbatch takes one of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(4, 4)
        self.right = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.left(x) if float(x.sum()) > 0 else self.right(x)


def branching() -> Task:
    return Task(
        name="branching",
        model=Branching,
        batch=lambda n, g: (torch.randn(n, 4, generator=g), torch.randn(n, 4, generator=g)),
        loss=F.mse_loss,
        optimizer=lambda params: torch.optim.SGD(params, lr=0.1),
    )


class Failing(Mlp):
    """Raises, or ends its process, in some forward of one rank."""

    def __init__(self, how: str, rank: int) -> None:
        super().__init__(8, 4, 0.0)
        self.how = how
        self.rank = rank
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.calls > 4 and torch.distributed.get_rank() == self.rank:
            if self.how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.how == "hang":
                time.sleep(1000)
            raise RuntimeError("the layer melted\nsecond line")
        return super().forward(x)


def failing(how: str = "raise", rank: int = 1) -> Task:
    return replace(mlp(), name="failing", model=lambda: Failing(how, rank))


def exploding() -> Task:

    def loss(out: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return F.mse_loss(out, target) * 1e38 * 1e3

    return replace(mlp(), name="exploding", loss=loss)


class Points(torch.utils.data.Dataset[tuple[torch.Tensor, torch.Tensor]]):
    def __init__(self, count: int) -> None:
        self.x = torch.arange(count, dtype=torch.float32)[:, None].expand(count, 8) / count

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.x[i], self.x[i]


def points(count: int = 24) -> Task:
    return replace(mlp(), name="points", dataset=Points(count))


class Tower(nn.Module):
    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = x + torch.tanh(layer(x))
        return F.normalize(x, dim=-1)


class Towers(nn.Module):
    """Two encoders that know nothing of each other, and the product of what they say."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.user, self.item = Tower(width, depth), Tower(width, depth)

    def forward(self, user: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
        return (self.user(user) * self.item(item)).sum(-1)


def towers(width: int = 16, depth: int = 3) -> Task:
    return Task(
        name="towers",
        model=lambda: Towers(width, depth),
        batch=lambda n, g: (
            (torch.randn(n, width, generator=g), torch.randn(n, width, generator=g)),
            torch.rand(n, generator=g).round(),
        ),
        loss=F.binary_cross_entropy_with_logits,
        optimizer=lambda params: torch.optim.AdamW(params, lr=1e-3),
    )
