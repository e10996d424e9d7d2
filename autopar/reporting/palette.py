"""One colour and one pattern per meaning (Okabe-Ito), so that colour is never the only signal."""

from __future__ import annotations

from dataclasses import dataclass

BLUE = "#0072B2"
SKY = "#56B4E9"
GREEN = "#009E73"
YELLOW = "#F0E442"
ORANGE = "#E69F00"
VERMILLION = "#D55E00"
PURPLE = "#CC79A7"
GREY = "#9AA0A6"
DARK_GREY = "#6B7178"

STAGES = (BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILLION, YELLOW)
"""Colours of stages, repeated beyond seven; the stage number is always written too."""


@dataclass(frozen=True, slots=True)
class Ink:
    """Label, colour and plotly fill pattern of one kind of thing."""

    label: str
    color: str
    pattern: str = ""


PARTS: dict[str, Ink] = {
    "forward_s": Ink("forward", BLUE),
    "backward_s": Ink("backward", ORANGE, "/"),
    "recompute_s": Ink("recompute", PURPLE, "x"),
    "collective_s": Ink("collectives between ops", YELLOW, "/"),
    "pipeline_communication_s": Ink("pipeline communication", SKY, "\\"),
    "gradient_sync_s": Ink("gradient sync", GREEN, "-"),
    "bubble_s": Ink("idle (bubble)", GREY, "."),
    "optimizer_s": Ink("optimizer", VERMILLION, "+"),
    "other_s": Ink("other", DARK_GREY, "|"),
}

EVENTS: dict[str, Ink] = {
    "forward": Ink("forward", BLUE),
    "backward": Ink("backward", ORANGE, "/"),
    "backward_input": Ink("backward, input gradients", ORANGE, "\\"),
    "backward_weight": Ink("backward, weight gradients", YELLOW, "/"),
    "recompute": Ink("recompute", PURPLE, "x"),
    "wait": Ink("waiting for a message", SKY, "\\"),
    "sync": Ink("gradient sync", GREEN, "-"),
    "optimizer": Ink("optimizer", VERMILLION, "+"),
    "idle": Ink("idle (bubble)", GREY, "."),
    "other": Ink("other", DARK_GREY, "|"),
}

MEMORY: dict[str, Ink] = {
    "parameters_bytes": Ink("parameters", BLUE),
    "gradients_bytes": Ink("gradients", GREEN, "-"),
    "optimizer_bytes": Ink("optimizer state", VERMILLION, "+"),
    "activations_bytes": Ink("activations", ORANGE, "/"),
    "transient_bytes": Ink("workspace", PURPLE, "x"),
    "communication_bytes": Ink("communication buffers", SKY, "\\"),
    "framework_bytes": Ink("framework", GREY, "."),
    "allocator_bytes": Ink("allocator margin", DARK_GREY, "|"),
}


def stage_color(stage: int) -> str:
    """Colour of a stage; grey when it has none."""
    return STAGES[stage % len(STAGES)] if stage >= 0 else GREY
