"""The search space: groups of points that divide work alike, times their variants.

A group fixes the mesh and the microbatch; a variant the schedule, recompute, sharding level,
offload and sync mode. Points are made when they are looked at, so that spaces of millions of
points cost what their groups cost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

from autopar.cluster import Cluster
from autopar.graph import GraphProfile
from autopar.plans import Mesh
from autopar.schedules import SCHEDULES
from autopar.search.options import EXACT_MODES, SearchOptions
from autopar.search.space.groups import Groups, Ladder, MeshGroups, PointGroup, Space
from autopar.search.space.spec import Spec, parse_spec
from autopar.search.space.sync_choice import least_steps, sync_choices
from autopar.search.space.variants import (
    AXES,
    RECOMPUTE,
    ZERO,
    Choices,
    VariantSet,
    VariantTable,
    make_variants,
)
from autopar.strategies import Split, Strategies
from autopar.sync import parse_sync

__all__ = ["PointGroup", "Space", "build_space", "choices_of", "divisors", "fixed_spec"]

TP_NODES = 2
"""Nodes that tensor parallel ranks may span; beyond, sums across nodes take most of the time
(published runs: 32 ranks reach a quarter of the throughput of 2)."""
LEAST_SEQUENCE = 256
"""Tokens of a sequence that a context parallel rank keeps at least."""


def divisors(number: int) -> list[int]:
    """Divisors in rising order."""
    small = [d for d in range(1, int(number**0.5) + 1) if number % d == 0]
    return small + [number // d for d in reversed(small) if d * d != number]


def build_space(
    profile: GraphProfile,
    cluster: Cluster,
    options: SearchOptions,
    *,
    least_sequence: int = LEAST_SEQUENCE,
) -> Space:
    """Enumerate and reject without pricing.

    Args:
        profile: What is trained.
        cluster: Where.
        options: Constraints.
        least_sequence: Tokens that a context parallel rank keeps at least.

    Raises:
        InputError: ``fix`` or ``forbid`` names an unknown axis or value.
    """
    builder = _Builder(
        profile=profile,
        cluster=cluster,
        options=options,
        strategies=profile.derived(Strategies),
        least_sequence=least_sequence,
    )
    return builder.build()


def fixed_spec(options: SearchOptions) -> Spec:
    """All ``fix`` specifications as one.

    Raises:
        InputError: Unknown axis or value, or two values for one axis.
    """
    if not isinstance(options.fix, tuple):
        return parse_spec(options.fix) if options.fix else {}
    return parse_spec(",".join(options.fix)) if options.fix else {}


def choices_of(profile: GraphProfile, cluster: Cluster, options: SearchOptions) -> Choices:
    """Values of the variant axes: all of them, or those the executor can run."""
    modes = sync_choices(profile, options)
    devices = (group.machine.device for group in cluster.groups)
    offload = all(device.kind == "cuda" for device in devices)
    return Choices(
        schedules=tuple(SCHEDULES),
        recompute=RECOMPUTE,
        zero=ZERO,
        offload=("off", "on") if offload else ("off",),
        sync=modes,
        least_steps=tuple(least_steps(profile, mode) for mode in modes),
        blocks=len(profile.blocks),
    )


@dataclass(kw_only=True)
class _Builder:
    profile: GraphProfile
    cluster: Cluster
    options: SearchOptions
    strategies: Strategies
    least_sequence: int
    rejected: Counter[str] = field(default_factory=Counter)
    size: int = 0
    meshes: list[MeshGroups] = field(default_factory=list)
    _variants: dict[object, VariantSet] = field(default_factory=dict)
    _tables: dict[int, VariantTable] = field(default_factory=dict)
    _ladders: dict[object, Ladder] = field(default_factory=dict)
    _uses: Counter[object] = field(default_factory=Counter)
    _divisors: dict[int, list[int]] = field(default_factory=dict)
    _splits: dict[object, tuple[Split, str | None]] = field(default_factory=dict)

    def build(self) -> Space:
        options, cluster = self.options, self.cluster
        self.batch = options.batch_for(self.profile, cluster.device_count)
        self.choices = choices_of(self.profile, cluster, options)
        wanted = fixed_spec(options)
        self.wanted = {k: v for k, v in wanted.items() if k in AXES}
        self.wanted_group = {k: v for k, v in wanted.items() if k not in AXES}
        self.forbidden = [parse_spec(text) for text in options.forbid]
        self.runnable = options.only_runnable(cluster)
        for world in divisors(cluster.device_count):
            for dp, cp, tp, pp in self._degrees(world):
                self._mesh(dp, cp, tp, pp)
        for key, times in self._uses.items():
            ladder = self._ladders[key]
            self.size += times * ladder.size
            for reason, count in ladder.rejected.items():
                self.rejected[reason] += times * count
        return Space(
            groups=Groups(self.meshes),
            size=self.size,
            rejected=self.rejected,
            global_batch=self.batch,
            choices=self.choices,
        )

    def _degrees(self, world: int) -> Iterator[tuple[int, int, int, int]]:
        """``(dp, cp, tp, pp)`` with the product ``world``, degrees that no model has left out."""
        sequence = self.strategies.context.length
        for tp in self._tp_degrees(world):
            for cp in self._dividing(world // tp):
                if cp > 1 and sequence < cp * self.least_sequence:
                    break
                for pp in self._dividing(world // (tp * cp)):
                    if pp > len(self.profile.blocks):
                        break
                    yield world // (tp * cp * pp), cp, tp, pp

    def _tp_degrees(self, world: int) -> list[int]:
        if not self.strategies.tensor.columns:
            return [1]
        node = max(group.machine.devices_per_node for group in self.cluster.groups)
        return [tp for tp in self._dividing(world) if tp <= TP_NODES * node]

    def _dividing(self, number: int) -> list[int]:
        if number not in self._divisors:
            self._divisors[number] = divisors(number)
        return self._divisors[number]

    def _mesh(self, dp: int, cp: int, tp: int, pp: int) -> None:
        """Groups of one mesh: sequence parallel or not, shards, experts, microbatches."""
        sequence = (False, True) if tp > 1 and self.strategies.context.length else (False,)
        shards = self._shard_degrees(dp, cp * tp)
        experts = self._ep_degrees(dp * cp)
        if self.batch % dp:
            # Microbatch sizes do not exist then; each combination counts once.
            count = len(sequence) * len(shards) * len(experts)
            self._reject("batch not divisible by replicas", count * self._set(pp, 1, False).size)
            return
        samples = self.batch // dp
        for sequence_parallel in sequence:
            for ep in experts:
                split, reason = self._split(tp, sequence_parallel, cp, ep)
                for shard in shards:
                    self._climb(split, dp, shard, pp, samples, reason)

    def _shard_degrees(self, dp: int, inner: int) -> list[int]:
        """No sharing, sharing among the ranks of a node (HSDP), sharing among all replicas."""
        node = self.cluster.groups[0].machine.devices_per_node
        inside = max((d for d in self._dividing(dp) if d * inner <= node), default=1)
        return sorted({1, inside, dp})

    def _ep_degrees(self, ranks: int) -> list[int]:
        experts = self.strategies.expert.experts
        if not experts:
            return [1]
        return [ep for ep in self._dividing(ranks) if ep <= experts]

    def _split(
        self, tp: int, sequence_parallel: bool, cp: int, ep: int
    ) -> tuple[Split, str | None]:
        """A split, and why the model cannot be divided so; one object for each split."""
        key = (tp, sequence_parallel, cp, ep)
        if key not in self._splits:
            split = Split(tp=tp, sequence_parallel=sequence_parallel, cp=cp, ep=ep)
            self._splits[key] = (split, self.strategies.why_not(split))
        return self._splits[key]

    def _climb(
        self, split: Split, dp: int, shard: int, pp: int, samples: int, reason: str | None
    ) -> None:
        """Groups of all microbatch sizes of a replica's samples."""
        unfit = self._unfit(split, dp, shard, pp) if self.checks_mesh and not reason else None
        key: object = (pp, samples, shard > 1, reason, unfit)
        if self.asks_groups:
            key = object()  # each group has values of its own to look at
        ladder = self._ladders.get(key)
        if ladder is None:
            ladder = self._ladder(split, dp, shard, pp, samples, reason, unfit or frozenset())
            self._ladders[key] = ladder
        self._uses[key] += 1
        if ladder.rungs:
            self.meshes.append(
                MeshGroups(
                    dp_replicate=dp // shard, dp_shard=shard, split=split, pp=pp, ladder=ladder
                )
            )

    def _ladder(
        self,
        split: Split,
        dp: int,
        shard: int,
        pp: int,
        samples: int,
        reason: str | None,
        unfit: frozenset[str],
    ) -> Ladder:
        rungs, points, rejected = [], 0, Counter[str]()
        for size in self._dividing(samples):
            count = samples // size
            values = self._values(split, dp, shard, pp, size, count) if self.asks_groups else {}
            why_not = reason or self._why_not(size, values)
            if why_not is not None:
                variants = self._set(pp, count, shard > 1)
                rejected[why_not] += variants.size
            else:
                variants = self._set(pp, count, shard > 1, self._active(values), unfit)
                for why, number in variants.rejected.items():
                    rejected[why] += number
                if variants.count:
                    rungs.append((size, count, variants))
            points += variants.size
        return Ladder(rungs=tuple(rungs), size=points, rejected=rejected)

    def _why_not(self, size: int, values: dict[str, int | str]) -> str | None:
        if size < self.profile.smallest_microbatch:
            return "microbatch too small for the model"
        if any(values[k] != v for k, v in self.wanted_group.items()):
            return "not what --fix asks for"
        return None

    def _values(
        self, split: Split, dp: int, shard: int, pp: int, size: int, count: int
    ) -> dict[str, int | str]:
        """Values of the axes that a group has."""
        return {
            "world": dp * split.cp * split.tp * pp,
            "dp": dp,
            "dp_replicate": dp // shard,
            "dp_shard": shard,
            "cp": split.cp,
            "tp": split.tp,
            "sequence_parallel": "on" if split.sequence_parallel else "off",
            "ep": split.ep,
            "pp": pp,
            "microbatch_size": size,
            "microbatches": count,
        }

    def _active(self, values: dict[str, int | str]) -> tuple[int, ...]:
        """Forbidden specifications whose group axes agree; their variant axes remain."""
        return tuple(
            i
            for i, spec in enumerate(self.forbidden)
            if all(values[k] == v for k, v in spec.items() if k not in AXES)
        )

    @cached_property
    def asks_groups(self) -> bool:
        """True when ``fix`` or ``forbid`` may name values of groups."""
        return bool(self.wanted_group or self.forbidden)

    @cached_property
    def checks_mesh(self) -> bool:
        """True when sync modes may not run on every mesh."""
        return self.runnable and self.choices.sync != EXACT_MODES

    def _unfit(self, split: Split, dp: int, shard: int, pp: int) -> frozenset[str]:
        """Sync modes that do not run on a mesh."""
        mesh = Mesh(
            dp_replicate=dp // shard, dp_shard=shard, cp=split.cp, tp=split.tp, ep=split.ep, pp=pp
        )
        return frozenset(
            mode for mode in self.choices.sync if parse_sync(mode).check_mesh(mesh) is not None
        )

    def _set(
        self,
        pp: int,
        count: int,
        shared: bool,
        active: tuple[int, ...] = (),
        unfit: frozenset[str] = frozenset(),
    ) -> VariantSet:
        key = (pp, count, shared, active, unfit)
        if key not in self._variants:
            forbidden = [{k: v for k, v in self.forbidden[i].items() if k in AXES} for i in active]
            if pp not in self._tables:
                like = next((t for d, t in self._tables.items() if (d > 1) == (pp > 1)), None)
                self._tables[pp] = like.at(pp) if like else VariantTable(self.choices, pp)
            table = self._tables[pp]
            # Counts of microbatches that the same schedules run with have one set.
            alike = (pp, table.refused(count), shared, active, unfit)
            if alike not in self._variants:
                self._variants[alike] = make_variants(
                    table, count, shared, self.wanted, forbidden, unfit
                )
            self._variants[key] = self._variants[alike]
        return self._variants[key]

    def _reject(self, reason: str, count: int) -> None:
        self.size += count
        self.rejected[reason] += count
