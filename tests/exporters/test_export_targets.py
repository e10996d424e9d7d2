"""What single targets write: the numbers a person would check by hand."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from exporters.export_forms import READERS
from exporters.test_export_contract import example

import autopar
from autopar.core.errors import InputError
from autopar.cost.simulation.replay import simulate_plan
from autopar.exporters.hosts import hosts_of
from autopar.exporters.layers import layers_of
from autopar.plans import Mesh, Plan, Stage, TaskRef
from autopar.results import PlanPrice, SearchResult


def read(plan: Plan | SearchResult, target: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Parsed text, and key -> reason."""
    exported = autopar.export(plan, target)
    reasons = {loss.key: loss.reason for loss in exported.lossy}
    return READERS[target](exported.text), reasons


def pipeline(names: list[list[str]], **changes: Any) -> Plan:
    """Stages with these block names, ten ops a block."""
    edges = [0]
    for blocks in names:
        edges.append(edges[-1] + 10 * len(blocks))
    stages = tuple(
        Stage(first_op=a, stop_op=b, pp=i, blocks=tuple(blocks))
        for i, (a, b, blocks) in enumerate(zip(edges, edges[1:], names, strict=False))
    )
    return Plan(
        task=TaskRef(name="mine", target="zoo:gpt", fingerprint="f", op_count=edges[-1]),
        mesh=Mesh(pp=len(names)),
        stages=stages,
        schedule="1f1b",
        microbatches=4,
        microbatch_size=2,
        **changes,
    )


UNEVEN = [["n.embed", "n.h.0"], ["n.h.1", "n.h.2", "n.h.2.mlp … 2", "n.h.3"], ["n.ln … loss"]]


def test_uneven_stages_in_torchtitan_and_megatron() -> None:
    titan, lost = read(pipeline(UNEVEN), "torchtitan")
    assert titan["parallelism"]["module_fqns_per_model_part"] == [
        ["tok_embeddings", "layers.0"],
        ["layers.1", "layers.2", "layers.3"],
        ["norm", "output"],
    ]
    assert "stages" not in lost
    words, lost = read(pipeline(UNEVEN), "megatron")
    assert words["--pipeline-model-parallel-layout"] == "Et|ttt|L"
    assert "stages" not in lost


def test_a_cut_inside_a_layer_is_named() -> None:
    cut = [["n.embed", "n.h.0", "n.h.1"], ["n.h.1.mlp … 1", "n.h.2", "n.ln … loss"]]
    for target in ("torchtitan", "megatron"):
        assert "inside layer 1" in read(pipeline(cut), target)[1]["stages"]


@pytest.mark.parametrize(
    "names",
    [
        [["enc.layers.0"], ["dec.layers.0"]],  # two stacks
        [["n.conv"], ["n.fc"]],  # none
        [["n.h.0.a … 1.b"], ["n.h.2"]],  # a block over two layers
        [["n.h.0.experts.0 … 3.act"], ["n.h.1"]],  # experts or layers
        [["n.h.1"], ["n.h.2"]],  # the first is missing
        [[], []],
    ],
)
def test_layers_are_not_guessed(names: list[list[str]]) -> None:
    if not any(names):
        plan = example(
            stages=(Stage(first_op=0, stop_op=10, pp=0), Stage(first_op=10, stop_op=20, pp=1))
        )
    else:
        plan = pipeline(names)
    assert layers_of(plan) is None
    for target in ("torchtitan", "megatron"):
        assert "layers of one stack" in read(plan, target)[1]["stages"]


def test_virtual_stages_in_megatron() -> None:
    plan = example(
        mesh=Mesh(pp=2),
        schedule="interleaved",
        stages=tuple(
            Stage(first_op=5 * i, stop_op=5 * i + 5, pp=i % 2, blocks=(f"n.h.{i}",))
            for i in range(4)
        ),
    )
    words, lost = read(Plan.from_dict({**plan.to_dict(), "predicted": {}}), "megatron")
    assert words["--num-layers-per-virtual-pipeline-stage"] == 1
    assert {"stages", "schedule"}.isdisjoint(lost)


