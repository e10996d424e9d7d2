"""Exporters: a plan in the words of another tool; what it cannot say is listed, never dropped.

Adding a target is one file in ``targets/`` and one line here; ``tests/exporters`` then runs its
contract over it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from autopar.core.registry import Entry, Registry

if TYPE_CHECKING:
    from autopar.exporters.base import AbstractExport

EXPORTS: Registry[type[AbstractExport]] = Registry(
    "export target",
    {
        "torchrun": Entry(
            "autopar.exporters.targets.torchrun:Torchrun",
            "shell script that runs the plan, on one host or several",
        ),
        "slurm": Entry(
            "autopar.exporters.targets.slurm:Slurm", "batch script: nodes, devices, rendezvous"
        ),
        "torchtitan": Entry(
            "autopar.exporters.targets.torchtitan:Torchtitan", "TOML job configuration"
        ),
        "megatron": Entry(
            "autopar.exporters.targets.megatron:Megatron", "Megatron-LM arguments, a bash array"
        ),
        "deepspeed": Entry("autopar.exporters.targets.deepspeed:DeepSpeed", "JSON configuration"),
        "accelerate": Entry(
            "autopar.exporters.targets.accelerate:Accelerate", "YAML configuration: DDP or FSDP2"
        ),
        "perfetto": Entry(
            "autopar.exporters.targets.perfetto:Perfetto",
            "predicted timeline as a trace for ui.perfetto.dev",
        ),
        "csv": Entry(
            "autopar.exporters.targets.csv:Csv", "table of the ranked plans with their ranges"
        ),
    },
)

__all__ = ["EXPORTS"]
