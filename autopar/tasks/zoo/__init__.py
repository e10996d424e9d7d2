"""The model zoo: published models at any size as tasks, and two small ones with much to learn.

The published models have synthetic data; ``shapes`` and ``chars`` reach a loss they state.
Listing the zoo imports neither torch nor the models.
"""

from __future__ import annotations

from collections.abc import Callable

from autopar.core.registry import Entry, Registry
from autopar.tasks.task import Task
from autopar.tasks.zoo.small import SMALL, small_target

ZOO: Registry[Callable[..., Task]] = Registry(
    "zoo model",
    {
        "mlp": Entry("autopar.tasks.zoo.mlp:mlp", "perceptron with two hidden layers of 10 units"),
        "resnet50": Entry("autopar.tasks.zoo.resnet:resnet50", "ResNet-50 image classifier, 26 M"),
        "efficientnet_b0": Entry(
            "autopar.tasks.zoo.efficientnet:efficientnet_b0",
            "EfficientNet-B0 image classifier, 5.3 M",
        ),
        "bert": Entry("autopar.tasks.zoo.bert:bert", "BERT base encoder for pre-training, 110 M"),
        "gpt": Entry("autopar.tasks.zoo.gpt:gpt", "GPT-2 decoder, 124 M; sizes up to 1 T"),
        "llama": Entry("autopar.tasks.zoo.llama:llama", "Llama 2 decoder, 6.7 G"),
        "transformer": Entry(
            "autopar.tasks.zoo.transformer:transformer", "BART base encoder-decoder, 139 M"
        ),
        "wavenet": Entry("autopar.tasks.zoo.wavenet:wavenet", "WaveNet model of raw audio, 30 M"),
        "vit": Entry("autopar.tasks.zoo.vit:vit", "ViT-B/16 image classifier, 87 M"),
        "moe": Entry("autopar.tasks.zoo.moe:moe", "Mixtral 8x7B mixture of experts, 47 G"),
        "dlrm": Entry("autopar.tasks.zoo.dlrm:dlrm", "MLPerf DLRM recommender, 24 G"),
        "unet": Entry("autopar.tasks.zoo.unet:unet", "U-Net segmentation, 31 M"),
        "shapes": Entry(
            "autopar.tasks.zoo.shapes:shapes", "residual classifier of drawn shapes, 0.4 M"
        ),
        "chars": Entry("autopar.tasks.zoo.chars:chars", "GPT of characters of real text, 4.8 M"),
    },
)
"""Name to the function that makes the task; its keyword arguments are the options."""


def zoo_names() -> list[str]:
    """The names of all zoo models."""
    return list(ZOO)


__all__ = ["SMALL", "ZOO", "small_target", "zoo_names"]
