"""The registered sync modes and compressions."""

from __future__ import annotations

from autopar.core.registry import Entry, Registry
from autopar.sync.base import AbstractCompression, AbstractSyncMode

SYNC_MODES: Registry[type[AbstractSyncMode]] = Registry(
    "sync mode",
    {
        "all_reduce": Entry(
            "autopar.sync.modes.all_reduce:AllReduce", "mean gradient on every rank, every step"
        ),
        "ps_sync": Entry(
            "autopar.sync.modes.server:SynchronousServer",
            "sharded parameter server that waits for all ranks",
        ),
        "ps_stale": Entry(
            "autopar.sync.modes.server:StaleServer",
            "parameter server, ranks at most BOUND steps apart",
        ),
        "ps_async": Entry(
            "autopar.sync.modes.server:AsynchronousServer",
            "parameter server, ranks never wait for each other",
        ),
        "local_sgd": Entry(
            "autopar.sync.modes.local:LocalSgd", "local steps, weights averaged every PERIOD steps"
        ),
        "post_local_sgd": Entry(
            "autopar.sync.modes.local:PostLocalSgd",
            "all-reduce for the START of training, then local SGD",
        ),
        "hierarchical": Entry(
            "autopar.sync.modes.hierarchical:Hierarchical",
            "gradients averaged inside nodes, weights across nodes every PERIOD steps",
        ),
        "diloco": Entry(
            "autopar.sync.modes.diloco:DiLoCo",
            "local steps, outer Nesterov momentum every PERIOD steps",
        ),
    },
)

COMPRESSIONS: Registry[type[AbstractCompression]] = Registry(
    "compression",
    {
        "none": Entry("autopar.sync.compressions.none:NoCompression", "gradients as they are"),
        "fp16": Entry("autopar.sync.compressions.half:Float16", "rounded to float16"),
        "bf16": Entry("autopar.sync.compressions.half:BFloat16", "rounded to bfloat16"),
        "int8": Entry(
            "autopar.sync.compressions.int8:Int8", "rounded to 8 bits with a scale per 256"
        ),
        "powersgd": Entry(
            "autopar.sync.compressions.powersgd:PowerSgd",
            "two factors of rank RANK, error feedback",
        ),
        "topk": Entry(
            "autopar.sync.compressions.topk:TopK",
            "the DENSITY largest elements, error feedback",
        ),
    },
)
