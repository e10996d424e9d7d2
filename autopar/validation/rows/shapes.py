"""Transformer shapes: what a row states, what its model is known for, what its size implies."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

PAD = 128
"""Megatron pads the vocabulary to a multiple of this times tp."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A transformer.

    Attributes:
        layers: Blocks.
        hidden: Width.
        heads: Query heads.
        kv_heads: Key and value heads.
        head_dim: Width of a head.
        ffn: Inner width of the dense MLP.
        gated: The MLP has a third matrix (SwiGLU).
        vocab: Vocabulary.
        experts: Routed experts of an MoE layer, 0 for a dense model.
        active_experts: Experts a token visits.
        expert_ffn: Inner width of one expert.
        shared_ffn: Inner width of the experts every token visits, 0 without.
        expert_width: Width of a token as experts receive it, 0 for ``hidden`` (latent experts).
        attention_share: Part of the full score matrix per block, averaged over the blocks: below
            1 where some blocks are state-space or look at a window only.
        dense_layers: Blocks of an MoE model that keep a dense MLP.
        scan_width: Inner width of the state-space layer that comes with every block, 0 without.
        flop_per_token: Forward and backward, from the model's page, when the fields above are a
            stand-in for blocks they cannot describe; else ``None``.
        source: Where the shape comes from.
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: float
    ffn: int
    gated: bool = False
    vocab: int = 51200
    experts: int = 0
    active_experts: int = 0
    expert_ffn: int = 0
    shared_ffn: int = 0
    expert_width: int = 0
    attention_share: float = 1.0
    dense_layers: int = 0
    scan_width: int = 0
    flop_per_token: float | None = None
    source: str


def gpt(layers: int, hidden: int, heads: int, *, vocab: int = 51200, ffn: int = 0) -> Shape:
    """A GPT-2 style block: ffn 4 x hidden unless given, GELU, all heads have keys."""
    return Shape(
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=heads,
        head_dim=hidden / heads,
        ffn=ffn or 4 * hidden,
        vocab=vocab,
        source="public model configuration",
    )


def _llama(
    layers: int, hidden: int, heads: int, kv_heads: int, ffn: int, vocab: int, head_dim: int = 0
) -> Shape:
    return Shape(
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim or hidden / heads,
        ffn=ffn,
        gated=True,
        vocab=vocab,
        source="public model configuration",
    )


def _moe(
    base: Shape, experts: int, active: int, ffn: int, shared: int = 0, dense: int = 0
) -> Shape:
    return replace(
        base,
        experts=experts,
        active_experts=active,
        expert_ffn=ffn,
        shared_ffn=shared,
        dense_layers=dense,
    )


def _printed(shape: Shape, flop_per_token: float, what: str) -> Shape:
    source = f"{what}; FLOPs per token as the page prints them (TFLOP/s over tokens/s)"
    return replace(shape, flop_per_token=flop_per_token, source=source)


# Mixtures of state-space, expert and attention blocks: dense stand-ins of the right width and
# depth that carry the printed FLOPs.
_HYBRID = "stand-in for a hybrid of state-space, expert and attention blocks"
_LATENT = "stand-in for multi-head latent attention"

