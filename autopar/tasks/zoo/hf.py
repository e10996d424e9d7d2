"""Model classes of ``transformers``, built from their configs so that their graphs are clean.

Nothing is downloaded: weights are random. Three things would clutter an exported graph and are
replaced here: mask building (forty operations that a causal kernel does not need), dropout of
probability zero, and rotary tables (a buffer without a file behind it, inside ``no_grad``).
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from autopar.core.errors import EnvironmentUnableError

ATTENTION = "autopar_sdpa"


def require_transformers(model: str) -> None:
    """Check that the optional package is there, without paying for its import.

    Args:
        model: Zoo name of the model that needs it.

    Raises:
        EnvironmentUnableError: ``transformers`` is not installed.
    """
    if "transformers" in sys.modules:
        present = sys.modules["transformers"] is not None
    else:
        present = importlib.util.find_spec("transformers") is not None
    if not present:
        raise EnvironmentUnableError(
            f"zoo:{model} needs the package 'transformers', which is not installed",
            hint="pip install 'autopar[zoo]'",
        )


def build(model_class: str, config_class: str, **config: Any) -> Any:
    """A model of ``transformers`` with random weights, in training mode.

    Args:
        model_class: Name of the model class.
        config_class: Name of its config class.
        **config: Arguments of the config.
    """
    import transformers

    transformers.AttentionInterface.register(ATTENTION, attention)
    kind = getattr(transformers, model_class)
    if kind._supports_sdpa:
        config["attn_implementation"] = ATTENTION
    model = kind(getattr(transformers, config_class)(**config))
    model.train()
    _remove_idle_dropout(model)
    return model


def attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Scaled dot product attention for the attention registry of ``transformers``.

    A name without a mask builder makes the models pass no mask, or the one they were given, so
    causal models reach the kernel with ``is_causal`` and padded ones with their own small mask.

    Args:
        module: The attention layer; ``is_causal`` is read from it.
        query: ``[n, heads, tokens, width]``.
        key: ``[n, kv_heads, tokens, width]``.
        value: ``[n, kv_heads, tokens, width]``.
        attention_mask: True where a key may be seen, broadcastable over the scores, or None.
        dropout: Probability of dropping a weight.
        scaling: Factor of the scores; None for one over the root of the width.

    Returns:
        ``[n, tokens, heads, width]`` and no weights.
    """
    mixed = functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=attention_mask,
        dropout_p=dropout,
        is_causal=attention_mask is None and bool(getattr(module, "is_causal", False)),
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return mixed.transpose(1, 2), None


def key_mask(mask: torch.Tensor) -> torch.Tensor:
    """Turn a padding mask into what attention takes.

    Args:
        mask: 1 for a token and 0 for padding, ``int64[n, keys]``.

    Returns:
        True for a token, ``bool[n, 1, 1, keys]``.
    """
    return mask.bool()[:, None, None, :]


class Logits(nn.Module):
    """Calls a model with one positional input and returns only its logits.

    Args:
        network: The model.
        **fixed: Arguments it always gets.
    """

    def __init__(self, network: nn.Module, **fixed: Any) -> None:
        super().__init__()
        self.network = network
        self.fixed = fixed

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """The logits; their shape depends on the model."""
        logits: torch.Tensor = self.network(inputs, **self.fixed).logits
        return logits


class Rotary(nn.Module):
    """Rotary position tables, computed from the shapes alone: no buffer, no gradient.

    Args:
        width: Width of one attention head.
        theta: Base of the frequencies.
    """

    def __init__(self, width: int, theta: float) -> None:
        super().__init__()
        self.width = width
        self.theta = theta

    def forward(
        self, x: torch.Tensor, position_ids: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines, ``[1, tokens, width]`` each.

        Args:
            x: Hidden states, for their type and device.
            position_ids: ``int64[1, tokens]``.
        """
        exponent = torch.arange(0, self.width, 2, dtype=torch.float32, device=x.device)
        frequency = torch.pow(self.theta, -exponent / self.width)
        angle = position_ids[..., None].float() * frequency
        angle = torch.cat((angle, angle), dim=-1)
        return angle.cos().to(x.dtype), angle.sin().to(x.dtype)


class NoDropout(nn.Identity):
    """Stands for a dropout of probability zero, which would only add operations to the graph."""

    p = 0.0


def drop_buffers(module: nn.Module, names: Sequence[str]) -> None:
    """Delete buffers that the forward pass does not use.

    They are not in the state dict, so a model built under the meta device could not fill them.

    Args:
        module: Their owner.
        names: Their names.
    """
    for name in names:
        delattr(module, name)


def _remove_idle_dropout(model: nn.Module) -> None:
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.Dropout) and child.p == 0.0:
                setattr(parent, name, NoDropout())
