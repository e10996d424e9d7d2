"""The only place that knows seconds, bytes at peak, joules and money."""

from autopar.cost.model import CostModel
from autopar.cost.price import price
from autopar.cost.simulation.replay import simulate_plan

__all__ = ["CostModel", "price", "simulate_plan"]
