"""Times of a task's blocks, its whole model and its optimizer, under a real run's load."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path

from autopar.graph import Block, Measurement
from autopar.profiler.counting.dataflow import CountedGraph, Progress
from autopar.profiler.timing.assembly import assemble
from autopar.profiler.timing.campaign import Campaign
from autopar.profiler.timing.host_load import Load
from autopar.profiler.timing.launch import BusyRanks
from autopar.profiler.timing.missing_points import cut_points, missing
from autopar.profiler.timing.points import Point, PointStore
from autopar.profiler.timing.policy import MeasurePolicy
from autopar.trace import TracedTask


def measure(
    traced: TracedTask,
    graph: CountedGraph,
    blocks: tuple[Block, ...],
    *,
    smallest: int,
    load: Load,
    policy: MeasurePolicy,
    store: PointStore,
    progress: Progress | None = None,
) -> tuple[Measurement | None, list[str], bool]:
    """Time what the store does not know yet and put the measurement together.

    Args:
        traced: The task at its profiled batch size.
        graph: Its counted ops.
        blocks: Its blocks.
        smallest: Fewest samples the model trains on.
        load: Device and busy ranks.
        policy: How to time.
        store: Known results; new ones are added as they come.
        progress: Called with ``("measure", done, total)``.

    Returns:
        The measurement (``None`` when nothing could be timed), warnings, and whether everything
        came from the store.
    """
    campaign = Campaign(
        traced=traced,
        graph=graph,
        blocks=blocks,
        smallest=smallest,
        load=load,
        policy=policy,
        store=store,
        progress=progress,
    )
    fresh = _run(campaign)
    return assemble(campaign), campaign.warnings, not fresh


def _run(campaign: Campaign) -> bool:
    """Time the missing points; true when there were any."""
    wanted = missing(campaign)
    if not wanted:
        return False
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="autopar-profile-"))
        ranks = stack.enter_context(
            BusyRanks(
                Path(folder),
                ranks=campaign.load.ranks,
                threads=campaign.load.threads,
                device=campaign.load.device,
                target=campaign.traced.task.target,
                policy=campaign.policy,
            )
        )
        _collect(campaign, ranks, cut_points(campaign, wanted))
    return True


def _collect(campaign: Campaign, ranks: BusyRanks, points: list[Point]) -> None:
    """Time the points and store what comes back, until a rank breaks."""
    done = 0
    for row in ranks.time(points):
        if "broken" in row:
            campaign.warnings.append(
                f"measuring stopped after {done} of {len(points)} points: {row['broken']}"
            )
            return
        if "resident_bytes" in row:
            campaign.warnings += [row.pop("warning")] if "warning" in row else []
            campaign.store.put("resident", row)
            continue
        if "pace_s" in row:
            campaign.store.put("pace", row)
            continue
        point = points[row.pop("point")]
        campaign.store.put(point.name, row)
        done += 1
        if campaign.progress is not None:
            campaign.progress("measure", done, len(points))
