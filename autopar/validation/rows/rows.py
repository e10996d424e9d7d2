"""Rows made complete: one published run with every quantity that a formula needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from autopar.validation.rows.platform import Platform
from autopar.validation.rows.shapes import Shape


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One published run, complete.

    Attributes:
        id: Name in the CSV.
        family: Source it was read in.
        group: Runs that share model, devices and count; cross-validation keeps them together.
        choice: Runs that are alternatives to each other: same model shape, devices, batch.
        fingerprint: Hash of the configuration.
        model: Name as printed.
        framework: Framework generation, the key of its constants.
        platform: Device and links.
        shape: Transformer.
        devices: Number of devices.
        devices_per_node: Devices that share a node.
        intra_bytes_per_s: Link rate inside a node, per device and direction.
        inter_bytes_per_s: Link rate of a node, per direction.
        network_assumed: The run spans nodes, and nothing states their network.
        seq: Sequence length.
        dp: Data parallel degree, without cp.
        tp: Tensor parallel degree.
        pp: Pipeline stages.
        vpp: Model chunks per stage.
        cp: Context parallel degree.
        ep: Expert parallel degree.
        micro_batch: Sequences per microbatch and replica.
        microbatches: Per step.
        global_batch: Sequences per step.
        zero: ZeRO stage, 0 to 3.
        zero_ranks: Ranks that share the sharded states.
        recompute: ``none``, ``selective`` or ``full``.
        precision: One of :data:`~autopar.validation.rows.platform.PRECISIONS`.
        block_scaled: MXFP8.
        row_scaled: Float8 with a scale per row of an operand, not per tensor.
        autocast: ``torch.autocast`` keeps activations between products in float32.
        fused_attention: Flash or cuDNN fused attention.
        older_attention: FlashAttention-2 on a device whose instructions it does not use.
        sequence_parallel: Norms and residuals are split by tp too.
        gradient_bytes: Bytes of an exchanged gradient element.
        fused_softmax: Attention that is not fused has one kernel for scale, mask and softmax.
        overlaps_sync: Gradients are exchanged beside the last backward pass.
        overlaps_tensor: Tensor parallel collectives run beside the products they belong to.
        gathers_once: ZeRO-3 parameters are gathered once a step, not for each microbatch.
        lora: Only adapters are trained.
        head_share: Part of the tokens that reach the vocabulary projection.
        stage_layers: Blocks of the first, the largest middle and the last stage.
        mode: Gradient exchange as printed, for the data parallel benchmark.
        weight: Weight in a fit: below 1 for what the source calls noisy or incomplete.
        measured_s: Step time, ``None`` when the row has none.
        measured_memory_bytes: Peak memory, ``None`` when the row has none.
        out_of_memory: The run failed for memory.
        assumed: What the row does not say and was filled in.
        printed: Cells as printed, for facts only the memory model needs (gradient precision,
            capacity in the device name, microbatch counts in the notes); never a result.
    """

    id: str
    family: str
    group: str
    choice: str
    fingerprint: str
    model: str
    framework: str
    platform: Platform
    shape: Shape
    devices: int
    devices_per_node: int
    intra_bytes_per_s: float
    inter_bytes_per_s: float
    network_assumed: bool
    seq: int
    dp: int
    tp: int
    pp: int
    vpp: int
    cp: int
    ep: int
    micro_batch: float
    microbatches: float
    global_batch: float
    zero: int
    zero_ranks: int
    recompute: str
    precision: str
    block_scaled: bool
    row_scaled: bool
    autocast: bool
    fused_attention: bool
    older_attention: bool
    sequence_parallel: bool
    gradient_bytes: float
    fused_softmax: bool
    overlaps_sync: bool
    overlaps_tensor: bool
    gathers_once: bool
    lora: bool
    head_share: float
    stage_layers: tuple[float, float, float]
    weight: float
    measured_s: float | None
    measured_memory_bytes: float | None
    out_of_memory: bool
    assumed: tuple[str, ...] = ()
    printed: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Unpriced:
    """A row without a prediction, and why."""

    id: str
    family: str
    reason: str
