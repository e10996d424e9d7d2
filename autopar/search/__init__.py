"""The best plan of a stated space, proved; and what else could have been."""

from autopar.search.change import changed_cluster
from autopar.search.driver import search
from autopar.search.options import SearchOptions
from autopar.search.questions import Answer, what_if, why_not
from autopar.search.select import plan_for, spread
from autopar.search.spec import parse_spec

__all__ = [
    "Answer",
    "SearchOptions",
    "changed_cluster",
    "parse_spec",
    "plan_for",
    "search",
    "spread",
    "what_if",
    "why_not",
]
