"""BlockWork: what one block does on one rank."""

from __future__ import annotations

from dataclasses import dataclass

from autopar.graph import Amount
from autopar.strategies.matmul import Attention, Matmul
from autopar.strategies.tensor import Collective


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockWork:
    """One block on one rank, for one microbatch; bytes as profiled.

    Attributes:
        matmuls: Matrix products, divided.
        attention: Fused attention calls with the FLOPs of this rank.
        forward_bytes: Bytes that ops other than products read and write.
        backward_bytes: The same of their gradients.
        autocast_forward_bytes: The same under autocast to 16 bit, casts included.
        autocast_backward_bytes: The same of their gradients.
        autocast_kernels: Forward kernel launches then.
        cast_elements: Weights that autocast casts for products, where nothing gathers them narrow.
        forward_flop_share: Part of the block's FLOPs that the rank does.
        kernels: Forward kernel launches.
        parameter_bytes: Bytes of the parameters it holds, experts left out.
        expert_parameter_bytes: Bytes of the experts it holds.
        saved_bytes: Activations kept for backward.
        selective_saved_bytes: The same when only outputs of products are kept.
        boundary_bytes: What enters the block, kept when all of it is recomputed.
        peak_transient_bytes: Largest op output or tensor that tensor parallel ranks exchange.
        logit_bytes: Class scores that a loss over classes reads: logits.
        collectives: Communication between its ops, sizes of the tensor all ranks of the group
            hold together.
    """

    matmuls: tuple[Matmul, ...]
    attention: tuple[Attention, ...]
    forward_bytes: Amount
    backward_bytes: Amount
    autocast_forward_bytes: Amount
    autocast_backward_bytes: Amount
    autocast_kernels: int
    cast_elements: float
    forward_flop_share: float
    kernels: int
    parameter_bytes: float
    expert_parameter_bytes: float
    saved_bytes: Amount
    selective_saved_bytes: Amount
    boundary_bytes: Amount
    peak_transient_bytes: Amount
    logit_bytes: Amount
    collectives: tuple[Collective, ...]
