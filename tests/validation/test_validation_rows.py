"""Rows of published tables: what is read, what is filled in, what is refused and why."""

import csv
from pathlib import Path

import pytest

from autopar.core.errors import InputError
from autopar.validation.rows.completion import complete
from autopar.validation.rows.platform import find_platform
from autopar.validation.rows.printed_plan import stage_layers
from autopar.validation.rows.shapes import known_shape, shape_of_size
from autopar.validation.rows.table import read_entries

BASE = {
    "id": "x-1",
    "model": "GPT test",
    "layers": "24",
    "hidden": "1024",
    "heads": "16",
    "seq": "2048",
    "gpu": "A100",
    "gpus": "16",
    "dp": "2",
    "tp": "4",
    "pp": "2",
    "micro_batch": "2",
    "global_batch": "64",
    "framework": "Megatron-LM",
    "step_time_s": "1.5",
}


def write(path: Path, *changes: dict[str, str]) -> Path:
    rows = [{**BASE, **change} for change in changes]
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, names)
        writer.writeheader()
        writer.writerows(rows)
    return path


def one(tmp_path: Path, **change: str):
    rows, unpriced = complete(read_entries(write(tmp_path / "rows.csv", change)))
    return rows[0] if rows else unpriced[0]


def test_a_full_row_is_taken_as_it_stands(tmp_path):
    row = one(tmp_path)
    assert (row.dp, row.tp, row.pp, row.microbatches) == (2, 4, 2, 16)
    assert row.shape.head_dim == 64
    assert row.shape.ffn == 4096
    assert row.recompute == "full"
    assert any("recompute" in note for note in row.assumed)
    assert row.measured_s == 1.5


def test_what_was_measured_does_not_change_the_row(tmp_path):
    slow = one(tmp_path, step_time_s="99", metric_value="99")
    fast = one(tmp_path, step_time_s="0.1", metric_value="0.1")
    assert slow.fingerprint == fast.fingerprint
    assert {slow.microbatches, slow.recompute} == {fast.microbatches, fast.recompute}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"gpu": "Cray-1"}, "not in the catalogue"),
        ({"seq": ""}, "no seq"),
        ({"model": "my net", "layers": "", "hidden": ""}, "neither stated nor known"),
        ({"gpus": "15"}, "does not divide"),
        ({"gpu": "A100", "precision": "fp8"}, "no float8"),
        ({"tp": "x"}, "no tp"),
    ],
)
def test_rows_without_a_price_say_why(tmp_path, change, reason):
    assert reason in one(tmp_path, **change).reason


def test_missing_columns_are_one_line(tmp_path):
    path = tmp_path / "bad.csv"
    path.write_text("id,model\na,b\n")
    with pytest.raises(InputError, match="lacks the columns seq, gpu"):
        read_entries(path)


@pytest.mark.parametrize("text", ["", "id\n", "\x00\x01", '"unclosed'])
def test_odd_files_are_refused_without_a_traceback(tmp_path, text):
    path = tmp_path / "odd.csv"
    path.write_text(text)
    with pytest.raises(InputError):
        read_entries(path)


def test_ragged_lines_and_nonsense_cells_lose_no_row(tmp_path):
    path = write(tmp_path / "rows.csv", {"id": "a-1"}, {"id": "b-1", "heads": "many"})
    path.write_text(path.read_text() + "c-1,short\n,,,\n")
    rows, unpriced = complete(read_entries(path))
    assert {r.id for r in (*rows, *unpriced)} == {"a-1", "b-1", "c-1"}


def test_a_wrong_product_is_corrected_and_said(tmp_path):
    row = one(tmp_path, dp="7")
    assert row.dp == 2
    assert any("dp 2, not the printed 7" in note for note in row.assumed)


@pytest.mark.parametrize(
    ("text", "stage", "ranks"),
    [
        ("ZeRO-1 within 4", 1, 4),
        ("FSDP FULL_SHARD", 3, 16),
        ("FSDP SHARD_GRAD_OP", 2, 16),
        ("HSDP", 3, 8),
        ("DDP/distributed optimizer", 1, 16),
        ("none", 0, 16),
    ],
)
def test_sharding_as_tables_write_it(tmp_path, text, stage, ranks):
    row = one(tmp_path, dp="16", tp="1", pp="1", zero_or_fsdp=text)
    assert (row.zero, row.zero_ranks) == (stage, ranks)


