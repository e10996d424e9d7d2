"""What is predicted and what is measured, in the same types."""

from autopar.results.bench import BenchResult, BenchRow
from autopar.results.breakdown import CostBreakdown, MemoryBreakdown
from autopar.results.convergence import ConvergenceResult, ConvergenceRow
from autopar.results.price import PlanPrice, StageCost, TiedSync, Transfer
from autopar.results.record import RunRecord, VerifyResult
from autopar.results.search import Certificate, RankedPlan, Rejection, SearchResult
from autopar.results.timeline import Event, Timeline

__all__ = [
    "BenchResult",
    "BenchRow",
    "Certificate",
    "ConvergenceResult",
    "ConvergenceRow",
    "CostBreakdown",
    "Event",
    "MemoryBreakdown",
    "PlanPrice",
    "RankedPlan",
    "Rejection",
    "RunRecord",
    "SearchResult",
    "StageCost",
    "TiedSync",
    "Timeline",
    "Transfer",
    "VerifyResult",
]
