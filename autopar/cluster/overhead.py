"""What the executor itself costs on a host: fixed seconds per action and per step."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class HostOverhead:
    """Fixed costs of the stage runner, measured by running a pipeline of almost no work.

    Attributes:
        forward_action_s: A stage's forward for one microbatch: receive, autograd, hand over.
        backward_action_s: The same for its backward.
        step_s: A step outside its actions and its optimizer: bookkeeping.
    """

    forward_action_s: float
    backward_action_s: float
    step_s: float


NO_OVERHEAD = HostOverhead(forward_action_s=0.0, backward_action_s=0.0, step_s=0.0)