@pytest.mark.parametrize(
    ("layers", "pp", "notes", "expected"),
    [
        (24, 1, "", (24, 0, 24)),
        (24, 4, "", (6, 6, 6)),
        (78, 12, "", (6, 7, 6)),  # 70 + 2 by 12 does not hold, remainder to the middle
        (70, 12, "", (5, 6, 5)),  # embedding and head take a place each
        (24, 2, "layer partition [0, 15, 30]", (12, 0, 12)),
        (24, 4, "stages [7, 6, 6, 7] layers", (6, 6, 6)),
    ],
)
def test_blocks_of_stages(layers, pp, notes, expected):
    assert stage_layers(layers, pp, notes) == expected


def test_mixed_clusters_run_at_the_slowest_device():
    mixed, slow = find_platform("V100+T4 (heterogeneous)"), find_platform("T4")
    assert mixed is not None
    assert slow is not None
    assert mixed.device == "t4+v100"
    assert mixed.peak_flop_per_s == slow.peak_flop_per_s
    assert slow.mean_time == 1
    assert 0.5 < mixed.mean_time < 0.9  # a V100 takes a third of a T4's time
    assert find_platform("V100+Cray-1") is None


def test_cloud_instances_named_in_the_notes_set_the_network(tmp_path):
    row = one(tmp_path, notes="mixed P3.8xlarge + G4dn.12xlarge")
    assert row.inter_bytes_per_s == 1.25e9
    stated = one(tmp_path, notes="P3.8xlarge", inter_gbps="100")
    assert stated.inter_bytes_per_s == 12.5e9


def test_networks_without_rdma_carry_what_tcp_does(tmp_path):
    assert one(tmp_path, notes="4 x G4dn.12xlarge").inter_bytes_per_s == 4e9
    assert one(tmp_path, gpu="T4", tp="2", dp="4").inter_bytes_per_s == 4e9
    assert one(tmp_path, notes="P4d.24xlarge").inter_bytes_per_s == 5e10


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, False),
        ({"precision": "amp_bf16"}, True),
        ({"framework": "NVIDIA DLE PyTorch DDP", "precision": "fp16"}, True),
        ({"framework": "NVIDIA DLE PyTorch DDP", "precision": "tf32"}, False),
    ],
)
def test_autocast_is_stated_or_the_frameworks_way_below_float32(tmp_path, change, expected):
    assert one(tmp_path, **change).autocast is expected


def test_scales_by_row_are_told_by_the_precision(tmp_path):
    assert one(tmp_path, gpu="H100", precision="compile float8 rowwise").row_scaled
    assert not one(tmp_path, gpu="H100", precision="compile float8 tensorwise").row_scaled


def test_bert_projects_the_tokens_it_predicts(tmp_path):
    bert = {"model": "BERT-Large", "seq": "128"}
    assert one(tmp_path, **bert).head_share == 0.16
    assert one(tmp_path, **bert, notes="[A] SQuAD fine-tuning").head_share == 0
    assert one(tmp_path).head_share == 1


def test_a_named_system_sets_the_network(tmp_path):
    assert one(tmp_path, notes="[A] DGX-A100 of 2020").inter_bytes_per_s == 2e11


def test_a_measured_network_comes_before_the_nominal_one(tmp_path):
    notes = "[C] (measured NCCL all-reduce on this fabric 23-57 Gbps of 400 nominal)"
    assert one(tmp_path, notes=notes, inter_gbps="400").inter_bytes_per_s == 5e9


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"framework": "llm-foundry/Composer FSDP1 PURE"}, 2.0),
        ({"framework": "llm-foundry/Composer FSDP1 DEFAULT"}, 4.0),
        ({"framework": "torchtitan FSDP2"}, 4.0),
        ({"precision": "fp32"}, 4.0),
        ({"framework": "something new"}, 2.0),
    ],
)
def test_gradients_travel_as_wide_as_the_framework_keeps_them(tmp_path, change, expected):
    assert one(tmp_path, **change).gradient_bytes == expected


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, 288),
        ({"seq": "128"}, 128),
        ({"notes": "[A] SQuAD fine-tuning"}, 512),
        ({"framework": "Megatron-LM"}, 512),
    ],
)
def test_a_binning_loader_computes_half_of_berts_long_sequences(tmp_path, change, expected):
    base = {"model": "BERT-Large", "framework": "NVIDIA DLE PyTorch DDP", "seq": "512"}
    assert one(tmp_path, **{**base, **change}).seq == expected


def test_torchtitan_gathers_once_with_pipeline_stages_only(tmp_path):
    titan = {"framework": "torchtitan FSDP2", "zero_or_fsdp": "FSDP2"}
    assert one(tmp_path, **titan).gathers_once
    assert not one(tmp_path, **titan, pp="1", dp="4").gathers_once


