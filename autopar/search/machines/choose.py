"""Which machines: the best plan on each of several sets, and the set that meets the wishes.

Searched sets: every cluster as given and, for a catalogue cluster of one kind of machine, every
smaller power of two of its nodes. All sets train with the same global batch, so that their steps
do the same work; the optimum is proved on each set by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from autopar.cluster import Cluster, NodeGroup
from autopar.core.errors import InfeasibleError, InputError
from autopar.graph import GraphProfile
from autopar.search.driver import find, search
from autopar.search.machines.offers import Offer, Wishes, pareto, pick
from autopar.search.machines.words import choice_words, no_offer, set_words, skip_words
from autopar.search.mixed_clusters.placed import least_objective
from autopar.search.options import SearchOptions

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class MachineChoice:
    """The answer to "which machines?".

    Attributes:
        offers: Every set that was looked at, in the order given, smaller node counts first.
        chosen: The set to take, searched in full.
        wishes: What was asked of the machines.
        options: What was asked of the plans, with the common global batch and the precision
            of the chosen set.
    """

    offers: tuple[Offer, ...]
    chosen: Offer
    wishes: Wishes
    options: SearchOptions

    @property
    def pareto(self) -> list[Offer]:
        """Offers that no other beats in both time and money."""
        return pareto(self.offers)

    @property
    def explanation(self) -> str:
        """Why these machines, in one paragraph."""
        return choice_words(self.chosen, self.offers, self.wishes, self.options.objective)

    def to_dict(self) -> dict[str, Any]:
        """What ``plan --json`` adds to the chosen set's search result."""
        return {
            "machines": [offer.to_dict(self.wishes) for offer in self.offers],
            "chosen": self.chosen.cluster.name,
            "pareto": [offer.cluster.name for offer in self.pareto],
            "samples": self.wishes.samples,
            "deadline_s": self.wishes.deadline_s,
            "budget_usd": self.wishes.budget_usd,
        }


def machine_sets(cluster: Cluster) -> list[Cluster]:
    """The cluster and its smaller sets: powers of two of the nodes of one catalogue machine.

    A measured cluster stays whole, its curves hold for its own hosts only; so does a mixed one.
    """
    nodes = cluster.groups[0].nodes
    if cluster.measured or len(cluster.groups) > 1:
        return [cluster]
    smaller = [2**i for i in range(nodes.bit_length()) if 2**i < nodes]
    return [*(_with_nodes(cluster, count) for count in smaller), cluster]


def _with_nodes(cluster: Cluster, nodes: int) -> Cluster:
    group = cluster.groups[0]
    tail = f"x{group.machine.devices_per_node}:{group.machine.name}"
    named = cluster.name == f"{group.nodes}{tail}"
    name = f"{nodes}{tail}" if named else f"{nodes} of {group.nodes} nodes of {cluster.name}"
    return replace(cluster, name=name, groups=(NodeGroup(machine=group.machine, nodes=nodes),))


def choose_machines(
    clusters: Sequence[tuple[GraphProfile, Cluster]],
    wishes: Wishes,
    options: SearchOptions,
    *,
    smaller: bool = True,
    progress: Progress | None = None,
) -> MachineChoice:
    """The set of machines that meets the wishes best, with the best plan on every set.

    Args:
        clusters: Clusters with the profile of the task on their devices.
        wishes: Samples, deadline and budget.
        options: As for one cluster. The objective ``cost`` counts the rent of the whole set, so
            the fastest plan of a set is its cheapest.
        smaller: Look at smaller node counts of each cluster too.
        progress: ``progress(stage, done, total)``.

    Raises:
        InputError: No cluster, or an option is wrong.
        InfeasibleError: No set meets the wishes; the message names the tightest one, the hint
            the smallest relaxation of each.
    """
    if not clusters:
        raise InputError("no cluster is given", hint="name one with --cluster")
    sets = {
        each.hash: (profile, each)
        for profile, cluster in clusters
        for each in (machine_sets(cluster) if smaller else [cluster])
    }
    chooser = _Chooser(wishes=wishes, options=_common(list(sets.values()), options))
    offers = chooser.run(list(sets.values()), progress)
    chosen = pick(offers, wishes, options.objective)
    if chosen is None:
        offers = chooser.nearest(offers)
        raise _none_meets(offers, wishes, chooser.options)
    full = search(chosen.profile, chosen.cluster, chooser.options)
    best = replace(chosen, result=full)
    return MachineChoice(
        offers=tuple(best if offer is chosen else offer for offer in offers),
        chosen=best,
        wishes=wishes,
        options=chooser.options.resolved(chosen.cluster),
    )


def _common(sets: Sequence[tuple[GraphProfile, Cluster]], options: SearchOptions) -> SearchOptions:
    """Options all sets share: the largest set's global batch, money as time (see above)."""
    batch = max(options.batch_for(profile, each.device_count) for profile, each in sets)
    objective = "time" if options.objective == "cost" else options.objective
    return replace(options, global_batch=batch, objective=objective)


