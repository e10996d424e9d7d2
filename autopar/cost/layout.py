"""Layout: everything of a plan but its stage boundaries; prices any boundaries on it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from autopar.cluster.overhead import NO_OVERHEAD
from autopar.core.estimate import Estimate
from autopar.cost.communication.collectives import CommunicationModel
from autopar.cost.communication.ranks import RankGroups
from autopar.cost.communication.routes import Routes
from autopar.cost.communication.sync import PLAIN, StageSync
from autopar.cost.computation.blocks import Surroundings
from autopar.cost.computation.spans import SpanSeconds
from autopar.cost.model import CostModel
from autopar.cost.simulation.receiving import received
from autopar.cost.simulation.simulate import Program, finish, node_seconds, run, wire
from autopar.cost.step_overhead import bookkeeping_seconds, sharding_seconds
from autopar.cost.tables import Tables
from autopar.cost.work import Levels
from autopar.graph import Amount
from autopar.plans import Mesh
from autopar.results import StageCost, TiedSync, Transfer
from autopar.strategies import Split
from autopar.sync import SyncContext, SyncGroup, parse_sync

BUCKET_BYTES = 25 * 1024**2
"""Gradient bucket size of a plan that does not say another."""
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
        levels: Recompute level of every block.
        zero: What the ``dp_shard`` ranks share out.
        sequence_parallel: Ops outside tensor parallel regions divide the sequence.
        offload: Optimizer state lives in host memory.
        sync: Sync mode and compression.
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
    levels: Levels
    zero: int = 0
    sequence_parallel: bool = False
    offload: bool = False
    sync: str = "all_reduce"
    bucket_bytes: int = BUCKET_BYTES
    clip: bool = False

    @cached_property
    def split(self) -> Split:
        """How work inside a stage is divided."""
        mesh = self.mesh
        return Split(tp=mesh.tp, sequence_parallel=self.sequence_parallel, cp=mesh.cp, ep=mesh.ep)

    @cached_property
    def tables(self) -> Tables:
        """What runs of blocks hold and exchange."""
        return self.model.tables(self.split)

    @cached_property
    def communication(self) -> CommunicationModel:
        """Communication between the devices that take part."""
        return self.model.communication(self.placement)

    @cached_property
    def ranks(self) -> RankGroups:
        """Groups of the mesh axes."""
        return RankGroups(
            mesh=self.mesh, placement=self.placement, communication=self.communication
        )

    @property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """Devices of each pipeline coordinate."""
        return self.routes.groups

    @cached_property
    def routes(self) -> Routes:
        """Messages between pipeline coordinates."""
        return self.model.routes(self.placement, self.mesh.pp)

    def live(self, rank: int) -> tuple[tuple[int, ...], ...]:
        """Microbatches in flight per local stage of a pipeline coordinate, at its peaks."""
        return self.model.in_flight(
            self.schedule, self.mesh.pp, self.stages, self.microbatches, rank
        )

    @cached_property
    def program(self) -> Program:
        """The schedule's actions in one order."""
        return self.model.program(self.schedule, self.mesh.pp, self.stages, self.microbatches)

    @cached_property
    def steps_multiplier(self) -> Estimate:
        """Steps to the same loss over those of exact synchronisation."""
        group = self._sync_group
        measured = self.model.profile.multipliers(group.ranks)
        return parse_sync(self.sync).steps_multiplier(SyncContext(group=group, measured=measured))

    @cached_property
    def cannot_sync(self) -> str | None:
        """Why the replicas cannot synchronise as the mode says, else ``None``."""
        if self.sync == PLAIN:
            return None
        sync, element_bytes = parse_sync(self.sync), self.model.sizes.gradient
        return (
            sync.check_mesh(self.mesh)
            or sync.check_precision(self.model.precision)
            or sync.check(self._sync_group, element_bytes=element_bytes)
        )

    @property
    def _sync_group(self) -> SyncGroup:
        group = self.ranks.data(0)[0]
        return SyncGroup(ranks=group.ranks, nodes=group.nodes)

    @cached_property
    def _coordinates(self) -> tuple[int, ...]:
        schedule = self.model.schedule(self.schedule)
        return tuple(schedule.rank_of(s, self.mesh.pp) for s in range(self.stages))

    def rank_of(self, stage: int) -> int:
        """Pipeline coordinate of a virtual stage."""
        return self._coordinates[stage]

    def stages_of(self, rank: int) -> list[int]:
        """Virtual stages of a pipeline coordinate, in order."""
        return [s for s, r in enumerate(self._coordinates) if r == rank]

    def around(self, rank: int) -> Surroundings:
        """Groups of the collectives inside the stages of a pipeline coordinate."""
        shard = self.ranks.shard(rank) if self.zero >= 2 else ()
        return Surroundings(
            tp=self.ranks.tp(rank),
            cp=self.ranks.cp(rank),
            ep=self.ranks.ep(rank),
            gather=shard if self.zero >= 3 else (),
            scatter=shard,
            eager=self.mesh.fits(("dp_replicate",)) and not any(self.levels),
            world=self.mesh.world_size if self.model.cluster.curves else 1,
            zero=self.zero,
            casts=not self.zero,
            shards=self.model.cluster.overhead.shards if self.zero else None,
        )

    @cached_property
    def spans(self) -> tuple[SpanSeconds, ...]:
        """Per pipeline coordinate, seconds of any run of blocks on its slowest device."""
        found: dict[object, SpanSeconds] = {}
        result = []
        for rank in range(self.mesh.pp):
            kind = self.group_kind(rank)
            if kind not in found:
                found[kind] = self._slowest_span(rank)
            result.append(found[kind])
        return tuple(result)

    def _slowest_span(self, rank: int) -> SpanSeconds:
        around = self.around(rank)
        options = [
            self.model.span_seconds(
                self.split,
                self.microbatch_size,
                self.microbatches,
                device,
                busy,
                self.levels,
                around,
            )
            for device, busy in self.model.kinds(self.placement, self.groups[rank])
        ]
        return max(options, key=lambda span: span.total)

    def group_kind(self, rank: int) -> object:
        """Equal for pipeline coordinates whose work and collectives take the same time."""
        return self._group_kinds[rank]

    @cached_property
    def _group_kinds(self) -> tuple[object, ...]:
        return tuple(
            (
                self.ranks.tp(q),
                self.ranks.data(q),
                self.ranks.shard(q),
                tuple(d.name for d, _ in self.model.kinds(self.placement, self.groups[q])),
            )
            for q in range(self.mesh.pp)
        )

    @cached_property
    def syncs(self) -> tuple[StageSync, ...]:
        """Per pipeline coordinate, seconds of gradient synchronisation and optimizer."""
        found: dict[object, StageSync] = {}
        for rank in range(self.mesh.pp):
            kind = self.group_kind(rank)
            if kind not in found:
                found[kind] = self._sync_of(rank)
        return tuple(found[self.group_kind(rank)] for rank in range(self.mesh.pp))

    def _sync_of(self, rank: int) -> StageSync:
        ranks = self.ranks
        sharded = self.mesh.dp_shard > 1
        return StageSync(
            communication=self.communication,
            sizes=self.model.sizes,
            zero=self.zero,
            shards=self.mesh.dp_shard * self.mesh.cp if sharded else 1,
            data=ranks.data(rank),
            shard=ranks.shard(rank) if sharded else (),
            replicate=ranks.replicate(rank) if sharded else (),
            expert_data=ranks.expert_data(rank),
            concurrency=self.mesh.pp * self.mesh.tp,
            bucket_bytes=self.bucket_bytes,
            optimizer_s=max(
                self.model.compute.optimizer_seconds_per_element(device, busy, self.offload)
                for device, busy in self.model.kinds(self.placement, self.groups[rank])
            ),
            memory_bytes_per_s=min(
                device.memory_bytes_per_s
                for device, _ in self.model.kinds(self.placement, self.groups[rank])
            ),
            compute_s=self.microbatches * self.spans[rank].total / self.mesh.pp,
            mode=self.sync,
        )

    def _overlapped_sync(self) -> tuple[float, float]:
        """Full and exposed synchronisation when one stage holds the whole model."""
        blocks = range(self.tables.count - 1, -1, -1)
        parameters, experts = self.tables.parameters, self.tables.experts
        span = self.spans[0]
        # A gradient is complete once backward has passed the first block that reads it.
        ready = [float(parameters[0, b + 1] - parameters[0, b]) for b in blocks]
        return self.syncs[0].overlapped(
            span.per_block[1][::-1].tolist(),
            ready,
            float(experts[0, -1]),
            self.model.cluster.overlap_slowdown,
        )

    def stage_costs(self, cuts: Cuts) -> list[StageCost]:
        """Seconds of every stage."""
        tables = self.tables
        overhead = self.model.cluster.overhead if self.mesh.pp > 1 else NO_OVERHEAD
        received = self._received(cuts)
        costs = []
        for stage in range(self.stages):
            i, j, rank = cuts[stage], cuts[stage + 1], self.rank_of(stage)
            span, sync = self.spans[rank].between(i, j), self.syncs[rank]
            dense, experts = float(tables.parameters[i, j]), float(tables.experts[i, j])
            if self.mesh.pp == 1 and self.stages == 1:
                full, exposed = self._overlapped_sync()
            else:
                full = exposed = sync.seconds(dense, experts)
            first_s, second_s = self._halves(cuts, stage)
            backward_s = span.backward + overhead.backward_action_s + first_s + second_s
            costs.append(
                StageCost(
                    forward_s=span.forward + overhead.forward_action_s,
                    backward_s=backward_s,
                    weight_s=span.weight + second_s if stage or not self._splits else backward_s,
                    recompute_s=span.recompute,
                    gradient_sync_s=full,
                    exposed_sync_s=exposed,
                    optimizer_s=sync.optimizer_seconds(dense, experts),
                    forward_collective_s=span.forward_collective,
                    backward_collective_s=span.backward_collective,
                    recompute_collective_s=span.recompute_collective,
                    receive_s=received[stage][0],
                    backward_receive_s=received[stage][1],
                )
            )
        return costs

    @cached_property
    def _splits(self) -> bool:
        return self.mesh.pp > 1 and self.model.schedule(self.schedule).splits_backward

    def _halves(self, cuts: Cuts, stage: int) -> tuple[float, float]:
        """Seconds that the halves of a stage's backward take more than one in one go."""
        if not self._splits:
            return 0.0, 0.0
        blocks = self.model.profile.blocks[cuts[stage] : cuts[stage + 1]]
        weights = sum(len(block.parameters) for block in blocks)
        return self.model.cluster.overhead.split.seconds(weights)

    def _received(self, cuts: Cuts) -> list[tuple[float, float]]:
        """By stage, seconds of taking in at need what its forward and its backward read."""
        if self.mesh.pp == 1 or self.model.cluster.overhead.receive_s is None:
            return [(0.0, 0.0)] * self.stages
        return received(self.transfers(cuts), self._coordinates)

    def message_seconds(self, size_bytes: float, source: int, target: int) -> float:
        """Slowest message between two pipeline coordinates, never quite free."""
        return self.routes.message_seconds(size_bytes, source, target)

    def amount_bytes(self, amount: Amount) -> float:
        """Stored bytes on a rank of a tensor between blocks, for one microbatch."""
        return amount.at(self.microbatch_size) * self.tables.edge_scale

    def transfers(self, cuts: Cuts) -> list[Transfer]:
        """Messages between stages for one microbatch."""
        stage_of = [s for s in range(self.stages) for _ in range(cuts[s], cuts[s + 1])]
        extra_s = self.model.cluster.overhead.receive_s
        result = []
        for (a, b), (forward, backward) in self.tables.exchanges(stage_of).items():
            source, target = self.rank_of(a), self.rank_of(b)
            size, back = self.amount_bytes(forward), self.amount_bytes(backward)
            down_s = self.message_seconds(size, source, target)
            up_s = self.message_seconds(back, target, source) if back > 0 else 0.0
            result.append(
                Transfer(
                    producer=a,
                    consumer=b,
                    forward_s=down_s + (extra_s or 0.0),
                    backward_s=up_s + (extra_s or 0.0) if up_s > 0 else 0.0,
                    size_bytes=size,
                    at_need=extra_s is not None,
                )
            )
        return sorted(result, key=lambda t: (t.producer, t.consumer))

    def tied_syncs(self, cuts: Cuts) -> list[TiedSync]:
        """Gradient sums over the ranks that hold copies of tied parameters."""
        sizes: dict[tuple[int, ...], float] = {}
        for _, elements, blocks in self.tables.tied:
            ranks = tuple(sorted({self.rank_of(stage_at(cuts, block)) for block in blocks}))
            if len(ranks) > 1:
                sizes[ranks] = sizes.get(ranks, 0.0) + elements
        return [
            TiedSync(ranks=ranks, seconds=self.tied_seconds(ranks, elements))
            for ranks, elements in sorted(sizes.items())
        ]

    def tied_seconds(self, ranks: tuple[int, ...], elements: float) -> float:
        """Sum of gradients over pipeline coordinates; all replicas at once."""
        return self.routes.tied_seconds(ranks, elements * self.model.sizes.gradient)

    @cached_property
    def overhead_s(self) -> float:
        """Per step outside stages: the executor's own cost, the all-reduce of clipping."""
        own_s = bookkeeping_seconds(self) + sharding_seconds(self)
        if not self.clip or self.mesh.world_size == 1:
            return own_s
        return own_s + self.communication.group_seconds("all_reduce", 4.0, self.placement)

    def step_seconds(self, cuts: Cuts) -> float:
        """Simulated time of one optimizer step."""
        costs = self.stage_costs(cuts)
        wiring = wire(self.program, self.transfers(cuts))
        free = run(self.program, node_seconds(costs, self.program), wiring)
        tied = [(t.ranks, t.seconds) for t in self.tied_syncs(cuts)]
        _, ends = finish(free, costs, tied, self.program.rank_of)
        return max(ends) + self.overhead_s


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
