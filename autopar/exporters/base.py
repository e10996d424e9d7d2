"""What an export target is, and the one place that makes sure nothing of a plan is dropped."""

from __future__ import annotations

import abc
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from autopar.core.errors import InputError
from autopar.exporters import EXPORTS
from autopar.exporters.facts import facts
from autopar.exporters.hosts import Hosts, hosts_of
from autopar.exporters.writing import comments, headline
from autopar.plans import Plan
from autopar.results import PlanPrice, SearchResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """Something of the plan that the exported text does not say, or says otherwise.

    Attributes:
        key: Fact of the plan, as :func:`~autopar.exporters.facts.facts` names it.
        reason: Why, and what to do about it.
    """

    key: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A plan in another tool's words.

    Attributes:
        target: Name of the target.
        text: What to write to a file.
        kept: Fact -> where the text states it.
        lossy: What it does not state, or only nearly.
    """

    target: str
    text: str
    kept: dict[str, str]
    lossy: tuple[Loss, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, without the text."""
        return {
            "target": self.target,
            "kept": self.kept,
            "lossy": [asdict(loss) for loss in self.lossy],
        }


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is exported.

    Attributes:
        plan: The plan, with its prediction where there is one.
        hosts: The machines it runs on.
        ranked: The plans of the file it came from, best first; ``plan`` alone if it came alone.
    """

    plan: Plan
    hosts: Hosts
    ranked: tuple[Plan, ...]

    def price(self) -> PlanPrice:
        """The plan's prediction.

        Raises:
            InputError: The plan has none, or one that cannot be read.
        """
        if not self.plan.predicted:
            raise InputError(
                f"plan {self.plan.name} has no prediction, which this export shows",
                hint="use a file that `autopar plan --out FILE` wrote",
            )
        return read_price(self.plan)


def read_price(plan: Plan) -> PlanPrice:
    """The prediction a plan carries.

    Raises:
        InputError: It cannot be read.
    """
    try:
        price = PlanPrice.from_dict(plan.predicted)
        if len(price.stage_costs) != len(plan.stages):
            raise ValueError(f"{len(price.stage_costs)} stages, not {len(plan.stages)}")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"plan {plan.name} has a prediction that cannot be read: "
            f"{type(error).__name__}: {error}",
            hint="make the plan again with `autopar plan`",
        ) from error
    return price


@dataclass(frozen=True, slots=True, kw_only=True)
class Notes:
    """A target's account of a plan's facts while it writes.

    With :meth:`keep` and :meth:`lose` it may speak of facts that are at their defaults; those do
    not count.
    """

    kept: dict[str, str] = field(default_factory=dict)
    lossy: list[Loss] = field(default_factory=list)
    changed: list[Loss] = field(default_factory=list)

    def keep(self, key: str, where: str) -> None:
        """A fact is stated at ``where``: a dotted path into the parsed text, or an argument."""
        self.kept[key] = where

    def lose(self, key: str, reason: str) -> None:
        """A fact is not stated, or only nearly."""
        self.lossy.append(Loss(key=key, reason=reason))

    def change(self, key: str, reason: str) -> None:
        """What the plan leaves at its default, the other tool does otherwise."""
        self.changed.append(Loss(key=key, reason=reason))


class AbstractExport(abc.ABC):
    """An export target. Implementations are stateless and final.

    Attributes:
        name: Registered name.
        written_for: Tool, version and date of the format.
        comment: What starts a comment line, ``None`` where the format has none.
        head: Text before the comments.
        rest: Reason for facts that :meth:`body` does not account for.
    """

    name: ClassVar[str]
    written_for: ClassVar[str]
    comment: ClassVar[str | None] = "#"
    head: ClassVar[str] = ""
    rest: ClassVar[str]

    @abc.abstractmethod
    def body(self, subject: Subject, notes: Notes) -> str:
        """The text, ending in a newline; says in ``notes`` where each fact went.

        Raises:
            InputError: The subject lacks what the target shows.
        """


def subject_of(
    plan: Plan, search: SearchResult | None = None, nodes: int | None = None
) -> Subject:
    """A plan, and the search it came from, made ready for export.

    Raises:
        InputError: The ranks do not spread evenly over the hosts.
    """
    ranked: tuple[Plan, ...] = (plan,)
    if search is not None:
        ranked = tuple(row.plan.with_predicted(row.price.to_dict()) for row in search.top)
    return Subject(plan=plan, hosts=hosts_of(plan, nodes), ranked=ranked)


def export_plan(target: str, subject: Subject) -> Exported:
    """Write a subject for a target; facts the target is silent about are lossy.

    Raises:
        InputError: The target is unknown or the subject lacks what it shows.
    """
    export, notes = EXPORTS.load(target)(), Notes()
    body = export.body(subject, notes)
    stated = facts(subject.plan)
    losses = [loss for loss in notes.lossy if loss.key in stated]
    told = {*notes.kept, *(loss.key for loss in losses)}
    silent = [Loss(key=key, reason=export.rest) for key in stated if key not in told]
    lossy = tuple(dict.fromkeys([*losses, *notes.changed, *silent]))
    return Exported(
        target=target,
        text=export.head + _remarks(export, subject.plan, lossy) + body,
        kept={key: notes.kept[key] for key in stated if key in notes.kept},
        lossy=lossy,
    )


def _remarks(export: AbstractExport, plan: Plan, lossy: tuple[Loss, ...]) -> str:
    if export.comment is None:
        return ""
    lines = headline(plan, export.name, export.written_for)
    if lossy:
        lines += ["Of the plan, this does not say, or not exactly:"]
        lines += [f"  {loss.key}: {loss.reason}" for loss in lossy]
    return comments(lines, export.comment) + "\n"
