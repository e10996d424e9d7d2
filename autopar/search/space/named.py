"""The point that a specification names, with stated defaults for what it leaves open."""

from __future__ import annotations

from autopar.cluster import Cluster
from autopar.core.errors import InputError
from autopar.graph import GraphProfile
from autopar.schedules import SCHEDULES
from autopar.search.space.build import divisors
from autopar.search.space.point import Point
from autopar.search.space.spec import Spec
from autopar.search.space.variants import chunk_options
from autopar.strategies import Strategies


def point_of(spec: Spec, profile: GraphProfile, cluster: Cluster, batch: int) -> Point:
    """The point a specification names.

    Defaults: degrees 1 (with ``world`` and one data or pipeline degree given, the other follows),
    ZeRO-3 when dp_shard > 1, schedule ``1f1b`` when pp > 1, the smallest number of chunks the
    schedule has, one microbatch per pipeline rank, no recompute, no offload.

    Raises:
        InputError: The specification is outside the space.
    """
    degrees = _degrees(spec)
    world = degrees["dp"] * degrees["cp"] * degrees["tp"] * degrees["pp"]
    if world > cluster.device_count:
        product = " x ".join(f"{k}={v}" for k, v in degrees.items() if v > 1 or k in ("dp", "pp"))
        raise InputError(
            f"{product} needs {world} devices, cluster '{cluster.name}' has "
            f"{cluster.device_count}",
            hint="lower a degree",
        )
    dp, pp = degrees["dp"], degrees["pp"]
    shard = int(spec.get("dp_shard", 1))
    if batch % dp:
        raise InputError(
            f"global batch {batch} is not divisible by {dp} replicas",
            hint="choose another --global-batch",
        )
    size, count = _microbatch(spec, batch // dp, pp)
    schedule = str(spec.get("schedule", "1f1b" if pp > 1 else "none"))
    point = Point(
        dp_replicate=dp // shard,
        dp_shard=shard,
        zero=int(spec.get("zero", 3 if shard > 1 else 0)),
        cp=degrees["cp"],
        tp=degrees["tp"],
        sequence_parallel=str(spec.get("sequence_parallel", "off")),
        ep=int(spec.get("ep", 1)),
        pp=pp,
        schedule=schedule,
        chunks=int(spec.get("chunks", chunk_options(schedule)[0])),
        microbatch_size=size,
        microbatches=count,
        recompute=str(spec.get("recompute", "none")),
        offload=str(spec.get("offload", "off")),
        sync=str(spec.get("sync", "all_reduce")),
    )
    _check(point, profile)
    return point


def _degrees(spec: Spec) -> dict[str, int]:
    """Degrees ``dp``, ``cp``, ``tp``, ``pp``; ``dp`` is dp_replicate x dp_shard."""
    cp, tp = int(spec.get("cp", 1)), int(spec.get("tp", 1))
    replicate, shard = spec.get("dp_replicate"), int(spec.get("dp_shard", 1))
    dp, pp, world = spec.get("dp"), spec.get("pp"), spec.get("world")
    if dp is None and (replicate is not None or shard > 1):
        dp = int(replicate or 1) * shard
    if dp is not None and (int(dp) % shard or int(replicate or int(dp) // shard) * shard != dp):
        raise InputError(
            f"dp={dp} does not equal dp_replicate x dp_shard",
            hint="leave one of them out",
        )
    if world is not None:
        known = int(dp or 1) * int(pp or 1) * cp * tp
        if int(world) % known or (dp and pp and int(world) != known):
            raise InputError(
                f"world={world} does not equal the product of the degrees {known}",
                hint="leave one of them out",
            )
        if dp is None:
            dp = int(world) // (int(pp or 1) * cp * tp)
        elif pp is None:
            pp = int(world) // (int(dp) * cp * tp)
    return {"dp": int(dp or 1), "cp": cp, "tp": tp, "pp": int(pp or 1)}


def _check(point: Point, profile: GraphProfile) -> None:
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
    if (point.zero > 0) != (point.dp_shard > 1):
        raise InputError(
            f"zero={point.zero} with dp_shard={point.dp_shard}",
            hint="zero 1, 2 or 3 goes with dp_shard of 2 or more",
        )
    data_ranks = point.dp * point.cp
    if data_ranks % point.ep:
        raise InputError(
            f"ep={point.ep} does not divide the {data_ranks} data ranks", hint="choose a divisor"
        )
    reason = profile.derived(Strategies).why_not(point.split) or SCHEDULES.load(
        point.schedule
    ).check(point.pp, point.stages, point.microbatches)
    if reason is not None:
        raise InputError(reason, hint="choose another degree, schedule or number of microbatches")


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