def least_step_s(profile: GraphProfile, cluster: Cluster, options: SearchOptions) -> float:
    """No plan of the space takes a shorter step; ``inf`` when none can work."""
    return least_objective(profile, cluster, replace(options, objective="time"))


@dataclass(kw_only=True)
class _Chooser:
    wishes: Wishes
    options: SearchOptions

    @property
    def steps(self) -> int:
        return self.wishes.steps(self.options.global_batch or 1)

    def run(
        self, sets: Sequence[tuple[GraphProfile, Cluster]], progress: Progress | None
    ) -> list[Offer]:
        """Search the sets, those with the least possible rent first; skip the hopeless."""
        offers = [
            Offer(
                cluster=cluster,
                profile=profile,
                steps=self.steps,
                least_step_s=least_step_s(profile, cluster, self.options),
            )
            for profile, cluster in sets
        ]
        order = sorted(range(len(offers)), key=lambda i: _promise(offers[i]))
        for done, index in enumerate(order):
            offers[index] = self._search_or_skip(offers[index], offers)
            if progress is not None:
                progress("machine sets", done + 1, len(offers))
        return offers

    def _search_or_skip(self, offer: Offer, others: Sequence[Offer]) -> Offer:
        reason = skip_words(offer, self.wishes)
        if reason is None and self.options.objective in ("time", "time-to-target"):
            reason = _beaten(offer, others)
        return (
            self.search(offer) if reason is None else replace(offer, reason=reason, skipped=True)
        )

    def search(self, offer: Offer) -> Offer:
        """The offer with its best plan, or with the reason why there is none."""
        one = replace(self.options, top=1)
        try:
            result = find(offer.profile, offer.cluster, one, relaxations=False)
        except InfeasibleError as error:
            return replace(offer, result=None, reason=error.message, skipped=False)
        return replace(offer, result=result, reason=None, skipped=False)

    def nearest(self, offers: Sequence[Offer]) -> list[Offer]:
        """Search skipped sets too while their bounds may give a smaller relaxation of a limit."""
        found = list(offers)
        limits = (self.wishes.deadline_s or math.inf, self.wishes.budget_usd or math.inf)
        for relaxed, kept in ((0, 1), (1, 0)):
            if math.isinf(limits[relaxed]):
                continue
            order = sorted(range(len(found)), key=lambda i: _LEAST[relaxed](found[i]))
            for index in order:
                offer, limit = found[index], limits[kept]
                inside = [o for o in found if _ACTUAL[kept](o) <= limit]
                known = min(map(_ACTUAL[relaxed], inside), default=math.inf)
                hopeless = _LEAST[kept](offer) > limit or _LEAST[relaxed](offer) >= known
                if offer.skipped and not hopeless:
                    found[index] = self.search(offer)
        return found if any(o.result for o in found) else [self.search(o) for o in found]


def _seconds(offer: Offer) -> float:
    return math.inf if offer.total_s is None else offer.total_s.value


def _money(offer: Offer) -> float:
    return math.inf if offer.cost_usd is None else offer.cost_usd.value


def _least_money(offer: Offer) -> float:
    return math.inf if offer.least_cost_usd is None else offer.least_cost_usd


def _least_seconds(offer: Offer) -> float:
    return offer.least_total_s


_LEAST = (_least_seconds, _least_money)
_ACTUAL = (_seconds, _money)
"""Least possible and actual figure of an offer: time, money."""


def _promise(offer: Offer) -> tuple[float, float]:
    return _least_money(offer), offer.least_total_s


def _beaten(offer: Offer, others: Sequence[Offer]) -> str | None:
    """Why the offer cannot be of use: another is as fast and as cheap as its bounds."""
    for other in others:
        surely_there = other.result is not None and _money(other) < math.inf
        if (
            surely_there
            and _seconds(other) <= offer.least_total_s
            and _money(other) <= _least_money(offer) < math.inf
        ):
            return f"{other.cluster.name} is faster and cheaper than any plan here can be"
    return None


def _none_meets(
    offers: Sequence[Offer], wishes: Wishes, options: SearchOptions
) -> InfeasibleError:
    """The error when no set meets the wishes; without any plan, that of the largest set."""
    if any(offer.result is not None for offer in offers):
        return no_offer(offers, wishes)
    largest = max(offers, key=lambda offer: offer.cluster.device_count)
    reasons = "; ".join(f"{set_words(offer)}: {offer.reason}" for offer in offers[:3])
    hint = None
    try:
        find(largest.profile, largest.cluster, options, relaxations=True)
    except InfeasibleError as error:
        hint = error.hint
    sets = f"any of {len(offers)} machine sets" if len(offers) > 1 else "the only machine set"
    return InfeasibleError(f"no plan on {sets}: {reasons}", hint=hint)