def test_batches() -> None:
    """4 microbatches of 2 on 2 replicas, with and without a pipeline."""
    titan, _ = read(example(), "torchtitan")
    assert titan["training"]["local_batch_size"] == 8  # a pipeline step takes all microbatches
    assert titan["parallelism"]["pipeline_parallel_microbatch_size"] == 2
    flat = (Stage(first_op=0, stop_op=20, pp=0),)
    plain = Plan.from_dict(
        {
            **example().to_dict(),
            "mesh": Mesh(dp_replicate=2).to_dict(),
            "stages": [{"first_op": 0, "stop_op": 20, "pp": 0}],
            "schedule": "none",
            "placement": [],
            "predicted": {},
        }
    )
    assert plain.stages == flat
    titan, lost = read(plain, "torchtitan")
    assert titan["training"]["local_batch_size"] == 2
    assert titan["training"]["global_batch_size"] == 16  # so torchtitan accumulates 4 times
    assert titan["parallelism"]["data_parallel_replicate_degree"] == 2
    assert "mesh.dp_replicate" not in lost
    speed, _ = read(plain, "deepspeed")
    assert (
        speed["train_batch_size"]
        == 16
        == (speed["train_micro_batch_size_per_gpu"] * speed["gradient_accumulation_steps"] * 2)
    )


def test_clipping_that_the_plan_does_not_have_is_turned_off() -> None:
    assert read(example(), "torchtitan")[0]["training"]["max_norm"] == float("inf")
    assert read(example(), "megatron")[0]["--clip-grad"] == 0.0
    assert read(example(), "deepspeed")[0]["gradient_clipping"] == 0.0


def test_replicas_beside_other_axes_become_shards_and_say_so() -> None:
    plan = example(mesh=Mesh(dp_replicate=2, tp=2), stages=(Stage(first_op=0, stop_op=20, pp=0),))
    plan = Plan.from_dict({**plan.to_dict(), "predicted": {}, "schedule": "none"})
    titan, lost = read(plan, "torchtitan")
    assert titan["parallelism"]["data_parallel_shard_degree"] == 2
    assert titan["parallelism"]["fsdp_reshard_after_forward"] == "never"
    assert "FSDP" in lost["mesh.dp_replicate"]
    settings, lost = read(plan, "accelerate")
    assert settings["parallelism_config"]["parallelism_config_dp_shard_size"] == 2
    assert settings["num_processes"] == 4
    assert "FSDP2" in lost["mesh.dp_replicate"]


def test_accelerate_on_cpu_hosts() -> None:
    """As accelerate 1.14.0 was seen to do with two ranks on a CPU host."""
    one = (Stage(first_op=0, stop_op=20, pp=0),)
    body = {"stages": one, "schedule": "none", "threads": 1, "cluster": "local:2"}
    settings, lost = read(example(mesh=Mesh(dp_replicate=2), **body), "accelerate")
    assert settings["distributed_type"] == "MULTI_GPU" and settings["use_cpu"] is True
    assert "Accelerator(cpu=True)" in lost["cluster"]
    settings, lost = read(example(mesh=Mesh(dp_shard=2), zero=3, **body), "accelerate")
    assert settings["distributed_type"] == "FSDP" and "refuses" in lost["cluster"]


def test_sequence_parallel_that_torchtitan_adds_is_told() -> None:
    assert "sequence" in read(example(), "torchtitan")[1]["sequence_parallel"]
    assert "sequence_parallel" not in read(example(sequence_parallel=True), "torchtitan")[1]


def test_recompute() -> None:
    stages = example().stages
    half = (Stage(first_op=0, stop_op=10, pp=0, recompute=((0, 5),), blocks=stages[0].blocks),)
    plan = example(stages=(*half, stages[1]))
    words, lost = read(plan, "megatron")
    assert words["--recompute-method"] == "block" and words["--recompute-num-layers"] == 1
    assert "first 1 layer" in lost["recompute"]
    titan, lost = read(plan, "torchtitan")
    assert titan["activation_checkpoint"]["mode"] == "full" and "recompute" in lost


