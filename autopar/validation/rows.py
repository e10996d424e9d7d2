"""Rows made complete: every quantity the formula needs, or the reason why a row has no price.

Nothing here reads a measured column, except to say what the prediction is compared with.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from autopar.calibration.table import architecture
from autopar.validation.frameworks import Framework, framework_of
from autopar.validation.platform import Platform, cloud_bytes_per_s, find_platform
from autopar.validation.shapes import (
    BIGSCIENCE_VOCAB,
    PAD,
    UNPRINTED_LAYERS,
    Shape,
    gpt,
    is_gated,
    known_shape,
    shape_of_size,
    size_in_name,
)
from autopar.validation.table import Entry

RECOMPUTE_MARGIN = 1.35
"""A run whose recompute is not stated recomputes when it would not fit by this factor; the
margin is the error of the memory estimate."""


PRINTED = ("gpu", "precision", "recompute", "zero_or_fsdp", "notes")
"""Columns that rows keep as text."""


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
        software: Framework text as printed.
        platform: Device and links.
        shape: Transformer.
        devices: Number of devices.
        devices_per_node: Devices that share a node.
        intra_bytes_per_s: Link rate inside a node, per device and direction.
        inter_bytes_per_s: Link rate of a node, per direction.
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
        precision: One of :data:`~autopar.validation.platform.PRECISIONS`.
        block_scaled: MXFP8.
        fused_attention: Flash or cuDNN fused attention.
        older_attention: FlashAttention-2 on a device whose instructions it does not use.
        sequence_parallel: Norms and residuals are split by tp too.
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
    software: str
    platform: Platform
    shape: Shape
    devices: int
    devices_per_node: int
    intra_bytes_per_s: float
    inter_bytes_per_s: float
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
    fused_attention: bool
    older_attention: bool
    sequence_parallel: bool
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


class UnpriceableError(Exception):
    """A row lacks something no table can supply; the message is the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _PrintedPlan:
    """Degrees and batch of a row."""

    devices: int
    dp: int
    tp: int
    pp: int
    vpp: int
    cp: int
    ep: int
    micro_batch: float
    microbatches: float
    global_batch: float


@dataclass
class _Notes:
    """What was filled in, collected while a row is completed."""

    texts: list[str] = field(default_factory=list)

    def say(self, text: str) -> None:
        self.texts.append(text)


def complete(entries: Sequence[Entry]) -> tuple[list[Row], list[Unpriced]]:
    """Complete what can be completed.

    Args:
        entries: Lines of a CSV.

    Returns:
        Rows to price, and the others with the reason; no line is lost.
    """
    rows: list[Row] = []
    unpriced: list[Unpriced] = []
    for entry in entries:
        try:
            rows.append(_row(entry))
        except UnpriceableError as error:
            unpriced.append(Unpriced(id=entry.id, family=entry.family, reason=str(error)))
    return rows, unpriced


