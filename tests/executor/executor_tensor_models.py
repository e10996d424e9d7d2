"""Small models that hold every construct that tensor parallelism must divide."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from autopar.tasks import Task

WIDTH, LENGTH, HEADS = 16, 6, 4
Heads = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class Attention(nn.Module):
    """Fused query, key and value, taken apart in one of several ways."""

    def __init__(self, apart: str) -> None:
        super().__init__()
        self.apart = apart
        self.kv = {"grouped": 2, "phi": 2, "interleaved groups": 2, "one key head": 1}.get(
            apart, HEADS
        )
        self.size = WIDTH // HEADS
        self.qkv = nn.Linear(WIDTH, WIDTH + 2 * self.kv * self.size)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.bias = nn.Parameter(0.1 * torch.randn(1, HEADS, LENGTH, LENGTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, t, _ = x.shape
        q, k, v = getattr(self, "_" + self.apart.replace(" ", "_"))(self.qkv(x), b, t)
        y = self._attend(q, k, v)
        return self.out(y.transpose(1, 2).reshape(b, t, WIDTH))

    def _attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        if self.apart == "five dims":
            scores = (q @ k.transpose(-1, -2)) / self.size**0.5 + self.bias
            mask = torch.ones(LENGTH, LENGTH, dtype=torch.bool, device=q.device).triu(1)
            return scores.masked_fill(mask, -1e4).softmax(-1) @ v
        if self.apart == "chunk":
            return F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias)
        if self.kv in (1, HEADS):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)
        if self.apart == "grouped":
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        times = HEADS // self.kv
        k, v = (
            x[:, :, None]
            .expand(-1, -1, times, -1, -1)
            .reshape(x.shape[0], HEADS, LENGTH, self.size)
            for x in (k, v)
        )
        return F.scaled_dot_product_attention(q, k, v)

    def _five_dims(self, x: torch.Tensor, b: int, t: int) -> Heads:
        q, k, v = x.view(b, t, 3, HEADS, self.size).permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v

    def _select(self, x: torch.Tensor, b: int, t: int) -> Heads:
        y = x.unflatten(-1, (3, HEADS, self.size)).transpose(1, 3)
        return y[:, :, 0].contiguous(), y[:, :, 1], y[:, :, 2]

    def _heads_first(self, x: torch.Tensor, b: int, t: int) -> Heads:
        q, k, v = x.view(b, t, HEADS, 3 * self.size).transpose(1, 2).chunk(3, -1)
        return q, k, v

    def _chunk(self, x: torch.Tensor, b: int, t: int) -> Heads:
        q, k, v = (p.view(b, t, HEADS, self.size).transpose(1, 2) for p in x.chunk(3, -1))
        return q, k, v

    def _grouped(self, x: torch.Tensor, b: int, t: int) -> Heads:
        parts = x.split([WIDTH, self.kv * self.size, self.kv * self.size], -1)
        q, k, v = (p.view(b, t, -1, self.size).transpose(1, 2) for p in parts)
        return q, k, v

    def _phi(self, x: torch.Tensor, b: int, t: int) -> Heads:
        end = WIDTH + self.kv * self.size
        parts = x[..., :WIDTH], x[..., WIDTH:end], x[..., end:]
        q, k, v = (p.view(b, t, -1, self.size).transpose(1, 2) for p in parts)
        return q, k, v

    def _interleaved_groups(self, x: torch.Tensor, b: int, t: int) -> Heads:
        times = HEADS // self.kv
        y = x.view(b, t, self.kv, times + 2, self.size)
        q, k, v = y.split([times, 1, 1], 3)
        q = q.reshape(b, t, HEADS, self.size)
        return q.transpose(1, 2), k.squeeze(3).transpose(1, 2), v.squeeze(3).transpose(1, 2)

    _one_key_head = _grouped


ATTENTIONS = [
    "five dims",
    "select",
    "heads first",
    "chunk",
    "grouped",
    "phi",
    "interleaved groups",
]


class Gated(nn.Module):
    """Fused gate and value, between norms, with a scale per column and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(WIDTH, 4 * WIDTH)
        self.scale = nn.Parameter(torch.rand(2 * WIDTH))
        self.gain = nn.Parameter(torch.rand(1))
        self.down = nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, value = self.up(x).chunk(2, -1)
        hidden = F.silu(gate) * value * self.scale * self.gain
        return self.down(F.dropout(hidden, 0.1, self.training))


class Tokens(nn.Module):
    """Embedding, attention, gated columns, head."""

    def __init__(self, apart: str, vocabulary: int, *, tied: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, WIDTH, padding_idx=1)
        self.norm = nn.LayerNorm(WIDTH)
        self.attention = Attention(apart)
        self.gated = Gated()
        self.head = nn.Linear(WIDTH, vocabulary)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        x = x + self.attention(self.norm(x))
        return self.head(x + self.gated(x))


Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def by_log_softmax(out: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return F.nll_loss(F.log_softmax(out.flatten(0, 1), -1), target.flatten(), ignore_index=2)


def smoothed(out: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    flat = out.flatten(0, 1)
    return F.cross_entropy(flat, target.flatten(), ignore_index=2, label_smoothing=0.2)


def classes_second(out: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(out.transpose(1, 2), target, reduction="sum") / 7


def weighted(out: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    weights = torch.linspace(0.5, 1.5, out.shape[-1], device=out.device)
    return F.cross_entropy(out.flatten(0, 1), target.flatten(), weights)


def to_probabilities(out: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    wanted = F.one_hot(target.flatten(), out.shape[-1]).float()
    return F.cross_entropy(out.flatten(0, 1), wanted)


LOSSES: dict[str, Loss] = {
    "by log_softmax": by_log_softmax,
    "smoothed": smoothed,
    "classes second": classes_second,
    "weighted": weighted,
    "to probabilities": to_probabilities,
}


def tokens(
    apart: str = "chunk", vocabulary: int = 24, loss: Loss = smoothed, *, tied: bool = False
) -> Task:
    def batch(n: int, g: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        ids = torch.randint(0, vocabulary, (n, LENGTH), generator=g)
        return ids, ids.roll(1, 1)

    return Task(
        name="tokens",
        model=lambda: Tokens(apart, vocabulary, tied=tied),
        batch=batch,
        loss=loss,
        optimizer=lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9),
    )


class Channels(nn.Module):
    """Convolutions with groups, transposed, BatchNorm, pools, squeeze and excite, skips joined."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.grouped = nn.Conv2d(8, 16, 1, groups=4)
        self.second = nn.Conv2d(16, 6, 1)
        self.up = nn.ConvTranspose2d(6, 8, 2, stride=2)
        self.squeeze = nn.Conv2d(6, 4, 1)
        self.excite = nn.Conv2d(4, 6, 1)
        self.join = nn.Conv2d(16, 4, 1)
        self.out = nn.Linear(4 * 9, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = F.relu_(self.norm(self.first(x)))
        y = self.second(F.gelu(self.grouped(self.depthwise(F.max_pool2d(wide, 2)))))
        y = y * torch.sigmoid(self.excite(F.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        joined = self.join(torch.cat([self.up(y), wide], 1))
        return self.out(F.adaptive_avg_pool2d(joined, 3).flatten(1))


def channels() -> Task:
    def batch(n: int, g: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.randn(n, 3, 8, 8, generator=g), torch.randint(0, 5, (n,), generator=g)

    return Task(
        name="channels",
        model=Channels,
        batch=batch,
        loss=F.cross_entropy,
        optimizer=lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9),
    )
