"""Where the seconds and bytes of a step are said to go."""

from __future__ import annotations

import io
import json
import time
from itertools import pairwise
from pathlib import Path

import executor_helpers as helpers
import executor_models as models
import pytest
import torch

from autopar.executor.measuring.breakdown import breakdown, timeline
from autopar.executor.measuring.clock import CpuClock, Recorder, Silent, Span
from autopar.executor.measuring.traffic import Traffic
from autopar.executor.optimizing.gradients import make_buckets
from autopar.executor.options import RunOptions
from autopar.executor.processes.progress import ProgressView, ProgressWriter
from autopar.executor.random_state import seed_generators
from autopar.results import RunRecord


def span(kind: str, start: float, end: float, stage: int, **more: object) -> Span:
    return Span(kind=kind, start_s=start, end_s=end, stage=stage, microbatch=0, **more)  # type: ignore[arg-type]


SPANS = [
    [
        span("forward", 0.0, 1.0, 0),
        span("wait", 1.0, 5.0, 0, towards="backward", peer=1),
        span("backward", 5.0, 8.0, 0),
        span("recompute", 5.5, 6.5, 0),
        span("optimizer", 8.0, 8.5, -1),
    ],
    [
        span("wait", 0.0, 1.5, 1, towards="forward", peer=0),
        span("forward", 1.5, 2.5, 1),
        span("backward", 2.5, 4.0, 1),
    ],
]


def test_waiting_is_split_into_bubble_and_communication() -> None:
    plan = helpers.make_plan(models.mlp(), pp=2, microbatches=1)
    parts = breakdown(plan, SPANS, 0, 9.0)
    assert parts.bubble_s == pytest.approx(3.0)
    assert parts.pipeline_communication_s == pytest.approx(1.0)
    assert parts.recompute_s == pytest.approx(1.0)
    assert parts.backward_s == pytest.approx(2.0)
    assert parts.other_s == pytest.approx(0.5)
    assert parts.total_s == pytest.approx(9.0)
    other = breakdown(plan, SPANS, 1, 4.0)
    assert (other.bubble_s, other.pipeline_communication_s) == pytest.approx((1.0, 0.5))


def test_timeline_cuts_recomputation_out_of_backward() -> None:
    events = [e for e in timeline(SPANS).events if e.rank == 0 and e.start_s >= 5.0]
    assert [(e.kind, e.start_s, e.end_s) for e in sorted(events, key=lambda e: e.start_s)] == [
        ("backward", 5.0, 5.5),
        ("recompute", 5.5, 6.5),
        ("backward", 6.5, 8.0),
        ("optimizer", 8.0, 8.5),
    ]


def test_broadcast_bytes_over_all_ranks_are_one_copy_each() -> None:
    for ranks in (2, 3, 4, 7, 8):
        total = 0.0
        for position in range(ranks):
            traffic = Traffic()
            traffic.broadcast(10, ranks, position)
            total += traffic.take()
        assert total == 10 * (ranks - 1)


def test_buckets_hold_all_parameters_once_and_one_dtype() -> None:
    parameters = [
        torch.nn.Parameter(torch.zeros(n, dtype=torch.float64 if n % 2 else torch.float32))
        for n in (1, 2, 30, 4, 5, 6)
    ]
    buckets = make_buckets(parameters, 64)
    assert sorted(id(p) for b in buckets for p in b) == sorted(id(p) for p in parameters)
    for bucket in buckets:
        assert len({p.dtype for p in bucket}) == 1
        size = sum(p.numel() * p.element_size() for p in bucket)
        assert size <= 64 or len(bucket) == 1


def test_recorder_costs_little() -> None:
    recorder = Recorder(CpuClock())
    recorder.begin()
    before = time.process_time()  # what other processes do does not count
    for i in range(20_000):
        recorder.add("forward", recorder.mark(), stage=0, microbatch=i)
    assert (time.process_time() - before) / 20_000 < 20e-6
    assert len(recorder.recording().spans()) == 20_000


def test_a_silent_recorder_keeps_nothing() -> None:
    recorder = Silent()
    recorder.begin()
    recorder.add("forward", recorder.mark(), stage=0)
    with recorder.span("sync"):
        recorder.add_between("backward", recorder.mark(), recorder.mark())
    assert recorder.recording().spans() == []


def test_generators_are_seeded_without_asking_other_devices(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(7)
    wanted = torch.rand(4)

    def refuse(*_: object) -> None:
        raise AssertionError("torch keeps a formatted stack trace for a device not in use")

    for module in (torch.cuda, torch.xpu, torch.mtia):
        monkeypatch.setattr(module, "_lazy_call", refuse)
    seed_generators(7, torch.device("cpu"))
    assert torch.equal(torch.rand(4), wanted)


def test_a_run_accounts_for_its_time_and_bytes(tmp_path: Path) -> None:
    task = models.mlp()
    plan = helpers.make_plan(task, dp=2, pp=2, cuts=(6,))
    record = helpers.run(plan, task, tmp_path, steps=5)
    times = record.step_times_s
    assert len(times) == 5
    assert len(record.warmup_step_times_s) == 1
    assert record.breakdown.total_s == pytest.approx(sorted(times)[2], rel=1e-9)
    assert all(value >= 0 for value in record.breakdown.to_dict().values())
    assert len(record.peak_memory_bytes) == 4
    assert min(record.peak_memory_bytes) > 50e6
    by_rank = {rank: [e for e in record.timeline.events if e.rank == rank] for rank in range(4)}
    for events in by_rank.values():
        kinds = [e.kind for e in events]
        assert kinds.count("forward") == kinds.count("backward") == 4
        for before, after in pairwise(events):
            assert before.end_s <= after.start_s + 1e-9
    # four microbatches of a [2, 8] activation one way; gradients back; parameters both ways
    activations = 4 * 2 * 8 * 4
    stage_bytes = [2 * (8 * 8 + 8) * 4] * 2
    assert record.bytes_sent[0] == pytest.approx(activations + stage_bytes[0], rel=0.01)
    assert record.bytes_sent == pytest.approx(record.bytes_sent[:1] * 4, rel=0.01)
    assert RunRecord.load(tmp_path).to_dict() == record.to_dict()


def test_progress_is_shown_with_the_prediction(tmp_path: Path) -> None:
    path = tmp_path / "progress.jsonl"
    shown = io.StringIO()
    with ProgressView(path, 0.0398, shown):
        writer = ProgressWriter(path)
        writer.phase("building")
        writer.step(step=50, of=50, loss=2.3101, step_time_s=0.0412)
    assert shown.getvalue() == "building ...\nstep 50/50  loss 2.31  41.2 ms (predicted 39.8)\n"
    assert json.loads(path.read_text().splitlines()[0]) == {"phase": "building"}


def test_options_survive_json(tmp_path: Path) -> None:
    options = RunOptions(out=tmp_path, steps=3, resume=tmp_path / "x", clip_norm=1.0)
    assert RunOptions.from_dict(json.loads(json.dumps(options.to_dict()))) == options