def _row(entry: Entry) -> Row:
    notes = _Notes()
    framework = framework_of(entry.text("framework"), entry.text("source"))
    platform = find_platform(entry.text("gpu"))
    if platform is None:
        raise UnpriceableError(f"device '{entry.text('gpu')}' is not in the catalogue")
    if platform.note:
        notes.say(platform.note)
    shape = _shape(entry, framework, notes)
    plan = _plan(entry, framework, notes)
    precision = _precision(entry, platform, framework, notes)
    seq = _whole(entry, "seq", None)
    zero, zero_ranks = _zero(entry, framework, plan, notes)
    row = Row(
        id=entry.id,
        family=entry.family,
        group=f"{entry.text('model')}|{entry.text('gpu')}|{plan.devices}",
        choice="|".join(
            str(part)
            for part in (
                shape.layers,
                shape.hidden,
                shape.heads,
                seq,
                entry.text("gpu"),
                plan.devices,
                plan.global_batch,
                framework.name,
                precision,
            )
        ),
        fingerprint=entry.fingerprint,
        model=entry.text("model"),
        framework=framework.name,
        software=entry.text("framework"),
        platform=platform,
        shape=shape,
        devices_per_node=_whole(entry, "gpus_per_node", platform.devices_per_node),
        intra_bytes_per_s=_rate(entry, "intra_gbps", platform.intra_bytes_per_s),
        inter_bytes_per_s=_rate(
            entry,
            "inter_gbps",
            cloud_bytes_per_s(entry.text("notes")) or platform.inter_bytes_per_s,
        ),
        seq=seq,
        devices=plan.devices,
        dp=plan.dp,
        tp=plan.tp,
        pp=plan.pp,
        vpp=plan.vpp,
        cp=plan.cp,
        ep=plan.ep,
        micro_batch=plan.micro_batch,
        microbatches=plan.microbatches,
        global_batch=plan.global_batch,
        zero=zero,
        zero_ranks=zero_ranks,
        recompute="none",
        precision=precision,
        block_scaled="MX" in entry.text("precision").upper(),
        fused_attention=framework.fused_attention,
        older_attention=not framework.hopper_attention
        and architecture(platform.device) in ("hopper", "blackwell"),
        sequence_parallel=_sequence_parallel(entry, framework, plan),
        lora="lora" in (entry.text("model") + entry.text("notes")).lower(),
        head_share=_head_share(entry, seq),
        stage_layers=stage_layers(shape.layers, plan.pp, entry.text("notes")),
        weight=_weight(entry),
        measured_s=entry.positive("step_time_s"),
        measured_memory_bytes=_memory(entry),
        out_of_memory=bool(re.search("oom", entry.text("metric_value"), re.IGNORECASE)),
        printed={name: entry.text(name) for name in PRINTED},
    )
    return replace(
        row, recompute=_recompute(entry, framework, row, notes), assumed=tuple(notes.texts)
    )


def _whole(entry: Entry, column: str, default: int | None) -> int:
    value = entry.positive(column)
    if value is None:
        if default is None:
            raise UnpriceableError(f"no {column}")
        return default
    if value < 1:
        raise UnpriceableError(f"{column} is {value:g}, at least 1 is needed")
    return round(value)


def _shape(entry: Entry, framework: Framework, notes: _Notes) -> Shape:
    model = entry.text("model")
    known = known_shape(model)
    hidden, layers = entry.positive("hidden"), entry.positive("layers")
    if hidden and not layers:
        layers = UNPRINTED_LAYERS.get((model, round(hidden)))
        if layers:
            notes.say(f"{layers} layers: the printed TFLOP/s solved for the layer count")
    if hidden and layers:
        return _stated(entry, framework, round(layers), round(hidden), known)
    if known is not None:
        notes.say(f"shape: {known.source}")
        return known
    size = entry.positive("params_b") or size_in_name(model)
    if size is None or "resnet" in model.lower():
        raise UnpriceableError(f"shape of '{model}' is neither stated nor known")
    guess = shape_of_size(size)
    notes.say(f"shape: {guess.source}")
    return guess


def _stated(
    entry: Entry, framework: Framework, layers: int, hidden: int, known: Shape | None
) -> Shape:
    """The shape the row states, completed from the known model of the same width."""
    same = known if known is not None and known.hidden == hidden else None
    heads = entry.positive("heads") or (same.heads if same else framework.heads(hidden))
    ffn = entry.positive("ffn") or (same.ffn if same else 4 * hidden)
    vocab = entry.positive("vocab") or (same.vocab if same else _default_vocab(entry))
    stated = gpt(layers, hidden, max(1, round(heads)), vocab=round(vocab), ffn=round(ffn))
    return replace(
        same or stated,
        layers=layers,
        hidden=hidden,
        heads=stated.heads,
        kv_heads=round(entry.positive("kv_heads") or (same.kv_heads if same else stated.heads)),
        head_dim=same.head_dim if same and same.heads == stated.heads else stated.head_dim,
        ffn=stated.ffn,
        vocab=stated.vocab,
        gated=is_gated(entry.text("model")),
        source="stated by the row",
    )


