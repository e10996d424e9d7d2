"""What dividing a traced graph over ranks does to each block: work, bytes, communication."""

from autopar.core.registry import Entry, Registry
from autopar.strategies.matmul import Attention, Matmul, Products
from autopar.strategies.split import WHOLE, Split, Strategy
from autopar.strategies.strategies import Strategies
from autopar.strategies.tensor import Collective
from autopar.strategies.work import BlockWork

STRATEGIES: Registry[type[Strategy]] = Registry(
    "strategy",
    {
        "tp": Entry(
            "autopar.strategies.tensor:TensorSplit",
            "weights of paired products divided by columns and rows, attention by heads",
        ),
        "cp": Entry(
            "autopar.strategies.context:ContextSplit",
            "every sequence divided, attention gathers keys and values",
        ),
        "ep": Entry(
            "autopar.strategies.expert:ExpertSplit",
            "experts divided, tokens travel to theirs and back",
        ),
    },
)
"""Mesh axis to what divides the ops of a stage along it."""

__all__ = [
    "STRATEGIES",
    "WHOLE",
    "Attention",
    "BlockWork",
    "Collective",
    "Matmul",
    "Products",
    "Split",
    "Strategies",
    "Strategy",
]
