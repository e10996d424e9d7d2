"""Run a function on several ranks, as forks of this process, and bring the results back."""

from autopar.validation.overhead.ranks import on_ranks

__all__ = ["on_ranks"]
