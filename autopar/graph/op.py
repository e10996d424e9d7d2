"""One op of the traced training graph and the tensors between ops."""

from __future__ import annotations

from dataclasses import dataclass, field

from autopar.graph.amount import ZERO, Amount


@dataclass(frozen=True, slots=True, kw_only=True)
class Op:
    """A call in the exported graph of ``loss(model(inputs), target)``.

    Attributes:
        index: Position in the op order; plans cut stages at these positions.
        name: Node name in the exported graph.
        target: ATen overload, e.g. ``aten.addmm.default``.
        module: Path of the innermost module that made the call, ``""`` for the loss.
        forward_flop: FLOPs of the call (multiply-add = 2).
        backward_flop: FLOPs of its gradient, given which inputs need one.
        forward_bytes: Bytes read and written by the call; 0 for views.
        backward_bytes: Bytes read and written by its gradient.
        saved_bytes: Bytes autograd keeps from forward to backward that this op produced;
            parameters and batch inputs are not counted, shared storage is counted once.
        output_bytes: Bytes of the call's outputs; 0 for views.
        parameters: Names of the parameters it reads.
        replicated: True when it depends on batch inputs and constants only (masks, positions):
            every stage that needs its value computes it again instead of receiving it.
        random: True when it draws random numbers (dropout).
        kernels: Device kernels one forward call launches; 0 for views.
    """

    index: int
    name: str
    target: str
    module: str
    forward_flop: Amount = ZERO
    backward_flop: Amount = ZERO
    forward_bytes: Amount = ZERO
    backward_bytes: Amount = ZERO
    saved_bytes: Amount = ZERO
    output_bytes: Amount = ZERO
    parameters: tuple[str, ...] = ()
    replicated: bool = False
    random: bool = False
    kernels: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class OpEdge:
    """A tensor that one op hands to a later one.

    Attributes:
        producer: Index of the producing op.
        consumer: Index of the consuming op.
        size_bytes: Bytes of the tensor.
        needs_gradient: True when a gradient of the same size flows back.
        shape: Shape at the profiled batch size.
        dtype: Element type, e.g. ``float32``.
    """

    producer: int
    consumer: int
    size_bytes: Amount
    needs_gradient: bool
    shape: tuple[int, ...] = field(default=())
    dtype: str = "float32"
