"""One busy rank: ``python -m autopar.profiler.timing.worker FOLDER RANK``.

The folder holds ``setup.json``, the points to time as ``NNNN.pickle`` and, once all of them are
written, ``go.json`` with their number. Rank 0 appends one JSON line per point to
``results.jsonl``; the others only keep the host as busy as a real run does.
"""

from __future__ import annotations

import gc
import json
import os
import pickle
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from autopar.core.stats import mean, median, quantile, trimmed_mean
from autopar.profiler.host import usable_cores
from autopar.profiler.optimizer import adopt_optimizer
from autopar.profiler.pace import Pace
from autopar.profiler.timing.blocks import Samples, time_call, time_runner
from autopar.profiler.timing.payload import Runner
from autopar.profiler.timing.points import Point
from autopar.profiler.timing.policy import MeasurePolicy
from autopar.profiler.timing.recompute_probe import block_cost, full_cost, selective_cost
from autopar.profiler.timing.resident import resident_after_tracing
from autopar.profiler.timing.step_timing import Eager, Steps, Trainable, time_steps
from autopar.tasks import resolve
from autopar.trace.export import first_line

_POLL_S = 0.02
MOST_AGAIN = 30
"""Most timed passes of a block that is computed again."""


class Rank:
    """A process that times points in step with the others."""

    def __init__(self, folder: Path, rank: int) -> None:
        setup = json.loads((folder / "setup.json").read_text(encoding="utf-8"))
        self._folder = folder
        self._rank = rank
        self._policy = MeasurePolicy(**setup["policy"])
        self._device = setup["device"]
        if self._device == "cuda":
            self._device = f"cuda:{rank % torch.cuda.device_count()}"
            torch.cuda.set_device(self._device)
        torch.set_num_threads(setup["threads"])
        self._target: str | None = setup["target"]
        crowded = self._device == "cpu" and setup["ranks"] * setup["threads"] > usable_cores()
        self._window_s = self._policy.window_s if crowded else 0.0
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder / 'rendezvous'}",
            rank=rank,
            world_size=setup["ranks"],
        )
        self._parent = os.getppid()
        self._fastest: dict[str, float] = {}
        self._align()
        self._rate = self._flop_per_s()
        self._resident = _resident(setup["target"]) if rank == 0 else {}

    def serve(self) -> None:
        """Time all points."""
        go = self._folder / "go.json"
        while not go.exists():
            time.sleep(_POLL_S)
            self._check_parent()
        count = json.loads(go.read_text(encoding="utf-8"))["points"]
        self._report(self._resident)
        gc.collect()
        gc.freeze()  # libraries are no point's garbage: looking for it takes .2 s with them
        pace = Pace()
        started = time.monotonic()
        for number in range(count):
            point: Point = pickle.loads((self._folder / f"{number:04}.pickle").read_bytes())
            self._check_parent()
            late = self._agree(time.monotonic() - started) > self._policy.budget_s
            if point.optional and late:
                result: dict[str, Any] = {"skipped": "time"}
            elif self._agree(self._guess_s(point)) > self._policy.longest_pass_s:
                result = {"skipped": "slow"}
            else:
                result = self._time(point)
            self._report({"point": number, **result})
            if self._device == "cpu":
                self._align()
                pace.sample()
        if pace.seconds is not None:
            self._report({"pace_s": pace.seconds})
        self._report({"done": True})
        dist.destroy_process_group()

    def _guess_s(self, point: Point) -> float:
        """Seconds of a pass, from smaller sizes of the same block or from its FLOPs."""
        if point.key in self._fastest:
            return self._fastest[point.key] * point.samples
        return point.flop / self._rate

    def _flop_per_s(self) -> float:
        """Best rate of a matrix product that every device does well."""
        side = 512
        a = torch.ones(side, side, device=self._device)
        rounds = [time_call(lambda: _discard(a @ a), self._device, repeats=1) for _ in range(9)]
        seconds = min(rounds)
        return float(2 * side**3) / seconds

    def _check_parent(self) -> None:
        """End when the profiler that started this rank is gone."""
        if os.getppid() != self._parent:
            sys.exit(1)

    def _time(self, point: Point) -> dict[str, Any]:
        result: dict[str, Any] = {}
        try:
            result = self._by_kind(point)
        except (RuntimeError, ValueError, IndexError, TypeError, MemoryError) as error:
            result = {"failed": f"{type(error).__name__}: {first_line(error)}"}
        if self._agree_on_failure("failed" in result) and "failed" not in result:
            result = {"failed": "another rank failed"}
        return result

    def _by_kind(self, point: Point) -> dict[str, Any]:
        if point.kind == "optimizer":
            return self._time_optimizer(point)
        if point.kind == "eager":
            assert self._target is not None  # the campaign saw to it
            model = Eager(resolve(self._target), point.samples, self._device)
            return self._time_steps(point, model)
        if point.kind == "whole":
            return self._time_steps(point, self._runner(point))
        return self._time_ops(point)

    def _runner(self, point: Point) -> Runner:
        assert point.payload is not None
        policy = self._policy
        return Runner(
            point.payload,
            self._device,
            import_scale=policy.import_scale,
            weight_scale=policy.weight_scale,
        )

    def _time_steps(self, point: Point, model: Trainable) -> dict[str, Any]:
        """Parts of a step: mean over the ranks, then the typical step."""
        optimizer = None
        if point.optimizer:
            optimizer = adopt_optimizer(point.optimizer, model.parameters)
        self._align()
        mine = time_steps(
            model,
            optimizer,
            self._device,
            self._policy,
            agree=self._agree,
            align=self._align,
        )
        if mine is None:
            return {"skipped": "slow"}
        everyone: list[Steps] = self._gather(mine)
        names = ("forward_s", "backward_s", "optimizer_s")
        means = {
            name: [mean(row) for row in zip(*(getattr(s, name) for s in everyone), strict=True)]
            for name in names
        }
        totals = [sum(row) for row in zip(*means.values(), strict=True)]
        return {
            **{name: self._typical(values) for name, values in means.items()},
            "spread": (quantile(totals, 0.95) - quantile(totals, 0.05)) / 2 / median(totals),
            "repeats": len(totals),
        }

    def _typical(self, seconds: Sequence[float]) -> float:
        """Lower quartile; on a crowded host the mean of most."""
        if self._window_s:
            return trimmed_mean(seconds)
        return quantile(seconds, self._policy.central)

    def _time_ops(self, point: Point) -> dict[str, Any]:
        policy = self._policy
        runner = self._runner(point)
        self._align()
        mine = time_runner(runner, self._device, policy, agree=self._agree, align=self._align)
        if mine is None:
            return {"skipped": "slow"}
        everyone: list[Samples] = self._gather(mine)
        pairs = [rank.typical(policy.central, self._window_s) for rank in everyone]
        forward_s, backward_s = mean([f for f, _ in pairs]), mean([b for _, b in pairs])
        per_sample = (forward_s + backward_s) / point.samples
        self._fastest[point.key] = min(per_sample, self._fastest.get(point.key, per_sample))
        return {
            "forward_s": forward_s,
            "backward_s": backward_s,
            "spread": median([rank.spread for rank in everyone]),
            "repeats": len(mine.forward_s),
            **(self._time_again(runner, len(mine.forward_s)) if point.again else {}),
        }

    def _time_again(self, runner: Runner, repeats: int) -> dict[str, Any]:
        """What computing a block again costs, or why some rank cannot."""
        self._align()
        own: tuple[float, float] | str
        try:
            own = block_cost(runner, self._device, repeats=min(repeats, MOST_AGAIN))
        except (RuntimeError, TypeError, ValueError) as error:
            own = f"{type(error).__name__}: {first_line(error)}"
        found = self._gather(own)
        for reason in found:
            if isinstance(reason, str):
                return {"again_failed": reason}
        full_s, selective_s = (mean(column) for column in zip(*found, strict=True))
        return {"full_s": full_s, "selective_s": selective_s}

    def _time_optimizer(self, point: Point) -> dict[str, Any]:
        parameters = [
            torch.nn.Parameter(torch.zeros(shape, dtype=dtype, device=self._device))
            for shape, dtype in point.shapes
        ]
        size = sum(p.numel() * p.element_size() for p in parameters)
        gradients = [torch.full_like(p, 1e-3) for p in parameters]
        optimizer = adopt_optimizer(point.optimizer, parameters)

        def attach() -> None:
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient

        def accumulate() -> None:
            for parameter, gradient in zip(parameters, gradients, strict=True):
                gradient.add_(parameter.detach())

        def attach_and_clear() -> None:
            attach()
            optimizer.zero_grad(set_to_none=True)

        def step() -> None:
            optimizer.step()

        attach()
        repeats = self._policy.fewest_repeats
        step()
        guess_s = self._agree(time_call(step, self._device, repeats=repeats))
        repeats = min(max(repeats, round(0.1 / max(guess_s, 1e-6))), 50)
        self._align()
        step_s = time_call(step, self._device, repeats=repeats)
        add_s = time_call(accumulate, self._device, repeats=repeats)
        clear_s = time_call(attach_and_clear, self._device, repeats=repeats)
        own = {"step_s": step_s, "accumulate_s": add_s, "zero_grad_s": clear_s}
        own |= self._recompute_costs()
        rows = self._gather(tuple(own.values()))
        columns = (median(list(column)) for column in zip(*rows, strict=True))
        return {**dict(zip(own, columns, strict=True)), "bytes": size}

    def _recompute_costs(self) -> dict[str, float]:
        """Seconds per unit and op, by what :class:`Measurement` calls them."""
        repeats = 10 * self._policy.fewest_repeats
        full = full_cost(self._device, repeats=repeats)
        selective = selective_cost(self._device, repeats=repeats)
        return {
            "checkpoint_s": full.unit_s,
            "checkpoint_s_per_op": full.op_s,
            "selective_s": selective.unit_s,
            "selective_s_per_op": selective.op_s,
        }

    def _report(self, row: dict[str, Any]) -> None:
        if self._rank == 0:
            with (self._folder / "results.jsonl").open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(row) + "\n")

    def _align(self) -> None:
        dist.barrier()

    def _agree(self, value: float) -> float:
        box = torch.tensor([value], dtype=torch.float64)
        dist.broadcast(box, src=0)
        return float(box.item())

    def _agree_on_failure(self, failed: bool) -> bool:
        box = torch.tensor([int(failed)])
        dist.all_reduce(box, op=dist.ReduceOp.MAX)
        return bool(box.item())

    def _gather(self, mine: Any) -> list[Any]:
        everyone: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, mine)
        return everyone


def _discard(_: torch.Tensor) -> None:
    """Drop a result, so that a call can stand where nothing is returned."""


def _resident(target: str | None) -> dict[str, Any]:
    """Memory of this process once it has imported and traced what a training rank does."""
    found, warning = resident_after_tracing(target)
    return {"resident_bytes": found, **({"warning": warning} if warning else {})}


def main() -> None:
    """Serve as the rank named on the command line."""
    folder, rank = Path(sys.argv[1]), int(sys.argv[2])
    if sys.platform.startswith("linux"):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    Rank(folder, rank).serve()


if __name__ == "__main__":
    main()
