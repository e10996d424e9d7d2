"""The points of the search space, and why some of them are not even priced."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from autopar.cluster import Cluster
from autopar.core.errors import InputError
from autopar.graph import GraphProfile
from autopar.plans import Mesh
from autopar.schedules import SCHEDULES
from autopar.search.options import SearchOptions
from autopar.search.spec import Spec, Value, parse_spec

CHUNKS = (2, 3, 4)
"""Stages per rank that interleaved schedules try."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """All choices of a plan but its stage boundaries; one Optuna trial."""

    dp_replicate: int
    pp: int
    schedule: str
    chunks: int
    microbatch_size: int
    microbatches: int
    recompute: str

    @property
    def world(self) -> int:
        """Devices used."""
        return self.dp_replicate * self.pp

    @property
    def stages(self) -> int:
        """Virtual stages."""
        return self.pp * self.chunks

    @property
    def mesh(self) -> Mesh:
        """Degrees."""
        return Mesh(dp_replicate=self.dp_replicate, pp=self.pp)

    def value(self, axis: str) -> Value:
        """Value on an axis; axes the space does not vary are 1."""
        result: Value = getattr(self, axis, 1)
        return result

    def matches(self, spec: Spec) -> bool:
        """True when every axis of a specification has its value."""
        return all(self.value(axis) == value for axis, value in spec.items())

    def params(self) -> dict[str, Value]:
        """Axis -> value for the study."""
        return {name: getattr(self, name) for name in PARAMETERS}


PARAMETERS = (
    "dp_replicate",
    "pp",
    "schedule",
    "chunks",
    "microbatch_size",
    "microbatches",
    "recompute",
)


@dataclass(frozen=True, kw_only=True)
class Space:
    """The points that can be priced and the count of those that cannot.

    Attributes:
        points: In a fixed order.
        size: All points, rejected ones included.
        rejected: Reason -> count.
        global_batch: Samples per step.
    """

    points: tuple[Point, ...]
    size: int
    rejected: Counter[str]
    global_batch: int


def divisors(number: int) -> list[int]:
    """Divisors in rising order."""
    small = [d for d in range(1, int(number**0.5) + 1) if number % d == 0]
    return small + [number // d for d in reversed(small) if d * d != number]


def _schedules(pp: int) -> list[tuple[str, int]]:
    if pp == 1:
        return [("none", 1)]
    options: list[tuple[str, int]] = []
    for name in SCHEDULES:
        if name != "none":
            interleaves = SCHEDULES.load(name).interleaves
            options += [(name, chunks) for chunks in (CHUNKS if interleaves else (1,))]
    return options


def shapes(devices: int) -> Iterator[tuple[int, int]]:
    """``(dp_replicate, pp)`` for every divisor of the device count as world size."""
    for world in divisors(devices):
        for pp in divisors(world):
            yield world // pp, pp


def build_space(profile: GraphProfile, cluster: Cluster, options: SearchOptions) -> Space:
    """Enumerate and reject without pricing.

    Raises:
        InputError: ``fix`` or ``forbid`` names an unknown axis or value.
    """
    batch = options.batch_for(profile, cluster.device_count)
    wanted = fixed_spec(options)
    forbidden = [parse_spec(text) for text in options.forbid]
    rejected: Counter[str] = Counter()
    points: list[Point] = []
    size = 0
    for dp, pp in shapes(cluster.device_count):
        per_replica = batch // dp
        for schedule, chunks in _schedules(pp):
            if batch % dp:
                size += 2
                rejected["batch not divisible by replicas"] += 2
                continue
            for microbatch_size in divisors(per_replica):
                for recompute in ("none", "full"):
                    size += 1
                    point = Point(
                        dp_replicate=dp,
                        pp=pp,
                        schedule=schedule,
                        chunks=chunks,
                        microbatch_size=microbatch_size,
                        microbatches=per_replica // microbatch_size,
                        recompute=recompute,
                    )
                    reason = static_rejection(point, profile, wanted, forbidden)
                    if reason is None:
                        points.append(point)
                    else:
                        rejected[reason] += 1
    return Space(points=tuple(points), size=size, rejected=rejected, global_batch=batch)


def fixed_spec(options: SearchOptions) -> Spec:
    """All ``fix`` specifications as one.

    Raises:
        InputError: Unknown axis or value, or two values for one axis.
    """
    if not isinstance(options.fix, tuple):
        return parse_spec(options.fix) if options.fix else {}
    return parse_spec(",".join(options.fix)) if options.fix else {}


def static_rejection(
    point: Point, profile: GraphProfile, wanted: Spec, forbidden: list[Spec]
) -> str | None:
    """Why a point cannot be priced, as far as that needs no cost model."""
    if not point.matches(wanted):
        return "not what --fix asks for"
    if any(point.matches(spec) for spec in forbidden):
        return "ruled out by --forbid"
    if point.microbatch_size < profile.smallest_microbatch:
        return "microbatch too small for the model"
    if point.stages > len(profile.blocks):
        return "more stages than blocks"
    schedule = SCHEDULES.load(point.schedule)
    if schedule.check(point.pp, point.stages, point.microbatches) is not None:
        return "schedule does not fit the microbatches"
    return None


def point_of(spec: Spec, profile: GraphProfile, cluster: Cluster, batch: int) -> Point:
    """The point a specification names, with stated defaults for what it leaves open.

    Defaults: degrees 1 (with ``world`` and one degree given, the other follows), schedule
    ``1f1b`` when pp > 1, one chunk (two when interleaved), one microbatch per pipeline rank,
    no recompute.

    Raises:
        InputError: The specification is outside the space.
    """
    for axis in ("dp_shard", "cp", "tp", "ep"):
        if spec.get(axis, 1) != 1:
            raise InputError(
                f"{axis}={spec[axis]} is not in the space, {axis} is 1", hint=f"leave out {axis}"
            )
    dp, pp = _degrees(spec)
    if dp * pp > cluster.device_count:
        raise InputError(
            f"dp_replicate={dp} x pp={pp} needs {dp * pp} devices, cluster '{cluster.name}' has "
            f"{cluster.device_count}",
            hint="lower a degree",
        )
    if batch % dp:
        raise InputError(
            f"global batch {batch} is not divisible by {dp} replicas",
            hint="choose another --global-batch",
        )
    size, count = _microbatch(spec, batch // dp, pp)
    schedule = str(spec.get("schedule", "1f1b" if pp > 1 else "none"))
    interleaves = SCHEDULES.load(schedule).interleaves
    chunks = int(spec.get("chunks", CHUNKS[0] if interleaves else 1))
    point = Point(
        dp_replicate=dp,
        pp=pp,
        schedule=schedule,
        chunks=chunks,
        microbatch_size=size,
        microbatches=count,
        recompute=str(spec.get("recompute", "none")),
    )
    _check_point(point, profile)
    return point


def _check_point(point: Point, profile: GraphProfile) -> None:
    if point.pp > 1 and point.schedule == "none":
        raise InputError("schedule 'none' needs pp=1", hint="use gpipe, 1f1b or interleaved")
    if point.pp == 1 and point.schedule != "none":
        raise InputError(
            f"schedule '{point.schedule}' needs pp of 2 or more", hint="set pp, e.g. pp=2"
        )
    if point.microbatch_size < profile.smallest_microbatch:
        raise InputError(
            f"microbatch_size={point.microbatch_size} is below {profile.smallest_microbatch}: "
            "a BatchNorm of the model would see one value per channel",
            hint=f"use microbatch_size={profile.smallest_microbatch} or more",
        )
    if point.stages > len(profile.blocks):
        raise InputError(
            f"{point.stages} stages are more than the {len(profile.blocks)} blocks of the model",
            hint="lower pp or chunks",
        )
    reason = SCHEDULES.load(point.schedule).check(point.pp, point.stages, point.microbatches)
    if reason is not None:
        raise InputError(reason, hint="choose another schedule or number of microbatches")


def _degrees(spec: Spec) -> tuple[int, int]:
    dp, pp, world = (spec.get(axis) for axis in ("dp_replicate", "pp", "world"))
    if world is not None:
        known = int(dp or 1) * int(pp or 1)
        if int(world) % known or (dp and pp and int(world) != known):
            raise InputError(
                f"world={world} does not equal dp_replicate x pp = {known}",
                hint="leave one of them out",
            )
        if dp is None:
            dp = int(world) // int(pp or 1)
        elif pp is None:
            pp = int(world) // int(dp)
    return int(dp or 1), int(pp or 1)


def _microbatch(spec: Spec, samples: int, pp: int) -> tuple[int, int]:
    """Microbatch size and count of one replica's samples."""
    size, count = spec.get("microbatch_size"), spec.get("microbatches")
    if size is None and count is None:
        count = max(d for d in divisors(samples) if d <= pp)
    size_ = int(size) if size is not None else samples // int(count or 1)
    count_ = int(count) if count is not None else samples // max(size_, 1)
    if size_ * count_ != samples:
        raise InputError(
            f"{count_} microbatches of {size_} samples are not the {samples} of a replica",
            hint="give microbatches or microbatch_size alone, as a divisor",
        )
    return size_, count_
