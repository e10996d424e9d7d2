"""What to know about models whose gradients are mostly those of embedding tables."""

from __future__ import annotations

from autopar.core.units import format_bytes
from autopar.graph import GraphProfile
from autopar.results import RankedPlan

MOST = 0.5
"""Share of the parameters from which tables dominate what replicas exchange."""
FELT = 0.1
"""Share of the step from which the exchange is worth a note."""
_LOOK_UPS = ("embedding", "embedding_bag", "_embedding_bag")


def embedding_warnings(profile: GraphProfile, best: RankedPlan) -> tuple[str, ...]:
    """A note where replicas spend much of the step on gradients of rows that no sample used."""
    parts = best.price.breakdown
    share = parts.gradient_sync_s / (parts.total_s or 1.0)
    tables = _table_bytes(profile)
    if share < FELT or tables < MOST * profile.parameter_bytes:
        return ()
    return (
        f"gradient synchronisation takes {share:.0%} of the step, mostly for embedding tables, "
        f"which hold {tables / profile.parameter_bytes:.0%} of the parameters "
        f"({format_bytes(tables)}): their gradients are priced and trained dense, with the rows "
        "that no sample used; a training that exchanges used rows only (sparse=True) needs less, "
        "which no plan of the space does",
    )


def _table_bytes(profile: GraphProfile) -> float:
    """Bytes of the parameters that nothing but look-ups reads; a tied head uses every row."""
    looked_up: set[str] = set()
    others: set[str] = set()
    for op in profile.ops:
        parts = op.target.split(".")
        known = looked_up if not set(parts).isdisjoint(_LOOK_UPS) else others
        known.update(op.parameters)
    return float(sum(profile.parameters[name][1] for name in looked_up - others))
