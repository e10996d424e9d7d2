"""Tables of embeddings whose dense gradients dominate what replicas exchange are told of."""

from __future__ import annotations

from dataclasses import replace

from autopar.graph import GraphProfile
from autopar.search import SearchOptions, search

from .builders import chain_profile, cluster_of

OPTIONS = SearchOptions(global_batch=16, fix=("dp=4", "zero=0"))
SLOW = cluster_of(4, 1, inter=1e9)


def with_tables(*, tied: bool = False, rows: int = 400_000_000) -> GraphProfile:
    """The first op looks rows up; a tied table is read by the last op too."""
    profile = chain_profile([1e11] * 3, parameter_bytes=[rows, 4_000_000, 4_000_000])
    first, middle, last = profile.ops
    first = replace(first, target="aten.embedding.default")
    if tied:
        last = replace(last, parameters=(*last.parameters, "w0"))
    return replace(profile, ops=(first, middle, last))


def notes(profile: GraphProfile) -> list[str]:
    result = search(profile, SLOW, OPTIONS)
    return [text for text in result.warnings if "embedding tables" in text]


def test_tables_that_dominate_the_exchange_are_told_of_with_their_share() -> None:
    (note,) = notes(with_tables())
    assert "98% of the parameters (381.47 MiB)" in note and "dense" in note


def test_small_tables_tied_heads_and_other_models_are_not() -> None:
    assert notes(with_tables(rows=4_000_000)) == []
    assert notes(with_tables(tied=True)) == []  # every row of a head has a gradient
    assert (
        notes(chain_profile([1e11] * 3, parameter_bytes=[400_000_000, 4_000_000, 4_000_000])) == []
    )