def test_a_stand_in_shape_counts_less_in_a_fit(tmp_path):
    assert one(tmp_path, model="DeepSeek-V3", layers="", hidden="", heads="").weight == 0.3


def test_replayed_profiles_are_a_generation_of_their_own(tmp_path):
    megatron = {"framework": "Megatron-DeepSpeed"}
    assert one(tmp_path, **megatron).framework == "megatron-deepspeed"
    assert one(tmp_path, **megatron, source="VIA-Research/vTrain").framework == "vtrain"


def test_public_models_are_known_by_name_and_sizes_give_a_gpt():
    found = known_shape("LLAMA3.1_405B")
    assert found is not None
    assert (found.layers, found.hidden, found.kv_heads) == (126, 16384, 8)
    guess = shape_of_size(39)
    block = 12 * guess.hidden**2
    assert guess.layers * block == pytest.approx(39e9, rel=0.1)


@pytest.mark.parametrize(
    ("change", "stage", "ranks"),
    [
        ({"zero_or_fsdp": "FSDP HYBRID_SHARD"}, 3, 8),
        ({"zero_or_fsdp": "FSDP HYBRID_SHARD", "gpus_per_node": "4"}, 3, 4),
        ({"zero_or_fsdp": "_HYBRID_SHARD_ZERO2"}, 2, 8),
        ({"zero_or_fsdp": "HSDP", "tp": "2", "dp": "8"}, 3, 4),
        ({"zero_or_fsdp": "hybrid, within 2"}, 3, 2),
    ],
)
def test_hybrid_sharding_stays_inside_a_node(tmp_path, change, stage, ranks):
    row = one(tmp_path, **{"dp": "16", "tp": "1", "pp": "1", **change})
    assert (row.zero, row.zero_ranks) == (stage, ranks)


def test_a_memory_size_in_the_name_counts_and_is_said(tmp_path):
    row = one(tmp_path, gpu="H100-64GB")
    assert row.platform.memory_bytes == 64 * 1024**3
    assert any("64 GB as its name says" in note for note in row.assumed)
    for name in ("A100-80GB", "A100-40GB", "V100-16GB", "H200-141GB", "GB200", "H100"):
        assert not any("as its name says" in note for note in one(tmp_path, gpu=name).assumed)


def test_leonardos_a100_is_a_device_of_its_own():
    custom, usual = find_platform("A100-64GB"), find_platform("A100-80GB")
    assert custom is not None
    assert usual is not None
    assert custom.device == usual.device == "a100"
    assert (custom.multiprocessors, custom.devices_per_node) == (124, 4)
    assert custom.memory_bytes_per_s < usual.memory_bytes_per_s


@pytest.mark.parametrize(
    ("change", "fused"),
    [
        ({}, False),  # Megatron-LM of 2021
        ({"notes": "[A] FlashAttention-2"}, True),
        ({"framework": "something new"}, True),
        ({"framework": "something new", "notes": "[A] no flash attention"}, False),
        ({"framework": "something new", "notes": "[A] attention is not fused"}, False),
        ({"framework": "something new", "gpu": "V100-32GB"}, False),
        ({"framework": "JAX + Transformer Engine", "notes": "[A] x"}, True),
    ],
)
def test_attention_is_fused_as_stated_else_as_the_framework_does(tmp_path, change, fused):
    assert one(tmp_path, **change).fused_attention is fused


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Megatron-LM", "megatron"),
        ("Megatron-LM (2020)", "megatron"),
        ("Megatron-LM (Jan 2021)", "megatron"),
        ("Megatron-LM, Feb 2025", "megatron-core"),
        ("NeMo Megatron 22.09", "nemo-2022"),
        ("NeMo 24.07 (final)", "nemo"),
        ("NeMo-Megatron-Launcher 24.05-era", "nemo"),
        ("HF + DeepSpeed", "ddp"),
        ("HF Transformers + DeepSpeed 0.14.2", "ddp"),
    ],
)
def test_releases_of_a_framework_are_generations(tmp_path, text, name):
    assert one(tmp_path, framework=text).framework == name


def test_a_network_that_nothing_states_is_an_assumption(tmp_path):
    row = one(tmp_path)
    assert row.network_assumed
    assert any("1600 Gbit/s a node assumed" in note for note in row.assumed)
    for change in ({"inter_gbps": "400"}, {"notes": "DGX-A100"}, {"gpus": "8", "dp": "1"}):
        assert not one(tmp_path, **change).network_assumed


def test_other_networks_are_told_where_they_are_priced(tmp_path):
    empty = {"layers": "", "hidden": "", "heads": "", "params_b": "0.0053"}
    assert "no transformer" in one(tmp_path, model="EfficientNet-B0", **empty).reason