@pytest.mark.parametrize(
    ("zero", "strategy"), [(1, None), (2, "optim_grads"), (3, "optim_grads_params")]
)
def test_zero_stages(zero: int, strategy: str | None) -> None:
    plan = example(mesh=Mesh(dp_shard=2, tp=2, pp=2), zero=zero)
    words, _ = read(plan, "megatron")
    assert words["--use-distributed-optimizer"] is True
    assert words.get("--data-parallel-sharding-strategy") == strategy
    speed, lost = read(plan, "deepspeed")
    assert speed["zero_optimization"]["stage"] == 1  # its pipelines take no more
    assert ("zero" in lost) == (zero > 1)


def test_nothing_of_the_mesh_survives_in_deepspeed_without_a_word(
    searches: dict[str, SearchResult],
) -> None:
    _, lost = read(searches["tp-pp"], "deepspeed")
    assert {"mesh.pp", "mesh.tp", "stages", "schedule"} <= lost.keys()


def test_stale_server_is_lost_everywhere_but_in_our_own(
    searches: dict[str, SearchResult],
) -> None:
    for target in ("torchtitan", "megatron", "deepspeed", "accelerate"):
        assert "sync" in read(searches["ps-stale"], target)[1]
    for target in ("torchrun", "slurm", "csv", "perfetto"):
        assert "sync" not in read(searches["ps-stale"], target)[1]