KNOWN: tuple[tuple[str, Shape], ...] = (
    (r"llama.?2.?7b", _llama(32, 4096, 32, 32, 11008, 32000)),
    (r"llama.?2.?13b", _llama(40, 5120, 40, 40, 13824, 32000)),
    (r"llama.?2.?70b", _llama(80, 8192, 64, 8, 28672, 32000)),
    (r"llama.?3(\.1)?.?8b", _llama(32, 4096, 32, 8, 14336, 128256)),
    (r"llama.?3(\.\d)?.?70b", _llama(80, 8192, 64, 8, 28672, 128256)),
    (r"llama.?3(\.1)?.?405b", _llama(126, 16384, 128, 8, 53248, 128256)),
    (r"internlm.?7b", _llama(32, 4096, 32, 32, 11008, 103168)),
    (r"internlm.?20b", _llama(60, 5120, 40, 40, 13824, 103168)),
    (r"mixtral.?8x7b", _moe(_llama(32, 4096, 32, 8, 14336, 32000), 8, 2, 14336)),
    (r"mixtral.?8x22b", _moe(_llama(56, 6144, 48, 8, 16384, 32768), 8, 2, 16384)),
    (r"gpt.?3.?5b", gpt(24, 4096, 32)),
    (r"gpt.?3.?20b", gpt(44, 6144, 48)),
    (r"gpt.?3.?175b", gpt(96, 12288, 96)),
    (r"nemotron.?4?.?8b", gpt(32, 4096, 32, vocab=256000)),
    (r"nemotron.?4?.?15b", replace(gpt(32, 6144, 48, vocab=256000), kv_heads=8)),
    (r"nemotron.?4?.?22b", gpt(40, 6144, 48, vocab=256000)),
    (r"nemotron.?4?.?340b", replace(gpt(96, 18432, 96, vocab=256000), kv_heads=8)),
    (r"qwen.?3.?30b", _moe(_llama(48, 2048, 32, 4, 6144, 151936, 128), 128, 8, 768)),
    (r"qwen.?3.?235b", _moe(_llama(94, 4096, 64, 4, 12288, 151936, 128), 128, 8, 1536)),
    (
        r"gpt.?oss.?120b",
        replace(
            _moe(_llama(36, 2880, 64, 8, 2880, 201088, 64), 128, 4, 2880), attention_share=0.5
        ),
    ),
    (
        r"gpt.?oss.?20b",
        replace(_moe(_llama(24, 2880, 64, 8, 2880, 201088, 64), 32, 4, 2880), attention_share=0.5),
    ),
    (
        r"deepseek.?v3",
        _printed(
            _moe(_llama(61, 7168, 128, 2, 18432, 129280, 128), 256, 8, 2048, 2048, 3),
            2.600e11,
            _LATENT,
        ),
    ),
    (
        r"kimi.?k2",
        _printed(
            _moe(_llama(61, 7168, 64, 2, 18432, 163840, 128), 384, 8, 2048, 2048, 1),
            2.046e11,
            _LATENT,
        ),
    ),
    (
        r"nemotron.?3.?nano",
        _printed(
            _moe(
                replace(
                    gpt(23, 2688, 32, vocab=131072),
                    kv_heads=2,
                    attention_share=6 / 23,
                    scan_width=4096,
                ),
                128,
                6,
                1856,
                3712,
            ),
            2.229e10,
            _HYBRID,
        ),
    ),
    (
        r"nemotron.?3.?super",
        _printed(
            _moe(
                replace(
                    gpt(40, 4096, 32, vocab=131072),
                    kv_heads=2,
                    expert_width=1024,
                    attention_share=8 / 40,
                    scan_width=8192,
                ),
                512,
                22,
                2688,
                5376,
            ),
            8.503e10,
            _HYBRID,
        ),
    ),
    (
        r"nemotron.?3.?ultra",
        _printed(
            _moe(
                replace(
                    gpt(48, 8192, 64, vocab=131072),
                    kv_heads=2,
                    expert_width=2048,
                    attention_share=12 / 48,
                    scan_width=16384,
                ),
                512,
                22,
                5120,
                10240,
            ),
            3.607e11,
            _HYBRID,
        ),
    ),
    (r"bert.?large", gpt(24, 1024, 16, vocab=30528)),
    (r"bert.?base", gpt(12, 768, 12, vocab=30528)),
    (r"opt.?350m", gpt(24, 1024, 16, vocab=50272)),
    (r"gpt.?neo.?2\.7b", gpt(32, 2560, 20, vocab=50304)),
    (r"gpt.?j.?6b", gpt(28, 4096, 16, vocab=50400)),
    (r"gpt2.?medium", gpt(24, 1024, 16)),
    (r"gpt2.?large", gpt(36, 1280, 20)),
    (r"gpt2.?xl", gpt(48, 1600, 25)),
    (r"mt.?nlg|turing.?530b", gpt(105, 20480, 128)),
    (r"tiny.?llama", _llama(22, 2048, 32, 4, 5632, 32000)),
    (r"phi.?2\b", gpt(32, 2560, 32)),
    (r"gemma.?2b", _llama(18, 2048, 8, 1, 16384, 256000, 256)),
)
"""Pattern over the lower-case model name -> shape; the first match counts."""

LADDER = (
    (0.125, 12, 768),
    (0.35, 24, 1024),
    (1.3, 24, 2048),
    (2.7, 32, 2560),
    (6.7, 32, 4096),
    (13.0, 40, 5120),
    (22.0, 44, 6144),
    (39.0, 48, 8192),
    (76.0, 60, 10240),
    (145.0, 80, 12288),
    (175.0, 96, 12288),
    (310.0, 96, 16384),
    (530.0, 105, 20480),
    (1008.0, 128, 25600),
)
"""1e9 parameters, layers and width of GPT-3 (Brown 2020, Table 2.1) and Megatron (SC21)."""
BIGSCIENCE_VOCAB = 250880
# The page prints no layer count beside these widths. Its TFLOP/s count 96 B s L h^2 without
# attention and vocabulary; solved for L they give 78.02, 77.03 and 80.02.
UNPRINTED_LAYERS = {("GPT 194B", 14400): 78, ("GPT 195B", 14400): 77, ("GPT 187B", 13824): 80}

_GATED = re.compile(r"llama|internlm|qwen|mixtral|mistral|deepseek|kimi|oss|gemma|baichuan")


def known_shape(model: str) -> Shape | None:
    """The shape of a public model, by name."""
    name = model.lower().replace("_", "-")
    for pattern, shape in KNOWN:
        if re.search(pattern, name):
            return shape
    return None


def is_gated(model: str) -> bool:
    """Whether models of this name use a gated MLP."""
    return bool(_GATED.search(model.lower()))


def shape_of_size(params_b: float) -> Shape:
    """A GPT of a given size: the nearest rung of the ladder, depth scaled to the size.

    Args:
        params_b: Parameters in 1e9.
    """
    size, layers, hidden = min(LADDER, key=lambda rung: abs(rung[0] / params_b - 1))
    depth = max(1, round(layers * params_b / size))
    shape = gpt(depth, hidden, max(1, hidden // 128))
    return replace(shape, source=f"assumed: a GPT of {params_b:g} B parameters")


def size_in_name(model: str) -> float | None:
    """Parameters in 1e9 as the name says, e.g. 39.1 for ``GPT 39.1B``."""
    found = re.search(r"(\d+(?:\.\d+)?)\s*([BMT])\b", model, re.IGNORECASE)
    if not found:
        return None
    return float(found[1]) * {"b": 1.0, "m": 1e-3, "t": 1e3}[found[2].lower()]
