"""What is trained: the compute graph of a task, its costs per op and its repeated blocks."""

from autopar.graph.amount import Amount
from autopar.graph.block import Block, BlockEdge
from autopar.graph.convergence import Convergence
from autopar.graph.measurement import BlockCurve, Measurement
from autopar.graph.noise import GradientNoise, NoisePoint
from autopar.graph.op import Op, OpEdge
from autopar.graph.profile import GraphProfile, OptimizerState

__all__ = [
    "Amount",
    "Block",
    "BlockCurve",
    "BlockEdge",
    "Convergence",
    "GradientNoise",
    "GraphProfile",
    "Measurement",
    "NoisePoint",
    "Op",
    "OpEdge",
    "OptimizerState",
]
