"""Small profiles and clusters made by hand."""

from __future__ import annotations

from collections.abc import Sequence

from autopar.cluster import Cluster, Device, Link, Machine, NodeGroup
from autopar.graph import Amount, Block, BlockEdge, GraphProfile, Op, OptimizerState

MB = 1e6


def chain_profile(
    flops: Sequence[float],
    *,
    parameter_bytes: Sequence[int] | None = None,
    activation_bytes: float = 1 * MB,
    saved_bytes: float = 4 * MB,
    batch: int = 1,
    tied: Sequence[tuple[int, int]] = (),
    skips: Sequence[tuple[int, int]] = (),
    missing: Sequence[int] = (),
    state_ratio: float = 2.0,
    signatures: Sequence[str] | None = None,
) -> GraphProfile:
    """A chain of blocks, one op each; ``flops`` are forward FLOPs per sample.

    ``missing`` lists boundaries without the edge from the block before.
    """
    n = len(flops)
    sizes = list(parameter_bytes or [4_000_000] * n)
    parameters = {f"w{i}": (sizes[i] // 4, sizes[i]) for i in range(n)}
    reads: list[list[str]] = [[f"w{i}"] for i in range(n)]
    for t, (a, b) in enumerate(tied):
        parameters[f"tied{t}"] = (500_000, 2_000_000)
        reads[a].append(f"tied{t}")
        reads[b].append(f"tied{t}")
    edges = [
        BlockEdge(
            tensor=i,
            producer=i,
            consumer=i + 1,
            size_bytes=Amount(0.0, activation_bytes),
            needs_gradient=True,
        )
        for i in range(n - 1)
        if i + 1 not in missing
    ]
    edges += [
        BlockEdge(
            tensor=1000 + a,
            producer=a,
            consumer=b,
            size_bytes=Amount(0.0, activation_bytes / 2),
            needs_gradient=True,
        )
        for a, b in skips
    ]
    ops = tuple(
        Op(
            index=i,
            name=f"op{i}",
            target="aten.mm.default",
            module=f"layers.{i}",
            forward_flop=Amount(0.0, f),
            backward_flop=Amount(0.0, 2 * f),
            forward_bytes=Amount(float(sizes[i]), activation_bytes),
            backward_bytes=Amount(2.0 * sizes[i], 2 * activation_bytes),
            saved_bytes=Amount(0.0, saved_bytes),
            parameters=tuple(reads[i]),
        )
        for i, f in enumerate(flops)
    )
    blocks = tuple(
        Block(
            index=i,
            name=f"layers.{i}",
            first_op=i,
            stop_op=i + 1,
            signature=signatures[i] if signatures else f"s{i}",
            forward_flop=op.forward_flop,
            backward_flop=op.backward_flop,
            forward_bytes=op.forward_bytes,
            backward_bytes=op.backward_bytes,
            saved_bytes=op.saved_bytes,
            boundary_bytes=Amount(
                0.0,
                sum(e.size_bytes.per_sample for e in edges if e.consumer == i),
            ),
            peak_transient_bytes=Amount(0.0, activation_bytes),
            parameters=op.parameters,
            parameter_bytes=float(sum(parameters[p][1] for p in op.parameters)),
            kernels=1,
        )
        for i, op in enumerate(ops)
    )
    return GraphProfile(
        task="chain",
        target=None,
        fingerprint="f00d",
        batch=batch,
        device="meta",
        parameters=parameters,
        buffer_bytes=0.0,
        input_bytes=1000.0,
        ops=ops,
        edges=(),
        blocks=blocks,
        block_edges=tuple(edges),
        optimizer=OptimizerState(name="AdamW", state_bytes_per_parameter_byte=state_ratio),
    )


def gpu(
    name: str = "gpu",
    *,
    peak: float = 1e14,
    memory: float = 80e9,
    bandwidth: float = 2e12,
    usd: float | None = 2.0,
) -> Device:
    return Device(
        name=name,
        kind="cuda",
        peak_flop_per_s={"float32": peak},
        memory_bytes=memory,
        memory_bytes_per_s=bandwidth,
        launch_s=5e-6,
        power_watt=400.0,
        idle_watt=60.0,
        usd_per_hour=usd,
    )


def cluster_of(
    nodes: int,
    per_node: int,
    *,
    device: Device | None = None,
    intra: float = 300e9,
    inter: float = 25e9,
) -> Cluster:
    machine = Machine(
        name=(device or gpu()).name,
        device=device or gpu(),
        devices_per_node=per_node,
        intra=Link(name="nvlink", bytes_per_s=intra, latency_s=5e-6, efficiency=0.8),
        inter=Link(name="ib", bytes_per_s=inter, latency_s=1e-5, efficiency=0.8),
    )
    return Cluster(name=f"{nodes}x{per_node}", groups=(NodeGroup(machine=machine, nodes=nodes),))


def gpt3() -> GraphProfile:
    """GPT-3 175B: embedding, 96 equal layers, head; batch 1 of 2048 tokens, float32."""
    h, s, v = 12288, 2048, 50257
    layer, embed = 24 * s * h * h + 4 * s * s * h, 0.0
    flops = [embed, *([float(layer)] * 96), 2.0 * s * h * v]
    sizes = [4 * v * h, *([4 * 12 * h * h] * 96), 4 * h]
    return chain_profile(
        flops,
        parameter_bytes=sizes,
        activation_bytes=4.0 * s * h,
        saved_bytes=34.0 * s * h * 2 + 5 * 96 * s * s * 2,
        signatures=["embed", *(["layer"] * 96), "head"],
    )


def a100_cluster(nodes: int = 128) -> Cluster:
    device = Device(
        name="a100-80gb-sxm",
        kind="cuda",
        peak_flop_per_s={"float32": 19.5e12, "tf32": 156e12, "bfloat16": 312e12},
        memory_bytes=80 * 1024**3,
        memory_bytes_per_s=2.039e12,
        launch_s=5e-6,
        power_watt=400.0,
        idle_watt=60.0,
        usd_per_hour=2.0,
    )
    machine = Machine(
        name="a100-80gb-sxm",
        device=device,
        devices_per_node=8,
        intra=Link(name="nvlink3", bytes_per_s=300e9, latency_s=5e-6, efficiency=0.75),
        inter=Link(name="hdr", bytes_per_s=200e9, latency_s=1e-5, efficiency=0.7),
    )
    name = f"{nodes}x8:a100-80gb-sxm"
    return Cluster(name=name, groups=(NodeGroup(machine=machine, nodes=nodes),))


def tied_skips() -> tuple[GraphProfile, Cluster]:
    """Five blocks with a tied weight and a skip, on four devices that not every plan fits."""
    profile = chain_profile(
        [1e12, 2e12, 1e12, 3e12, 1e12],
        parameter_bytes=[400_000_000] * 5,
        saved_bytes=3e8,
        tied=[(0, 4)],
        skips=[(0, 2)],
    )
    return profile, cluster_of(2, 2, device=gpu(memory=12.6e9))
