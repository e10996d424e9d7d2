"""Times of a task's blocks, its whole model and its optimizer, under a real run's load."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch

from autopar.core.errors import InputError, TraceError
from autopar.core.stats import median
from autopar.core.units import format_bytes
from autopar.graph import Block, BlockCurve, Measurement
from autopar.profiler import host
from autopar.profiler.dataflow import CountedGraph, Progress, count
from autopar.profiler.launch import BusyRanks
from autopar.profiler.optimizer import optimizer_state, pickle_optimizer
from autopar.profiler.payload import make_payload, real_leaves
from autopar.profiler.points import Point, PointStore, point_name
from autopar.profiler.policy import MeasurePolicy, microbatch_sizes
from autopar.trace import TracedTask, trace


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How the host is loaded while measuring.

    Attributes:
        device: ``cpu`` or ``cuda``.
        name: Model name of the device.
        ranks: Processes that compute at the same time.
        threads: Threads of each.
    """

    device: str
    name: str
    ranks: int
    threads: int


def host_load(device: str, busy_ranks: int | None) -> Load:
    """The load to measure under; by default one busy rank per core, at most eight.

    On a GPU the default is one rank, as ranks do not share devices.
    """
    cores = host.usable_cores()
    if device == "cuda":
        ranks = busy_ranks or 1
        name = torch.cuda.get_device_name()
    else:
        ranks = busy_ranks or min(cores, 8)
        name = host.cpu_name()
    return Load(device=device, name=name, ranks=ranks, threads=max(1, cores // ranks))


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
    campaign = _Campaign(traced, graph, blocks, smallest, load, policy, store, progress)
    fresh = campaign.run()
    return campaign.assemble(), campaign.warnings, not fresh


@dataclass
class _Campaign:
    traced: TracedTask
    graph: CountedGraph
    blocks: tuple[Block, ...]
    smallest: int
    load: Load
    policy: MeasurePolicy
    store: PointStore
    progress: Progress | None
    warnings: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.unique = list({b.signature: b for b in reversed(self.blocks)}.values())[::-1]
        self.pickled = pickle_optimizer(self.traced.task)
        self.state_ratio = optimizer_state(self.traced.task).state_bytes_per_parameter_byte
        self.sizes = microbatch_sizes(self.smallest, self.traced.batch)
        self.available = _available_bytes() * self.policy.memory_share / self.load.ranks

    def run(self) -> bool:
        """Time the missing points; true when there were any."""
        wanted = self._wanted()
        if not wanted:
            return False
        with ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="autopar-profile-"))
            ranks = stack.enter_context(
                BusyRanks(
                    Path(folder),
                    ranks=self.load.ranks,
                    threads=self.load.threads,
                    device=self.load.device,
                    target=self.traced.task.target,
                    policy=self.policy,
                )
            )
            points = self._points(wanted)
            self._collect(ranks, points)
        return True

    def _wanted(self) -> list[tuple[str, Block | None, int]]:
        """``(kind, block, samples)`` of what is missing: extremes of the sizes first."""
        ends = list(dict.fromkeys((self.sizes[0], self.sizes[-1])))
        middle = [s for s in self.sizes if s not in ends]
        fitting = [b for b in self.unique if self._fits(b, self.sizes[0])]
        share = self._flop_share(fitting)
        if share < self.policy.smallest_share:
            self.warnings.append(
                f"nothing is timed: blocks that fit in memory here hold {share:.0%} of the FLOPs"
            )
            return []
        rows: list[tuple[str, Block | None, int]] = []
        for samples in (*ends, *middle):
            rows += [("block", b, samples) for b in fitting if self._fits(b, samples)]
            if self._whole_fits(samples):
                kinds = ("whole", "eager") if self.traced.task.target else ("whole",)
                rows += [(kind, None, samples) for kind in kinds]
        if fitting:
            rows.append(("optimizer", None, 1))
        return [row for row in rows if _row_name(row) not in self.store.results]

    def _flop_share(self, unique: list[Block]) -> float:
        """Share of the model's FLOPs in blocks with these signatures."""
        keys = {block.signature for block in unique}
        total = [b.forward_flop.at(1) for b in self.blocks]
        part = [f for b, f in zip(self.blocks, total, strict=True) if b.signature in keys]
        return sum(part) / sum(total) if sum(total) else 1.0

    def _fits(self, block: Block, samples: int) -> bool:
        if self.load.device != "cpu":
            return True
        need = (
            2 * block.parameter_bytes
            + block.saved_bytes.at(samples)
            + 2 * block.boundary_bytes.at(samples)
            + 3 * block.peak_transient_bytes.at(samples)
        )
        return need * self.policy.memory_factor < self.available

    def _whole_fits(self, samples: int) -> bool:
        if self.load.device != "cpu":
            return True
        saved = sum(b.saved_bytes.at(samples) for b in self.blocks)
        transient = max(b.peak_transient_bytes.at(samples) for b in self.blocks)
        state = self.state_ratio
        need = (2 + state) * _parameter_bytes(self.traced) + saved + 3 * transient
        return need * self.policy.memory_factor < self.available

    def _points(self, wanted: list[tuple[str, Block | None, int]]) -> list[Point]:
        """Cut out what is to be timed; each size needs its own trace."""
        made: dict[str, Point] = {}
        sizes = sorted({s for kind, _, s in wanted if kind != "optimizer"})
        for position, samples in enumerate(sizes):
            if self.progress is not None:
                self.progress("trace sizes", position, len(sizes))
            cut = self._at(samples)
            if cut is None:
                continue
            traced, graph = cut
            leaves = real_leaves(traced)
            for kind, block, s in wanted:
                if s == samples and kind != "optimizer":
                    made[_row_name((kind, block, s))] = self._point(
                        traced, graph, leaves, kind, block, s
                    )
        for row in wanted:
            if row[0] == "optimizer":
                point = self._optimizer_point()
                if point is not None:
                    made[_row_name(row)] = point
        return [made[_row_name(row)] for row in wanted if _row_name(row) in made]

    def _at(self, samples: int) -> tuple[TracedTask, CountedGraph] | None:
        if samples == self.traced.batch:
            return self.traced, self.graph
        device = "meta" if _is_meta(self.traced) else "cpu"
        try:
            traced = trace(self.traced.task, samples, device=device)
        except (TraceError, InputError) as error:
            self.warnings.append(f"microbatch of {samples} cannot be traced: {error}")
            return None
        if traced.fingerprint != self.traced.fingerprint:
            self.warnings.append(
                f"microbatch of {samples} gives another graph ({len(traced.nodes)} ops instead of "
                f"{len(self.traced.nodes)}); not measured"
            )
            return None
        return traced, count(traced)

    def _point(
        self,
        traced: TracedTask,
        graph: CountedGraph,
        leaves: list[torch.Tensor],
        kind: str,
        block: Block | None,
        samples: int,
    ) -> Point:
        first, stop = (block.first_op, block.stop_op) if block else (0, len(traced.nodes))
        among = [block] if block else list(self.blocks)
        flop = sum(b.forward_flop.at(samples) + b.backward_flop.at(samples) for b in among)
        return Point(
            kind=kind,
            key=block.signature if block else kind,
            samples=samples,
            label=block.name if block else "the whole model",
            flop=flop,
            payload=None if kind == "eager" else make_payload(traced, graph, first, stop, leaves),
            optimizer=b"" if block else self.pickled or b"",
            optional=samples not in (self.sizes[0], self.sizes[-1]),
        )

    def _optimizer_point(self) -> Point | None:
        data = self.pickled
        if data is None:
            self.warnings.append(
                "the optimizer's class cannot be pickled; its step is not measured "
                "(define the class at the top level of a module)"
            )
            return None
        shapes: list[tuple[tuple[int, ...], torch.dtype]] = []
        limit = min(self.policy.largest_optimizer_bytes, self.available / 6)
        total = 0
        for parameter in _parameters(self.traced):
            total += parameter.numel() * parameter.element_size()
            if total > limit and shapes:
                break
            shapes.append((tuple(parameter.shape), parameter.dtype))
        return Point(
            kind="optimizer",
            key="optimizer",
            samples=1,
            label="the optimizer step",
            optimizer=data,
            shapes=tuple(shapes),
        )

    def _collect(self, ranks: BusyRanks, points: list[Point]) -> None:
        done = 0
        for row in ranks.time(points):
            if "broken" in row:
                self.warnings.append(
                    f"measuring stopped after {done} of {len(points)} points: {row['broken']}"
                )
                return
            if "resident_bytes" in row:
                self.warnings += [row.pop("warning")] if "warning" in row else []
                self.store.put("resident", row)
                continue
            point = points[row.pop("point")]
            self.store.put(point.name, row)
            done += 1
            if self.progress is not None:
                self.progress("measure", done, len(points))

    def assemble(self) -> Measurement | None:
        """Curves and factors from the stored results."""
        curves = {
            block.signature: curve
            for block in self.unique
            if (curve := self._curve(block)) is not None
        }
        self._warn_unmeasured(curves)
        if not curves:
            return None
        spread = self._spread()
        if spread > self.policy.noisy_spread:
            self.warnings.append(
                f"timings vary by +-{spread:.0%}: other programs kept the host busy; for sharper "
                f"predictions delete {self.store.path.parent} and profile again on a quiet host"
            )
        step = self.store.value("optimizer", "optimizer", 1) or {}
        per_byte = step.get("step_s", 0.0) / step["bytes"] if step else 0.0
        total = _parameter_bytes(self.traced)
        scale = total / step["bytes"] if step else 0.0
        clear_s = step.get("zero_grad_s", 0.0) * scale
        within_s = self._optimizer_s()
        if within_s is not None and total:
            per_byte = max(within_s - clear_s, 0.0) / total
        return Measurement(
            device=self.load.name,
            busy_ranks=self.load.ranks,
            threads=self.load.threads,
            curves=curves,
            composition=self._composition(curves),
            eager=self._eager(),
            optimizer_s=per_byte * total,
            optimizer_s_per_byte=per_byte,
            zero_grad_s=clear_s,
            accumulate_s_per_byte=step.get("accumulate_s", 0.0) / step["bytes"] if step else 0.0,
            checkpoint_s=step.get("checkpoint_s", 0.0),
            checkpoint_s_per_op=step.get("checkpoint_s_per_op", 0.0),
            selective_s=step.get("selective_s", 0.0),
            selective_s_per_op=step.get("selective_s_per_op", 0.0),
            resident_bytes=self.store.results.get("resident", {}).get("resident_bytes", 0.0),
            spread=spread,
        )

    def _curve(self, block: Block) -> BlockCurve | None:
        points = [
            (float(s), row["forward_s"], row["backward_s"])
            for s in self.sizes
            if (row := self.store.value("block", block.signature, s)) is not None
        ]
        return BlockCurve(points=tuple(points)) if points else None

    def _composition(self, curves: dict[str, BlockCurve]) -> tuple[tuple[float, float], ...]:
        if any(block.signature not in curves for block in self.blocks):
            return ()
        result = []
        for samples in self.sizes:
            row = self.store.value("whole", "whole", samples)
            if row is None:
                continue
            parts = sum(sum(curves[b.signature].at(samples)) for b in self.blocks)
            result.append((float(samples), (row["forward_s"] + row["backward_s"]) / parts))
        return tuple(result)

    def _eager(self) -> tuple[tuple[float, float, float], ...]:
        result = []
        for samples in self.sizes:
            own = self.store.value("eager", "eager", samples)
            traced = self.store.value("whole", "whole", samples)
            if own is not None and traced is not None:
                forward, backward = (
                    max(own[key] / max(traced[key], 1e-9), 1.0)
                    for key in ("forward_s", "backward_s")
                )
                result.append((float(samples), forward, backward))
        return tuple(result)

    def _optimizer_s(self) -> float | None:
        """Seconds of an optimizer step inside a training step, ``None`` when not known."""
        rows = [self.store.value("whole", "whole", samples) for samples in self.sizes]
        found = [row["optimizer_s"] for row in rows if row and row.get("optimizer_s")]
        return median(found) if found and self.pickled else None

    def _spread(self) -> float:
        spreads = [row["spread"] for row in self.store.results.values() if "spread" in row]
        return median(spreads) if spreads else 0.0

    def _warn_unmeasured(self, curves: dict[str, BlockCurve]) -> None:
        missing = [block for block in self.unique if block.signature not in curves]
        large = [block for block in missing if not self._fits(block, self.sizes[0])]
        if large:
            need = max(block.parameter_bytes for block in large)
            self.warnings.append(
                f"{len(large)} of {len(self.unique)} unique blocks are too large to time here "
                f"(up to {format_bytes(need)} of parameters, {self.load.ranks} busy ranks); "
                "they are priced from their FLOPs and bytes"
            )
        for block in missing:
            rows = [
                self.store.results.get(point_name("block", block.signature, s), {})
                for s in self.sizes
            ]
            reasons = [r.get("failed") or r.get("skipped") for r in rows if r]
            if reasons:
                cause = "a pass takes too long" if reasons[0] == "slow" else str(reasons[0])
                self.warnings.append(f"block '{block.name}' is not measured: {cause}")


def _row_name(row: tuple[str, Block | None, int]) -> str:
    kind, block, samples = row
    return point_name(kind, block.signature if block else kind, samples)


def _parameters(traced: TracedTask) -> list[torch.nn.Parameter]:
    found: dict[str, torch.nn.Parameter] = {}
    for attribute, name in traced.parameter_names.items():
        found.setdefault(name, traced.module.get_parameter(attribute))
    return list(found.values())


def _parameter_bytes(traced: TracedTask) -> int:
    return sum(p.numel() * p.element_size() for p in _parameters(traced))


def _is_meta(traced: TracedTask) -> bool:
    return all(p.is_meta for p in _parameters(traced))


def _available_bytes() -> float:
    return float(min(psutil.virtual_memory().available, host.memory_bytes()))
