"""Framework generations: which constants a run shares, and what its software does unless told."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Framework:
    """A generation of training software whose constants are taken to be common.

    Attributes:
        name: Key of its factors in a calibration.
        pattern: Over the framework column, lower case.
        source: Over the source column, empty for any.
        fused_attention: Runs flash or cuDNN fused attention.
        hopper_attention: Its fused attention uses Hopper's own instructions (cuDNN,
            FlashAttention-3); otherwise FlashAttention-2.
        sequence_parallel: Splits norms by tp when the row does not say.
        zero: ZeRO stage when the row does not say.
        recompute: What it recomputes when the row does not say; empty: decided by memory.
        splits_microbatch: The printed microbatch is one rank's batch, cut into one microbatch
            per pipeline stage (torchtitan's default).
        offloads: Its recipes move activations to the host's memory on superchips instead of
            computing them again.
        gradient_bytes: Bytes of an exchanged gradient element in 16-bit and narrower runs.
        float32_modes: Pattern over the framework column, lower case: modes that exchange gradients
            in float32 all the same; empty for none.
        fused_softmax: Attention that is not fused has one kernel for scale, mask and softmax.
        overlaps_sync: Gradients are exchanged beside the last backward pass.
        gathers_once: With pipeline stages, ZeRO-3 parameters are gathered once a step, not for
            each microbatch (torchtitan: ``fsdp_reshard_after_forward``).
        bins_sequences: Batches hold sequences of like length, padded to the longest among them.
        overlaps_tensor: Tensor parallel collectives run beside the products they belong to.
        autocasts: Runs of 16 bit or less are run under ``torch.autocast``.
    """

    name: str
    pattern: str
    source: str = ""
    fused_attention: bool = False
    hopper_attention: bool = False
    sequence_parallel: bool = False
    zero: int = 0
    recompute: str = ""
    splits_microbatch: bool = False
    offloads: bool = False
    gradient_bytes: int = 2
    float32_modes: str = ""
    fused_softmax: bool = True
    overlaps_sync: bool = False
    overlaps_tensor: bool = False
    gathers_once: bool = False
    bins_sequences: bool = False
    autocasts: bool = False

    def heads(self, hidden: int) -> int:
        """Heads when the row does not say: 64 in the BLOOM runs, else 64 wide up to 2048, 128."""
        if self.name == "bigscience":
            return 64
        return max(1, hidden // (64 if hidden <= 2048 else 128))

    def exchanged_bytes(self, text: str, *, float32: bool) -> float:
        """Bytes of an exchanged gradient element.

        Args:
            text: The framework column.
            float32: The run computes in float32, which it exchanges too.
        """
        mode = self.float32_modes and re.search(self.float32_modes, text.lower())
        return 4.0 if float32 or mode else float(self.gradient_bytes)

    def micro_batch(self, params_b: float | None) -> float:
        """Microbatch when the row does not say: that of the SC21 runs of the size, else 1."""
        if self.name != "megatron" or params_b is None:
            return 1.0
        for limit, size in ((8, 16), (20, 8), (45, 4), (160, 2)):
            if params_b <= limit:
                return float(size)
        return 1.0


GENERATIONS: tuple[Framework, ...] = (
    Framework(
        name="megatron-bridge", pattern=r"megatron-bridge",
        fused_attention=True, hopper_attention=True, sequence_parallel=True, zero=1,
        offloads=True, overlaps_sync=True, overlaps_tensor=True,
    ),
    Framework(
        # Before FlashAttention, Transformer Engine and overlapped tensor parallelism came in with
        # 23.05: conf/training of NeMo-Framework-Launcher in October 2022.
        name="nemo-2022", pattern=r"nemo.*\b22\.\d\d",
        sequence_parallel=True, zero=1, overlaps_sync=True,
    ),
    Framework(
        name="nemo", pattern=r"nemo",
        fused_attention=True, hopper_attention=True, sequence_parallel=True, zero=1,
        overlaps_sync=True, overlaps_tensor=True,
    ),
    Framework(
        # Megatron-LM has been a front end of Megatron-Core since 2023.
        name="megatron-core", pattern=r"megatron-core|megatron-lm.*\b20(?:2[3-9]|[3-9]\d)\b",
        fused_attention=True, hopper_attention=True, sequence_parallel=True, zero=1,
        overlaps_sync=True, overlaps_tensor=True,
    ),
    Framework(name="sailor", pattern=r"sailor", recompute="none"),
    Framework(name="bigscience-2021", pattern=r"megatron.*deepspeed 2021", recompute="full"),
    Framework(
        name="bigscience", pattern=r"megatron-deepspeed", source=r"bigscience", recompute="full",
    ),
    # vTrain's steps look like replayed kernel profiles: other runs of Megatron-DeepSpeed do not
    # share their rates.
    Framework(name="vtrain", pattern=r"megatron-deepspeed", source=r"vtrain", recompute="full"),
    Framework(name="megatron-deepspeed", pattern=r"megatron-deepspeed", recompute="full"),
    Framework(
        # Its ds_config.json sets fp32_allreduce; its script, Megatron-LM 1.1.5, no fusion flag.
        name="amp", pattern=r"deepspeed/megatron-lm", recompute="none",
        gradient_bytes=4, fused_softmax=False,
    ),
    Framework(name="deepspeed", pattern=r"deepspeed zero-3", zero=3, recompute="full"),
    Framework(name="megatron", pattern=r"megatron-lm", recompute="full"),
    Framework(
        # Composer's mixed precision DEFAULT reduces float32, PURE does not.
        name="fsdp1", pattern=r"llm-foundry|fms-fsdp", fused_attention=True, zero=3,
        float32_modes=r"default", overlaps_sync=True,
    ),
    Framework(name="internevo", pattern=r"internevo", fused_attention=True, recompute="none"),
    Framework(
        name="torchtitan", pattern=r"torchtitan",
        fused_attention=True, sequence_parallel=True, zero=3, splits_microbatch=True,
        gradient_bytes=4, overlaps_sync=True, gathers_once=True,
    ),
    Framework(name="nanotron", pattern=r"nanotron", fused_attention=True, recompute="none"),
    Framework(
        name="ddp", recompute="none",
        pattern=r"dle p(?:ytorch ddp|addlepaddle)|hf trainer|hf (?:transformers )?\+ deepspeed",
        fused_softmax=False, overlaps_sync=True, bins_sequences=True, autocasts=True,
    ),
)  # fmt: skip
"""In order of precedence; a new source is one entry."""

OTHER = Framework(
    name="other", pattern="", fused_attention=True, sequence_parallel=True, gathers_once=True
)
"""Software no published row calibrates: what generations since 2022 have in common. Where stages
and ZeRO-3 meet, weights stay gathered over a step's microbatches, as in Llama 3's training (2024,
section 3.3.2)."""


def framework_of(framework: str, source: str) -> Framework:
    """The generation a row belongs to; :data:`OTHER` when none is known."""
    text = framework.lower()
    for generation in GENERATIONS:
        if re.search(generation.pattern, text) and re.search(generation.source, source.lower()):
            return generation
    return OTHER
