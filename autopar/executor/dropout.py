"""Switch dropout off without touching the model: for comparing two ways of computing one step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.overrides import TorchFunctionMode

_PROBABILITY: dict[str, tuple[int, str]] = {
    "dropout": (1, "p"),
    "dropout_": (1, "p"),
    "dropout1d": (1, "p"),
    "dropout2d": (1, "p"),
    "dropout3d": (1, "p"),
    "alpha_dropout": (1, "p"),
    "alpha_dropout_": (1, "p"),
    "feature_dropout": (1, "p"),
    "feature_dropout_": (1, "p"),
    "feature_alpha_dropout": (1, "p"),
    "feature_alpha_dropout_": (1, "p"),
    "native_dropout": (1, "p"),
    "scaled_dot_product_attention": (4, "dropout_p"),
    "multi_head_attention_forward": (9, "dropout_p"),
    "lstm": (5, "dropout"),
    "gru": (5, "dropout"),
    "rnn_tanh": (5, "dropout"),
    "rnn_relu": (5, "dropout"),
}
"""Function name -> position and keyword of its dropout probability (torch 2.11 to 2.13)."""


class DropoutOff(TorchFunctionMode):
    """Within it every dropout, attention dropout and recurrent dropout has probability 0.

    Works on eager modules and on traced graphs alike. Packed-sequence recurrent calls keep their
    dropout: they have another argument order.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call ``func`` with its dropout probability replaced by 0."""
        kwargs = kwargs or {}
        name = str(getattr(func, "__name__", "")).partition(".")[0]
        place = _PROBABILITY.get(name)
        if place is not None:
            position, keyword = place
            if len(args) > position and isinstance(args[position], float | int):
                args = (*args[:position], 0.0, *args[position + 1 :])
            if keyword in kwargs:
                kwargs = {**kwargs, keyword: 0.0}
            if name.startswith(("dropout", "alpha", "feature")) and len(args) == 1:
                kwargs = {**kwargs, keyword: 0.0}  # the default probability is 0.5
        return func(*args, **kwargs)
