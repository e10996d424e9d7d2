"""Layout: a mesh, schedule, microbatch and recompute choice; prices any stage boundaries on it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from autopar.cluster.overhead import NO_OVERHEAD
from autopar.cost import constants as k
from autopar.cost.collectives import CommunicationModel
from autopar.cost.gradients import bucketed_seconds, overlapped_seconds
from autopar.cost.model import CostModel, SpanSeconds
from autopar.cost.simulate import Program, finish, node_seconds, run, wire
from autopar.cost.tables import Table
from autopar.graph import Amount
from autopar.plans import Mesh
from autopar.results import StageCost, TiedSync, Transfer

Cuts = tuple[int, ...]
"""Block boundaries ``0 = c0 < c1 < ... < cS = n``; stage ``s`` is ``[c_s, c_s+1)``."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Everything of a plan but its stage boundaries.

    Attributes:
        model: Shared caches.
        mesh: Degrees.
        placement: Device of each rank.
        schedule: Registered name.
        stages: Virtual stages.
        microbatches: Per replica and step.
        microbatch_size: Samples.
        recompute: Per block, whether its activations are computed again.
        bucket_bytes: Gradient bucket size.
        clip: True when the gradient norm is clipped.
    """

    model: CostModel
    mesh: Mesh
    placement: tuple[int, ...]
    schedule: str
    stages: int
    microbatches: int
    microbatch_size: int
    recompute: tuple[bool, ...]
    bucket_bytes: int = 25 * 1024**2
    clip: bool = False

    @cached_property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """Devices of each pipeline coordinate, by replica."""
        size = self.mesh.world_size // self.mesh.pp
        return tuple(tuple(self.placement[q * size : (q + 1) * size]) for q in range(self.mesh.pp))

    @cached_property
    def communication(self) -> CommunicationModel:
        """Communication between the devices that take part."""
        return self.model.communication(self.placement)

    @cached_property
    def live(self) -> tuple[tuple[tuple[int, ...], ...], ...]:
        """Per pipeline coordinate, the microbatches in flight per local stage at its peaks."""
        schedule = self.model.schedule(self.schedule)
        return schedule.in_flight(self.mesh.pp, self.stages, self.microbatches)

    @cached_property
    def program(self) -> Program:
        """The schedule's actions in one order."""
        return self.model.program(self.schedule, self.mesh.pp, self.stages, self.microbatches)

    def rank_of(self, stage: int) -> int:
        """Pipeline coordinate of a virtual stage."""
        return stage % self.mesh.pp

    @cached_property
    def spans(self) -> tuple[SpanSeconds, ...]:
        """Per pipeline coordinate, seconds of any run of blocks on its slowest device."""
        result = []
        for group in self.groups:
            kinds = {
                (self.model.cluster.device(d).name, self.communication.ranks_on_host(d)): d
                for d in group
            }
            options = [
                self.model.span_seconds(
                    self.microbatch_size,
                    self.microbatches,
                    self.model.cluster.device(d),
                    busy,
                    self.recompute,
                )
                for (_, busy), d in kinds.items()
            ]
            result.append(max(options, key=lambda s: s.total))
        return tuple(result)

    @cached_property
    def optimizer_s_per_byte(self) -> tuple[float, ...]:
        """Per pipeline coordinate, optimizer seconds per parameter byte."""
        return tuple(
            max(
                self.model.compute.optimizer_seconds_per_byte(
                    self.model.cluster.device(d), self.communication.ranks_on_host(d)
                )
                for d in {self.model.cluster.device(d).name: d for d in group}.values()
            )
            for group in self.groups
        )

    @cached_property
    def _sync_cache(self) -> dict[tuple[object, float], float]:
        return {}

    def group_kind(self, rank: int) -> object:
        """Equal for pipeline coordinates whose collectives take the same time."""
        return self._group_kinds[rank]

    @cached_property
    def _group_kinds(self) -> tuple[object, ...]:
        """Per pipeline coordinate, what its collectives' time depends on; equal for most."""
        return tuple(self.communication.group_kind(group) for group in self.groups)

    def sync_seconds(self, rank: int, size_bytes: float) -> float:
        """Gradient all-reduce over the replicas of a stage, in buckets, nothing overlapped."""
        group = self.groups[rank]
        if len(group) < 2 or size_bytes <= 0:
            return 0.0
        key = (self.group_kind(rank), size_bytes)
        if key not in self._sync_cache:
            self._sync_cache[key] = bucketed_seconds(
                size_bytes,
                self.bucket_bytes,
                lambda size: self.communication.group_seconds(
                    "all_reduce", size, group, concurrency=self.mesh.pp
                ),
            )
        return self._sync_cache[key]

    def _data_parallel_sync(self) -> tuple[float, float]:
        """Full and exposed synchronisation when one stage holds the whole model (DDP)."""
        group = self.groups[0]
        if len(group) < 2:
            return 0.0, 0.0
        span = self.spans[0]
        blocks = range(self.model.tables.count - 1, -1, -1)
        parameters = self.model.tables.parameters
        # A gradient is complete once backward has passed the first block that reads it.
        ready = [float(parameters[0, b + 1] - parameters[0, b]) for b in blocks]
        return overlapped_seconds(
            [span.backward[b][b + 1] + span.recompute[b][b + 1] for b in blocks],
            ready,
            self.bucket_bytes,
            lambda size: self.communication.group_seconds("all_reduce", size, group),
            self.model.cluster.overlap_slowdown,
        )

    def stage_costs(self, cuts: Cuts) -> list[StageCost]:
        """Seconds of every stage."""
        parameters = self.model.tables.parameters
        overhead = self.model.cluster.overhead if self.mesh.pp > 1 else NO_OVERHEAD
        costs = []
        for stage in range(self.stages):
            i, j, rank = cuts[stage], cuts[stage + 1], self.rank_of(stage)
            span = self.spans[rank]
            size = float(parameters[i, j])
            if self.mesh.pp == 1 and self.stages == 1:
                full, exposed = self._data_parallel_sync()
            else:
                full = exposed = self.sync_seconds(rank, size)
            costs.append(
                StageCost(
                    forward_s=span.forward[i][j] + overhead.forward_action_s,
                    backward_s=span.backward[i][j] + overhead.backward_action_s,
                    recompute_s=span.recompute[i][j],
                    gradient_sync_s=full,
                    exposed_sync_s=exposed,
                    optimizer_s=size * self.optimizer_s_per_byte[rank],
                )
            )
        return costs

    @cached_property
    def _routes(self) -> dict[tuple[int, int], tuple[object, list[tuple[int, int]]]]:
        return {}

    def message_seconds(self, size_bytes: float, source: int, target: int) -> float:
        """Slowest replica's message between two pipeline coordinates, never quite free."""
        if source == target:
            return 0.0
        kind, pairs = self._route(source, target)
        key = (kind, size_bytes)
        if key not in self._message_cache:
            seconds = max(self.communication.message_seconds(size_bytes, *pair) for pair in pairs)
            self._message_cache[key] = max(seconds, k.MIN_TRANSFER_S)
        return self._message_cache[key]

    @cached_property
    def _message_cache(self) -> dict[tuple[object, float], float]:
        return {}

    def _route(self, source: int, target: int) -> tuple[object, list[tuple[int, int]]]:
        """What message times between two coordinates depend on, and device pairs of each kind."""
        if (source, target) not in self._routes:
            cluster, communication = self.model.cluster, self.communication
            kinds = {}
            for a, b in zip(self.groups[source], self.groups[target], strict=True):
                kind = (
                    cluster.node(a) == cluster.node(b),
                    cluster.machine(a).name,
                    cluster.machine(b).name,
                    communication.ranks_on_host(a),
                    communication.ranks_on_host(b),
                )
                kinds[kind] = (a, b)
            self._routes[source, target] = (frozenset(kinds), list(kinds.values()))
        return self._routes[source, target]

    def amount_bytes(self, amount: Amount) -> float:
        """Stored bytes for one microbatch."""
        return amount.at(self.microbatch_size) * self.model.compute.byte_scale

    def transfers(self, cuts: Cuts) -> list[Transfer]:
        """Messages between stages for one microbatch."""
        stage_of = [s for s in range(self.stages) for _ in range(cuts[s], cuts[s + 1])]
        result = []
        for (a, b), (forward, backward) in self.model.tables.exchanges(stage_of).items():
            source, target = self.rank_of(a), self.rank_of(b)
            size, back = self.amount_bytes(forward), self.amount_bytes(backward)
            result.append(
                Transfer(
                    producer=a,
                    consumer=b,
                    forward_s=self.message_seconds(size, source, target),
                    backward_s=self.message_seconds(back, target, source) if back > 0 else 0.0,
                    size_bytes=size,
                )
            )
        return sorted(result, key=lambda t: (t.producer, t.consumer))

    def tied_syncs(self, cuts: Cuts) -> list[TiedSync]:
        """Gradient sums over the ranks that hold copies of tied parameters."""
        sizes: dict[tuple[int, ...], float] = {}
        for _, size, blocks in self.model.tables.tied:
            ranks = tuple(sorted({self.rank_of(stage_at(cuts, block)) for block in blocks}))
            if len(ranks) > 1:
                sizes[ranks] = sizes.get(ranks, 0.0) + size
        return [
            TiedSync(ranks=ranks, seconds=self.tied_seconds(ranks, size))
            for ranks, size in sorted(sizes.items())
        ]

    def tied_seconds(self, ranks: tuple[int, ...], size_bytes: float) -> float:
        """Sum of ``size_bytes`` of gradients over pipeline coordinates; all replicas at once."""
        replicas = zip(*(self.groups[rank] for rank in ranks), strict=True)
        shapes: dict[tuple[int, ...], tuple[int, ...]] = {}
        for devices in replicas:
            shapes.setdefault(tuple(map(self.model.cluster.node, devices)), devices)
        some = list(shapes.values())[:8]  # equal machines: a few shapes stand for all
        return max(
            self.communication.group_seconds(
                "all_reduce", size_bytes, devices, concurrency=len(self.groups[0])
            )
            for devices in some
        )

    @cached_property
    def overhead_s(self) -> float:
        """Per step outside stages: the executor's own cost, the all-reduce of clipping."""
        own_s = self.model.cluster.overhead.step_s
        if not self.clip or self.mesh.world_size == 1:
            return own_s
        return own_s + self.communication.group_seconds("all_reduce", 4.0, self.placement)

    def step_seconds(self, cuts: Cuts) -> float:
        """Simulated time of one optimizer step."""
        costs = self.stage_costs(cuts)
        wiring = wire(self.program, self.transfers(cuts))
        free = run(self.program, node_seconds(costs), wiring)
        tied = [(t.ranks, t.seconds) for t in self.tied_syncs(cuts)]
        _, ends = finish(free, costs, tied)
        return max(ends) + self.overhead_s

    @cached_property
    def memory_tables(self) -> tuple[Table, Table, Table]:
        """Bytes per microbatch in flight, transient bytes and message bytes of any run."""
        tables, b = self.model.tables, self.microbatch_size
        profile, scale = self.model.profile, self.model.compute.byte_scale
        if all(self.recompute):
            kept = tables.boundaries[0] + tables.boundaries[1] * b
        elif any(self.recompute):
            kept = tables.mixed(self.recompute, b)
        else:
            kept = tables.saved[0] + tables.saved[1] * b
        received = tables.received[0] + tables.received[1] * b
        if not all(self.recompute):
            kept = kept + received
        transient = tables.largest(
            [
                k.TRANSIENT_COPIES.value * block.peak_transient_bytes.at(b) * scale
                + (block.saved_bytes.at(b) * scale if again else 0.0)
                for block, again in zip(profile.blocks, self.recompute, strict=True)
            ]
        )
        messages = received + tables.sent[0] + tables.sent[1] * b
        return kept, transient, messages

    @cached_property
    def state_factor(self) -> tuple[float, float]:
        """Gradient and optimizer-state bytes per parameter byte."""
        return 1.0, self.model.profile.optimizer.state_bytes_per_parameter_byte


def stage_at(cuts: Cuts, block: int) -> int:
    """Stage that holds a block."""
    low, high = 0, len(cuts) - 1
    while high - low > 1:
        middle = (low + high) // 2
        if cuts[middle] <= block:
            low = middle
        else:
            high = middle
    return low
