"""The best plan of a stated space, proved; and what else could have been."""

from autopar.search.driver import search
from autopar.search.explain.change import changed_cluster
from autopar.search.options import SearchOptions
from autopar.search.questions.ask import (
    Answer,
    what_if,
    what_if_answer,
    why_not,
    why_not_answer,
)
from autopar.search.select import plan_for, spread
from autopar.search.space.spec import parse_spec

__all__ = [
    "Answer",
    "SearchOptions",
    "changed_cluster",
    "parse_spec",
    "plan_for",
    "search",
    "spread",
    "what_if",
    "what_if_answer",
    "why_not",
    "why_not_answer",
]
