"""Sentences about machine sets: why one was chosen, why one was skipped, why none is enough."""

from __future__ import annotations

import math
from collections.abc import Sequence

from autopar.core.errors import InfeasibleError
from autopar.core.estimate import Estimate
from autopar.core.units import format_seconds, format_usd
from autopar.search.machines.offers import Offer, Wishes

NEARBY = 3
"""Other sets that are named beside the chosen one."""
ROUND_UP = 1.01
"""Relaxed limits are named a little above the figure they have to reach."""


def set_words(offer: Offer) -> str:
    """Name and size of a set."""
    count = offer.cluster.device_count
    return f"{offer.cluster.name} ({count} device{'s' if count > 1 else ''})"


def skip_words(offer: Offer, wishes: Wishes) -> str | None:
    """Why the bounds rule a set out; ``None`` when they do not."""
    if wishes.deadline_s is not None and wishes.deadline_s < offer.least_total_s < math.inf:
        return f"no plan here can take less than {format_seconds(offer.least_total_s)}"
    least = offer.least_cost_usd
    if (
        wishes.budget_usd is not None
        and least is not None
        and wishes.budget_usd < least < math.inf
    ):
        return f"no plan here can cost less than {format_usd(least)}"
    return None


def choice_words(offer: Offer, offers: Sequence[Offer], wishes: Wishes, objective: str) -> str:
    """Why this set, beside those that come next."""
    verdict = offer.meets(wishes)
    asked = _asked(wishes)
    text = f"Machines. {set_words(offer)}, the only set, "
    if len(offers) > 1:
        text = f"Machines. Of {len(offers)} sets, {set_words(offer)} is the "
        text += _role(wishes, objective) + (" that " if asked else ": ")
    text += f"{verdict} meets {asked}: " if asked else "takes " if len(offers) == 1 else ""
    text += f"{_figures(offer)}."
    if verdict == "probably":
        text += " Its range reaches beyond the limit, and no set stays within it surely."
    others = [_beside(other, wishes) for other in _neighbours(offer, offers)]
    return " ".join([text, *others])


def no_offer(offers: Sequence[Offer], wishes: Wishes) -> InfeasibleError:
    """The error when sets have plans but none meets the wishes.

    The tightest wish is the one whose relaxation alone has to be largest, relative to its value.
    """
    priced = [offer for offer in offers if offer.result is not None]
    fastest = min(priced, key=lambda o: _value(o.total_s))
    cheapest = min(priced, key=lambda o: _value(o.cost_usd))
    lines, hints = [], []
    if wishes.deadline_s is not None:
        near = _best(priced, "total_s", "cost_usd", wishes.budget_usd)
        late = near or fastest
        if _value(late.total_s) > wishes.deadline_s:
            lines.append((_value(late.total_s) / wishes.deadline_s, _slow(late, wishes, near)))
        if near is not None:
            longer = format_seconds(_value(near.total_s) * ROUND_UP)
            hints.append(f"raise --deadline to {longer} ({set_words(near)}, {_figures(near)})")
    if wishes.budget_usd is not None:
        near = _best(priced, "cost_usd", "total_s", wishes.deadline_s)
        dear = near or cheapest
        if _value(dear.cost_usd) > wishes.budget_usd:
            lines.append((_value(dear.cost_usd) / wishes.budget_usd, _dear(dear, wishes, near)))
        if near is not None and near.cost_usd is not None:
            more = f"{_value(near.cost_usd) * ROUND_UP:.4g}"
            hints.append(f"raise --budget to {more} ({set_words(near)}, {_figures(near)})")
    lines.sort(key=lambda line: -line[0])
    return InfeasibleError(
        f"{_none_meets(len(offers))} {_asked(wishes)}: " + "; ".join(text for _, text in lines),
        hint="; or ".join(hints) or _both(priced, wishes),
    )


def _none_meets(sets: int) -> str:
    return (
        f"none of {sets} machine sets meets" if sets > 1 else "the only machine set does not meet"
    )


def _both(priced: Sequence[Offer], wishes: Wishes) -> str:
    """The relaxation of both limits by the smallest common factor."""

    def factor(offer: Offer) -> float:
        return max(
            _value(offer.total_s) / (wishes.deadline_s or math.inf),
            _value(offer.cost_usd) / (wishes.budget_usd or math.inf),
        )

    near = min(priced, key=factor)
    times = f"{factor(near) * ROUND_UP:.3g}"
    return f"raise both limits {times}-fold ({set_words(near)}, {_figures(near)})"


def _best(offers: Sequence[Offer], wanted: str, limited: str, limit: float | None) -> Offer | None:
    able = [o for o in offers if limit is None or _value(getattr(o, limited)) <= limit]
    return min(able, key=lambda o: _value(getattr(o, wanted)), default=None)


def _slow(offer: Offer, wishes: Wishes, affordable: Offer | None) -> str:
    within = " within the budget" if wishes.budget_usd is not None and affordable else ""
    seconds = format_seconds(_value(offer.total_s))
    return f"the fastest{within}, {set_words(offer)}, takes {seconds}"


def _dear(offer: Offer, wishes: Wishes, timely: Offer | None) -> str:
    if offer.cost_usd is None:
        return f"{set_words(offer)} has no price"
    within = " within the deadline" if wishes.deadline_s is not None and timely else ""
    money = format_usd(_value(offer.cost_usd))
    return f"the cheapest{within}, {set_words(offer)}, costs {money}"


def _role(wishes: Wishes, objective: str) -> str:
    if wishes.deadline_s is not None:
        return "cheapest"
    if wishes.budget_usd is not None:
        return "fastest"
    words = {"memory": "leanest in memory", "energy": "most frugal", "cost": "cheapest"}
    return words.get(objective, "fastest")


def _asked(wishes: Wishes) -> str:
    parts = []
    if wishes.deadline_s is not None:
        parts.append(f"the deadline of {format_seconds(wishes.deadline_s)}")
    if wishes.budget_usd is not None:
        parts.append(f"the budget of {format_usd(wishes.budget_usd)}")
    return " and ".join(parts)


def _figures(offer: Offer) -> str:
    total, cost = offer.total_s, offer.cost_usd
    if total is None:
        return offer.reason or "not searched"
    text = (
        f"{format_seconds(total.value)} ({format_seconds(total.low)} to "
        f"{format_seconds(total.high)})"
    )
    return text if cost is None else f"{text} for {format_usd(cost.value)}"


def _neighbours(offer: Offer, offers: Sequence[Offer]) -> list[Offer]:
    """Priced sets next to the chosen one in time."""
    others = [o for o in offers if o is not offer and o.result is not None]
    here = _value(offer.total_s)
    return sorted(others, key=lambda o: abs(math.log(_value(o.total_s) / here)))[:NEARBY]


def _beside(offer: Offer, wishes: Wishes) -> str:
    asked = wishes.deadline_s is not None or wishes.budget_usd is not None
    verdict = offer.meets(wishes)
    ending = {"surely": "", "probably": ", which may miss", "not": ", which misses"}
    note = ending.get(verdict, ", without a price") if asked else ""
    return f"{set_words(offer)} takes {_figures(offer)}{note}."


def _value(estimate: Estimate | None) -> float:
    return math.inf if estimate is None else estimate.value