@pytest.mark.parametrize(
    ("cluster", "placement", "nodes", "doubt"),
    [
        ("2x4:t4", range(8), 2, None),
        ("8x4:t4", range(8), 2, None),
        ("8x4:t4", range(0, 32, 4), 8, None),
        ("2x4:t4", (4, 5, 6, 7, 0, 1, 2, 3), 2, "placement"),
        ("2x4:t4", (0, 4, 1, 5, 2, 6, 3, 7), 2, "placement"),
        ("1x2:t4+1x6:t4", range(8), 2, "cluster"),
        ("our-lab", range(8), 1, "cluster"),
        ("local:8", range(8), 1, None),
        ("", range(8), 1, None),
    ],
)
def test_hosts(cluster: str, placement: Any, nodes: int, doubt: str | None) -> None:
    hosts = hosts_of(example(cluster=cluster, placement=tuple(placement)))
    assert (hosts.nodes, hosts.ranks_per_node) == (nodes, 8 // nodes)
    assert [key for key, _ in hosts.doubts] == ([doubt] if doubt else [])


def test_cluster_file_of_that_name_is_not_read(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    Path("lab.json").write_text("not a cluster")
    assert hosts_of(example(cluster="lab.json")).nodes == 1


def test_slurm_options(searches: dict[str, SearchResult]) -> None:
    parsed, lost = read(searches["tp-pp"], "slurm")
    options = parsed["options"]
    assert options["nodes"] == options["ntasks"] == "2"
    assert options["gpus-per-node"] == "4" and options["ntasks-per-node"] == "1"
    assert parsed["plan"] == searches["tp-pp"].best.plan
    assert lost == {}
    plan = example(cluster="local:8", threads=2)
    parsed, _ = read(plan, "slurm")
    assert parsed["options"]["cpus-per-task"] == "16" and "gpus-per-node" not in parsed["options"]


STUB = """#!/bin/sh
printf '%s\\n' "$@" > "args-${SLURM_NODEID:-x}"
"""


def test_slurm_script_runs_under_a_stand_in(
    tmp_path: Path, searches: dict[str, SearchResult]
) -> None:
    """With a srun that starts both tasks, each host gets its number and the same endpoint."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, text in {
        "autopar": STUB,
        "srun": '#!/bin/sh\nfor i in 0 1; do SLURM_NODEID=$i "$@" || exit 1; done\n',
        "scontrol": "#!/bin/sh\nprintf 'node7\\nnode9\\n'\n",
    }.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    autopar.export(searches["tp-pp"], "slurm", out=tmp_path / "job.sh")
    environment = {
        **os.environ,
        "PATH": f"{tools}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "123",
        "SLURM_JOB_NODELIST": "node[7,9]",
    }
    subprocess.run(["bash", "job.sh", "--steps", "3"], cwd=tmp_path, env=environment, check=True)
    for number in ("0", "1"):
        words = (tmp_path / f"args-{number}").read_text().split("\n")
        assert words[0] == "run" and Plan.load(Path(words[1])) == searches["tp-pp"].best.plan
        options = dict(zip(words[2::2], words[3::2], strict=False))
        assert options["--node-rank"] == number and options["--nnodes"] == "2"
        assert options["--rdzv-endpoint"] == "node7:20123" and options["--steps"] == "3"


def test_perfetto_shows_the_simulated_step(searches: dict[str, SearchResult]) -> None:
    best = searches["tp-pp"].best
    trace, lost = read(searches["tp-pp"], "perfetto")
    slices = [row for row in trace["traceEvents"] if row["ph"] == "X"]
    expected = simulate_plan(best.plan, best.price).events
    assert len(slices) == len(expected)
    end_s = max(row["ts"] + row["dur"] for row in slices) / 1e6
    assert end_s == pytest.approx(best.price.step_time_s.value)
    assert {row["tid"] for row in slices} == {best.plan.mesh.rank(pp=i) for i in range(4)}
    assert Plan.from_dict(json.loads(trace["otherData"]["plan"])) == best.plan
    assert lost.keys() == {"mesh.tp"}


def test_perfetto_needs_a_prediction() -> None:
    with pytest.raises(InputError, match="no prediction"):
        autopar.export(pipeline(UNEVEN), "perfetto")
    broken = example().with_predicted({"step_time_s": 3})
    with pytest.raises(InputError, match="cannot be read"):
        autopar.export(broken, "perfetto")
    fewer = PlanPrice.from_dict(example().predicted).to_dict()
    fewer["stage_costs"] = fewer["stage_costs"][:1]
    with pytest.raises(InputError, match="1 stages, not 2"):
        autopar.export(example().with_predicted(fewer), "perfetto")


def test_csv_ranks_the_plans_with_ranges(searches: dict[str, SearchResult]) -> None:
    result = searches["fsdp"]
    rows = list(csv.DictReader(io.StringIO(autopar.export(result, "csv").text)))
    assert [row["name"] for row in rows] == [item.name for item in result.top]
    for row, item in zip(rows, result.top, strict=True):
        estimate = item.price.step_time_s
        assert float(row["step_time_s"]) == estimate.value
        assert float(row["step_time_low_s"]) == estimate.low
        assert float(row["step_time_high_s"]) == estimate.high
        assert float(row["peak_memory_high_bytes"]) == item.price.peak_memory_bytes.high
        assert int(row["dp_shard"]) == 4 and row["precision"] == "float16"
        assert json.loads(row["recompute"])


@pytest.mark.slow
def test_torchrun_script_really_runs(tmp_path: Path) -> None:
    """Two ranks of a pipeline, by the script alone."""
    profile = autopar.profile("zoo:mlp", device="t4", out=tmp_path / "mlp.json")
    found = autopar.plan(profile, "1x2:t4", global_batch=8, precision="float32", fix=["pp=2"])
    autopar.export(found, "torchrun", out=tmp_path / "run.sh")
    root = Path(autopar.__file__).resolve().parent.parent
    environment = {
        **os.environ,
        "AUTOPAR": f"{sys.executable} -m autopar",
        "PYTHONPATH": str(root),
        "TMPDIR": str(tmp_path),
    }
    line = ["bash", "run.sh", "--steps", "2", "--warmup", "1", "--out", "out", "--verify"]
    subprocess.run(line, cwd=tmp_path, env=environment, check=True, capture_output=True)
    record = autopar.RunRecord.load(tmp_path / "out")
    assert record.plan == found.best.plan and len(record.losses) >= 2
    assert record.verify is not None and record.verify.passed
    assert not list(tmp_path.glob("autopar-plan*")), "the script removes its plan file"
