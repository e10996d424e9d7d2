"""Realistic documents for report tests: a GPT-like profile, priced plans, a perturbed run."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import cache
from itertools import pairwise

from autopar.cluster import Cluster
from autopar.cluster.parse import parse_cluster
from autopar.cost import price, simulate_plan
from autopar.graph import (
    Amount,
    Block,
    BlockCurve,
    BlockEdge,
    GraphProfile,
    Measurement,
    Op,
    OpEdge,
    OptimizerState,
)
from autopar.plans import Mesh, Plan, Stage, TaskRef
from autopar.results import (
    BenchResult,
    BenchRow,
    Certificate,
    CostBreakdown,
    Event,
    RankedPlan,
    Rejection,
    RunRecord,
    SearchResult,
    Timeline,
    VerifyResult,
)

PROVENANCE = {
    "autopar": "0.1.0",
    "python": "3.11.9",
    "packages": {"torch": "2.13.0", "optuna": "5.0.0"},
    "host": "node-a",
    "system": "Linux 6.1 x86_64",
    "cpu_count": 64,
    "command": ["autopar", "run", "plan.json", "--verify"],
    "created": "2026-11-24T10:00:00+00:00",
}

OPS_PER_LAYER = ("layer_norm", "addmm", "scaled_dot_product_attention", "addmm", "addmm", "gelu")


def gpt_profile(
    layers: int = 12, hidden: int = 768, name: str = "gpt", measured: bool = True
) -> GraphProfile:
    """A decoder with embedding, equal layers and a head, tied weights between the ends."""
    seq, vocab = 512, 50257
    names = ["wte", *(f"h.{i}" for i in range(layers)), "lm_head"]
    ops: list[Op] = []
    blocks: list[Block] = []
    parameters = {"wte.weight": (vocab * hidden, vocab * hidden * 4)}
    for index, module in enumerate(names):
        layer = module.startswith("h.")
        first = len(ops)
        targets = (
            OPS_PER_LAYER if layer else ("embedding",) if index == 0 else ("mm", "cross_entropy")
        )
        weight = 12 * hidden**2 if layer else vocab * hidden
        flop = 2.0 * weight * seq if index else 0.0
        if layer:
            parameters[f"{module}.weight"] = (weight, weight * 4)
        for target in targets:
            share = flop / len(targets)
            ops.append(
                Op(
                    index=len(ops),
                    name=f"{target}_{len(ops)}",
                    target=f"aten.{target}.default",
                    module=f"transformer.{module}",
                    forward_flop=Amount(0.0, share),
                    backward_flop=Amount(0.0, 2 * share),
                    forward_bytes=Amount(weight * 4 / len(targets), 8.0 * seq * hidden),
                    saved_bytes=Amount(0.0, 4.0 * seq * hidden),
                    output_bytes=Amount(0.0, 4.0 * seq * hidden),
                )
            )
        mine = ops[first:]
        blocks.append(
            Block(
                index=index,
                name=f"transformer.{module}",
                first_op=first,
                stop_op=len(ops),
                signature="layer" if layer else module,
                forward_flop=Amount.total([op.forward_flop for op in mine]),
                backward_flop=Amount.total([op.backward_flop for op in mine]),
                forward_bytes=Amount.total([op.forward_bytes for op in mine]),
                backward_bytes=Amount.total([op.forward_bytes for op in mine]),
                saved_bytes=Amount.total([op.saved_bytes for op in mine]),
                boundary_bytes=Amount(0.0, 4.0 * seq * hidden),
                peak_transient_bytes=Amount(0.0, 16.0 * seq * hidden),
                parameters=(f"{module}.weight",) if layer else ("wte.weight",),
                parameter_bytes=weight * 4.0,
                kernels=len(mine),
            )
        )
    size = Amount(0.0, 4.0 * seq * hidden)
    edges = [
        OpEdge(
            producer=i,
            consumer=i + 1,
            size_bytes=size,
            needs_gradient=True,
            shape=(8, seq, hidden),
        )
        for i in range(len(ops) - 1)
    ]
    block_edges = [
        BlockEdge(
            tensor=b.stop_op - 1,
            producer=b.index,
            consumer=b.index + 1,
            size_bytes=size,
            needs_gradient=True,
        )
        for b in blocks[:-1]
    ]
    profile = GraphProfile(
        task=name,
        target="zoo:gpt",
        fingerprint="f" * 16,
        batch=8,
        device="cpu" if measured else "a100-80gb-sxm",
        parameters=parameters,
        buffer_bytes=4096.0,
        input_bytes=8.0 * seq,
        ops=tuple(ops),
        edges=tuple(edges),
        blocks=tuple(blocks),
        block_edges=tuple(block_edges),
        optimizer=OptimizerState(name="AdamW", state_bytes_per_parameter_byte=2.0),
        uncounted={"aten.gelu.default": "elementwise; its bytes are counted"},
        provenance=PROVENANCE,
    )
    return replace(profile, measurement=_measurement(profile)) if measured else profile


def _measurement(profile: GraphProfile) -> Measurement:
    curves = {}
    for block in profile.blocks:
        work = block.forward_flop.per_sample / 9e10 + 2e-4
        points = [(float(n), work * n * 0.9 + 4e-4, work * n * 1.9 + 7e-4) for n in (1, 2, 4, 8)]
        curves[block.signature] = BlockCurve(points=tuple(points))
    return Measurement(
        device="Example CPU, 2 threads",
        busy_ranks=4,
        threads=2,
        curves=curves,
        composition=((1.0, 1.03), (8.0, 1.01)),
        optimizer_s=0.021,
        optimizer_s_per_byte=4e-11,
        zero_grad_s=0.004,
        resident_bytes=3.1e8,
        spread=0.06,
    )


def gpt_plan(
    profile: GraphProfile,
    *,
    dp: int = 2,
    pp: int = 2,
    schedule: str = "1f1b",
    microbatches: int = 8,
    size: int = 2,
    cluster: str = "",
) -> Plan:
    """A plan with equal numbers of blocks per stage."""
    names = [block.name for block in profile.blocks]
    borders = [len(names) * i // pp for i in range(pp + 1)]
    first_ops = [*(block.first_op for block in profile.blocks), len(profile.ops)]
    stages = tuple(
        Stage(first_op=first_ops[a], stop_op=first_ops[b], pp=i, blocks=tuple(names[a:b]))
        for i, (a, b) in enumerate(pairwise(borders))
    )
    task = TaskRef(
        name=profile.task,
        target=profile.target,
        fingerprint=profile.fingerprint,
        op_count=len(profile.ops),
    )
    return Plan(
        task=task,
        mesh=Mesh(dp_replicate=dp, pp=pp),
        stages=stages,
        schedule=schedule if pp > 1 else "none",
        microbatches=microbatches,
        microbatch_size=size,
        cluster=cluster,
    )


@cache
def cluster() -> Cluster:
    return parse_cluster("4x1:t4")


@cache
def profile() -> GraphProfile:
    return gpt_profile(measured=False)


@cache
def measured_profile() -> GraphProfile:
    return gpt_profile(measured=True)


def ranked(**options: int | str) -> RankedPlan:
    plan = gpt_plan(profile(), cluster="4x1:t4", **options)  # type: ignore[arg-type]
    return RankedPlan(plan=plan, price=price(plan, profile(), cluster()))


@cache
def search_result() -> SearchResult:
    """A search over real prices."""
    pool = [ranked(dp=2, pp=2, microbatches=m, size=16 // m) for m in (2, 4, 8, 16)]
    pool += [ranked(dp=1, pp=4, microbatches=m, size=32 // m) for m in (4, 8, 16)]
    pool += [ranked(dp=4, pp=1, microbatches=m, size=8 // m) for m in (1, 2, 4)]
    pool += [ranked(dp=2, pp=2, schedule="gpipe", microbatches=8, size=2)]
    best_first = sorted(pool, key=lambda item: item.price.step_time_s.value)
    history, best = [], float("inf")
    for trial, item in enumerate(pool):
        value = item.price.step_time_s.value
        best = min(best, value)
        history.append((trial, value, best, item.name))
    return SearchResult(
        best=best_first[0],
        top=tuple(best_first[:6]),
        baselines={
            "data parallel": ranked(dp=4, pp=1, microbatches=1, size=8),
            "pipeline": ranked(dp=1, pp=4, microbatches=8, size=4),
            "single device": Rejection(
                name="single", reason="memory", detail="needs 19.2 GiB, one t4 has 14.6 GiB"
            ),
        },
        certificate=Certificate(
            space=1416, rejected={"memory": 512, "batch": 391}, bounded=502, priced=11, gap=0.0
        ),
        search_time_s=0.83,
        objective="step time",
        explanation=(
            f"{best_first[0].name} wins because it synchronises gradients over pairs only and "
            "keeps the pipeline short.",
            f"The runner-up {best_first[1].name} spends more time idle; its range overlaps.",
            "With a link twice as fast, plain data parallel would be as fast.",
        ),
        history=tuple(history),
        warnings=("link efficiency of pcie3 is assumed, not measured",),
        profile={"task": "gpt", "parameters": profile().parameter_count, "hash": profile().hash},
        cluster={"name": "4x1:t4", "devices": 4, "hash": cluster().hash},
        study_name="gpt-4x1",
    )


def measured_timeline(
    plan: Plan, predicted: Timeline, factor: float = 1.06, seed: int = 1
) -> Timeline:
    """The simulated step stretched, with jitter, for every rank of every replica."""
    draw = random.Random(seed)
    events = []
    for rank in range(plan.world_size):
        coordinates = plan.mesh.coordinates(rank)
        leader = plan.mesh.rank(**{**coordinates, "dp_replicate": 0})
        clock = 0.0
        for event in sorted(
            (e for e in predicted.events if e.rank == leader), key=lambda e: e.start_s
        ):
            start = max(clock, event.start_s * factor)
            clock = start + (event.end_s - event.start_s) * draw.uniform(0.9, 1.0) * factor
            events.append(replace(event, rank=rank, start_s=start, end_s=clock))
    return Timeline(events=tuple(sorted(events, key=lambda e: e.start_s)), source="measured")


def run_record(item: RankedPlan | None = None, *, factor: float = 1.06, seed: int = 1,
               verify: bool | None = True) -> RunRecord:  # fmt: skip
    """A run whose step takes ``factor`` times the prediction."""
    item = item or ranked(dp=2, pp=2, microbatches=8, size=2)
    draw = random.Random(seed)
    step = item.price.step_time_s.value * factor
    parts = item.price.breakdown.to_dict()
    parts.pop("total_s")
    breakdown = CostBreakdown(
        **{key: value * draw.uniform(1.0, 1.12) for key, value in parts.items()}
    )
    ranks = item.plan.world_size
    result = None
    if verify is not None:
        result = VerifyResult(
            passed=verify, loss_rel=2.1e-7, grad_rel=8.8e-7 if verify else 3e-2,
            weight_rel=3.2e-8, buffer_rel=0.0, tolerance=1e-5,
        )  # fmt: skip
    return RunRecord(
        plan=item.plan.with_predicted(item.price.to_dict()),
        step_times_s=tuple(step * draw.lognormvariate(0, 0.02) for _ in range(40)),
        warmup_step_times_s=(step * 2.4, step * 1.2, step * 1.05),
        losses=tuple(10.8 * 0.985**i + draw.uniform(-0.1, 0.1) for i in range(43)),
        breakdown=breakdown,
        peak_memory_bytes=tuple(
            item.price.memory[item.plan.mesh.coordinates(r)["pp"]].total_bytes
            * draw.uniform(0.95, 1.08)
            for r in range(ranks)
        ),
        timeline=measured_timeline(item.plan, simulate_plan(item.plan, item.price), factor, seed),
        verify=result,
        bytes_sent=tuple(draw.uniform(2e8, 3e8) for _ in range(ranks)),
        warnings=("BatchNorm buffers are local to each replica, as in DDP",),
        provenance=PROVENANCE,
    )


@cache
def bench_result() -> BenchResult:
    draw = random.Random(3)
    rows = []
    for item in (*search_result().top, ranked(dp=4, pp=1, microbatches=4, size=2)):
        estimate = item.price.step_time_s
        memory = item.price.peak_memory_bytes.value
        rows.append(
            BenchRow(
                plan=item.plan,
                predicted_s=estimate.value,
                measured_s=estimate.value * draw.uniform(0.92, 1.2),
                predicted_memory_bytes=memory,
                measured_memory_bytes=memory * draw.uniform(0.9, 1.1),
                predicted_low_s=estimate.low,
                predicted_high_s=estimate.high,
            )
        )
    failed = ranked(dp=1, pp=4, microbatches=4, size=8)
    rows.append(
        BenchRow(
            plan=failed.plan, predicted_s=failed.price.step_time_s.value, measured_s=None,
            predicted_memory_bytes=failed.price.peak_memory_bytes.value,
            measured_memory_bytes=None, failure="rank 3: out of memory",
        )
    )  # fmt: skip
    return BenchResult(task="gpt", cluster="4x1:t4", rows=tuple(rows), provenance=PROVENANCE)


def long_timeline(ranks: int, events: int) -> Timeline:
    """Alternating forwards and backwards, ``events`` per rank, back to back."""
    kinds = ("forward", "backward")
    return Timeline(
        events=tuple(
            Event(
                rank=r,
                kind=kinds[i % 2],
                start_s=i * 1e-3,
                end_s=(i + 1) * 1e-3,
                stage=r,
                microbatch=i // 2,
            )
            for r in range(ranks)
            for i in range(events)
        ),
        source="measured",
    )
