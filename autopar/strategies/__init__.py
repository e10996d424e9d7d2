"""What dividing a traced graph over ranks does to each block: work, bytes, communication."""

from autopar.strategies.block import BlockWork, Strategies
from autopar.strategies.matmul import Attention, Matmul
from autopar.strategies.split import WHOLE, Split
from autopar.strategies.tensor import Collective

__all__ = ["WHOLE", "Attention", "BlockWork", "Collective", "Matmul", "Split", "Strategies"]
