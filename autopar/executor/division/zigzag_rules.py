"""What the calls of context parallelism do with a tensor parallel rank's part.

They move positions of the sequence or add up what the context parallel ranks have; these ranks
hold the same part, so that each call works on a part as on the whole.
"""

from __future__ import annotations

from torch.fx import Node

from autopar.executor.division.parts import Part, UndividableError
from autopar.executor.division.shape_rules import Rule, first
from autopar.executor.division.site import Site, Step


def _moves(site: Site) -> Step:
    """The sequence is another dimension."""
    return Step(out=_beside(site, first(site)))


def _keys_and_values(site: Site) -> Step:
    keys, values = site.node.args[:2]
    assert isinstance(keys, Node) and isinstance(values, Node)
    if site.part(keys) is None or site.part(values) is None:
        raise UndividableError("keys and values of which only one is divided")
    return Step(out=(_beside(site, keys, 2), _beside(site, values, 2)))


def _beside(site: Site, source: Node, place: int = 1) -> Part:
    """The part of an operand, which must not be along the sequence."""
    part = site.part(source) if place > 1 else site.only(source)
    assert part is not None
    if site.node.args[place] == part.dim:
        raise UndividableError(f"{site.name} along the divided dimension")
    return part


def _mean(site: Site) -> Step:
    """``mean_of_ranks``: elementwise."""
    return Step(out=site.only(first(site)))


ZIGZAG_RULES: dict[str, Rule] = {
    "sequence_part": _moves,
    "sequence_whole": _moves,
    "sequence_running_sum": _moves,
    "keys_and_values": _keys_and_values,
    "mean_of_ranks": _mean,
}
"""Call of :class:`~autopar.executor.division.zigzag.Zigzag` -> rule."""