def _default_vocab(entry: Entry) -> int:
    if "vocab ~250k" in entry.text("notes") or "bigscience" in entry.text("source"):
        return BIGSCIENCE_VOCAB if "tr11" in entry.text("source") else 51200
    return -(-50257 // PAD) * PAD


def _plan(entry: Entry, framework: Framework, notes: _Notes) -> _PrintedPlan:
    devices = _whole(entry, "gpus", None)
    tp, pp = _whole(entry, "tp", None), _whole(entry, "pp", None)
    cp = _whole(entry, "cp", 1)
    model_ranks = tp * pp * cp
    dp = _whole(entry, "dp", max(1, devices // model_ranks))
    if dp * model_ranks != devices:
        if devices % model_ranks:
            raise UnpriceableError(
                f"tp {tp} x pp {pp} x cp {cp} does not divide {devices} devices"
            )
        notes.say(f"dp {devices // model_ranks}, not the printed {dp}: the product counts")
        dp = devices // model_ranks
    micro = entry.positive("micro_batch")
    batch = entry.positive("global_batch")
    if micro is None:
        micro = framework.micro_batch(
            entry.positive("params_b") or size_in_name(entry.text("model"))
        )
        notes.say(f"microbatch {micro:g} assumed")
    if batch is None:
        batch = micro * dp
        notes.say("one microbatch per step assumed")
    if pp > 1 and framework.splits_microbatch and micro * dp >= batch:
        micro = max(1.0, micro / pp)
        notes.say("microbatches per step = stages, the framework's default")
    vpp = entry.positive("vpp")
    if vpp is None:
        vpp = 2 if "interleaved" in entry.text("notes").lower() and pp > 1 else 1
    return _PrintedPlan(
        devices=devices,
        dp=dp,
        tp=tp,
        pp=pp,
        vpp=round(max(1, vpp)),
        cp=cp,
        ep=_whole(entry, "ep", 1),
        micro_batch=micro,
        microbatches=max(1.0, batch / (micro * dp)),
        global_batch=batch,
    )


def _rate(entry: Entry, column: str, default: float) -> float:
    """Bytes per second of a column in Gbit/s."""
    value = entry.positive(column)
    return value * 1e9 / 8 if value else default


def _precision(entry: Entry, platform: Platform, framework: Framework, notes: _Notes) -> str:
    text = entry.text("precision").lower()
    if "fp4" in text:
        name = "float4"
    elif "fp8" in text or "float8" in text:
        name = "float8"
    elif "tf32" in text:
        name = "tf32"
    elif "fp32" in text and "amp" not in text:
        name = "float32"
    else:
        name = "float16"
        if not text:
            notes.say("16-bit products assumed")
    if name not in platform.peak_flop_per_s:
        raise UnpriceableError(f"{platform.device} has no {name} products in the catalogue")
    return name


def _zero(
    entry: Entry, framework: Framework, plan: _PrintedPlan, notes: _Notes
) -> tuple[int, int]:
    """ZeRO stage and the ranks it spreads over."""
    text = entry.text("zero_or_fsdp").lower()
    ranks = round(plan.dp * plan.cp)
    within = re.search(r"within (\d+)", text)
    if within:
        ranks = min(ranks, int(within[1]))
    if "hsdp" in text:
        return 3, min(ranks, 8)
    if "shard_grad_op" in text:
        return 2, ranks
    if "fsdp" in text or "full_shard" in text:
        return 3, ranks
    stage = re.search(r"zero-?\s?([0-3])", text)
    if stage:
        return int(stage[1]), ranks
    if "distributed optimizer" in text:
        return 1, ranks
    if not text and framework.zero:
        notes.say(f"ZeRO-{framework.zero} assumed, the framework's default")
    return framework.zero if text == "" else 0, ranks


def _sequence_parallel(entry: Entry, framework: Framework, plan: _PrintedPlan) -> bool:
    stated = entry.number("sp")
    return plan.tp > 1 and (framework.sequence_parallel if stated is None else stated > 0)


def _head_share(entry: Entry, seq: int) -> float:
    """Masked language models project the masked tokens only; fine-tuning for answers none."""
    if "bert" not in entry.text("model").lower():
        return 1.0
    return 0.0 if "SQuAD" in entry.text("notes") else 0.16 if seq <= 512 else 1.0


def stage_layers(layers: int, pp: int, notes: str) -> tuple[float, float, float]:
    """Blocks of the first, the largest middle and the last stage.

    Printed stage lists count embedding and head as units. Without one, ``layers + 2`` divisible
    by ``pp`` means that embedding and head take a block's place each; else the remainder goes to
    the middle stages.
    """
    if pp == 1:
        return float(layers), 0.0, float(layers)
    printed = _printed_stages(layers, pp, notes)
    if printed is not None:
        middle = max(printed[1:-1], default=0.0)
        return printed[0], middle, printed[-1]
    if (layers + 2) % pp == 0 and layers % pp:
        most = (layers + 2) / pp
        return most - 1, most if pp > 2 else 0.0, most - 1
    most, least = -(-layers // pp), layers // pp
    return (
        (float(least) if pp > 2 else float(most)),
        (float(most) if pp > 2 else 0.0),
        float(least),
    )


def _printed_stages(layers: int, pp: int, notes: str) -> list[float] | None:
    cuts = re.search(r"layer partition \[([\d, ]+)\]", notes)
    counts = re.search(r"stages \[([\d, ]+)\] layers", notes)
    if cuts:
        bounds = [int(x) for x in cuts[1].split(",")]
        pad = (bounds[-1] - layers) // 2
        inner = [min(max(b - pad, 0), layers) for b in bounds]
        stages = [float(b - a) for a, b in itertools.pairwise(inner)]
    elif counts:
        stages = [float(x) for x in counts[1].split(",")]
        extra = (sum(stages) - layers) / 2
        stages[0] -= extra
        stages[-1] -= extra
    else:
        return None
    return stages if len(stages) == pp else None


def _recompute(entry: Entry, framework: Framework, row: Row, notes: _Notes) -> str:
    text = entry.text("recompute").lower()
    for name in ("selective", "full", "none"):
        if name in text:
            return name
    if framework.recompute:
        notes.say(f"recompute {framework.recompute} assumed, the framework's usual setting")
        return framework.recompute
    if row.platform.shares_host_memory and framework.offloads:
        notes.say("recompute none assumed: the framework's recipes offload to the host's memory")
        return "none"
    needs = kept_bytes(row) > RECOMPUTE_MARGIN * row.platform.memory_bytes
    notes.say(f"recompute {'full' if needs else 'none'} assumed, by memory")
    return "full" if needs else "none"


def kept_bytes(row: Row) -> float:
    """Rough bytes of a device without recompute: states and activations in flight.

    Used only to decide whether a run whose page does not say must have recomputed; the memory
    model is :mod:`autopar.validation.memory`.
    """
    s = row.shape
    wide = s.heads * s.head_dim
    keys = s.kv_heads * s.head_dim
    width = s.active_experts * s.expert_ffn + s.shared_ffn if s.experts else s.ffn
    matrices = 2 + s.gated
    held = s.experts * s.expert_ffn / row.ep + s.shared_ffn if s.experts else s.ffn
    attention = s.hidden * (2 * wide + 2 * keys)
    block = (attention + held * s.hidden * matrices) / row.tp
    params = block * s.layers / row.pp + s.vocab * s.hidden / row.tp
    state = (6 if row.zero < 3 else 6 / row.zero_ranks) + 12 / (row.zero_ranks if row.zero else 1)
    if row.lora:
        state = 2.0 / (row.zero_ranks if row.zero == 3 else 1)  # frozen weights, nothing else
    tokens = row.micro_batch * row.seq / row.cp
    split = row.tp if row.sequence_parallel else 1
    kept = tokens * 2 * (5 * s.hidden / split + (2 * wide + 2 * keys + matrices * width) / row.tp)
    if not row.fused_attention:
        kept += 5 * tokens * s.heads * row.seq / row.tp
    flight = min(row.microbatches, row.pp) * (
        1 + (row.pp - 1) / (row.pp * row.vpp) * (row.vpp > 1)
    )
    return params * state + kept * s.layers / row.pp * flight


def _weight(entry: Entry) -> float:
    """Fits trust complete rows most: [A] 1, [B] something assumed 0.5, [C] noisy 0.2."""
    note = entry.text("notes")
    return 0.2 if note.startswith("[C") else 0.5 if note.startswith("[B") else 1.0


def _memory(entry: Entry) -> float | None:
    gib = entry.positive("peak_mem_gib")
    if gib is None:
        return None
    unit = 1e9 if "printed as GB" in entry.text("notes") else 1024**3
    return gib * unit
