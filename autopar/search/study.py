"""The Optuna side: a sampler that replays the walk's choice, and one trial per priced point."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial

from autopar.core.errors import InputError
from autopar.search.options import SearchOptions
from autopar.search.point import PARAMETERS, Point
from autopar.search.shared import SharedPoints
from autopar.search.space import Space

if TYPE_CHECKING:
    from autopar.search.walk import Priced


JOURNAL = "journal:"
"""Start of the URL of a journal file."""


class BestBoundSampler(BaseSampler):  # type: ignore[misc]  # optuna is not followed
    """Gives each trial the point with the smallest bound that is still open.

    The walk decides the order; :meth:`offer` hands the sampler its choice.
    """

    def __init__(self, space: dict[str, BaseDistribution]) -> None:
        self._space = space
        self._offered: Point | None = None

    def offer(self, point: Point) -> None:
        """The point of the next trial."""
        self._offered = point

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """All axes at once."""
        return self._space

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The offered point."""
        if self._offered is None:
            raise RuntimeError("no point was offered")
        params = dict(self._offered.params())
        self._offered = None
        return params

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Never needed: every axis is in the relative space."""
        raise RuntimeError(f"'{param_name}' is not an axis of the search space")


class StudyLog:
    """An Optuna study that records what the walk prices.

    Args:
        name: Study name; a stored study of this name is continued.
        space: Gives the values of each axis.
        options: Seed, storage and objective.

    Raises:
        InputError: The storage cannot be opened.
    """

    def __init__(self, name: str, space: Space, options: SearchOptions) -> None:
        self._distributions = distributions(space)
        self._sampler = BestBoundSampler(self._distributions)
        try:
            with quiet():
                self.study = optuna.create_study(
                    study_name=name,
                    storage=open_storage(options.storage),
                    sampler=self._sampler,
                    direction="minimize",
                    load_if_exists=True,
                )
        except Exception as error:  # storage back ends raise their own kinds
            if options.storage is None:
                raise
            raise InputError(
                f"cannot open study storage '{options.storage}': {type(error).__name__}",
                hint="use sqlite:///study.db, journal:study.log or postgresql://...; "
                "the driver of a database is a package of its own",
            ) from error
        self.shared: SharedPoints | None = None
        if options.storage is not None:
            self.shared = SharedPoints(study=self.study, distributions=self._distributions)

    def record(self, item: Priced, name: str) -> int:
        """Add a finished trial, unless a stored study has it; returns its number."""
        if self.shared is not None:
            return self._share(self.shared, item, name)
        self._sampler.offer(item.point)
        with quiet():
            trial = self.study.ask(self._distributions)
            trial.set_user_attr("plan", name)
            trial.set_user_attr("cuts", list(item.cuts))
            self.study.tell(trial, item.value)
        return int(trial.number)

    def _share(self, shared: SharedPoints, item: Priced, name: str) -> int:
        """:meth:`record` in a storage, where ``ask`` would write once per axis, each a wait."""
        known = shared.numbers.get(item.point)
        if known is not None:
            return known
        with quiet():
            return shared.add(item.point, item.value, plan=name, cuts=list(item.cuts))


def open_storage(url: str | None) -> str | BaseStorage | None:
    """Optuna storage of a URL; ``journal:FILE`` is a file that several processes append to."""
    if url is None or not url.startswith(JOURNAL):
        return url
    from autopar.search.journal import open_journal  # file locks of its own, not on every system

    return open_journal(url.removeprefix(JOURNAL))


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """Per axis, the values that occur."""
    return {name: CategoricalDistribution(space.values(name)) for name in PARAMETERS}


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Optuna's per-study and per-trial lines off stderr."""
    logger = logging.getLogger("optuna")
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)
