"""Runs a plan: the very plan, on the very model, with torch.distributed."""

from autopar.executor.launching.launch import run_plan
from autopar.executor.options import RunOptions

__all__ = ["RunOptions", "run_plan"]
