"""The Optuna side: studies with one trial per point that the walk priced."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.storages import BaseStorage
from optuna.trial import create_trial

from autopar.core.errors import InputError
from autopar.search.space.build import Space
from autopar.search.space.point import PARAMETERS
from autopar.search.walk.shared import SharedPoints

if TYPE_CHECKING:
    from autopar.search.walk.best_first import Priced


JOURNAL = "journal:"
"""Start of the URL of a journal file."""


def study_of(name: str, space: Space, priced: Sequence[tuple[Priced, str]]) -> optuna.Study:
    """A study in memory.

    Args:
        name: Of the study.
        space: Gives the values of each axis.
        priced: Points and the names of their plans, in the order of trials.
    """
    values = distributions(space)
    with quiet():
        study = optuna.create_study(study_name=name, direction="minimize")
        study.add_trials(
            create_trial(
                value=item.value,
                params=item.point.params(),
                distributions=values,
                user_attrs=_facts(item, plan),
            )
            for item, plan in priced
        )
    return study


def _facts(item: Priced, plan: str) -> dict[str, Any]:
    return {"plan": plan, "cuts": list(item.cuts)}


class StoredStudy:
    """A study in a storage that records what the walk prices, beside other workers.

    Args:
        name: Study name; a stored study of this name is continued.
        space: Gives the values of each axis.
        storage: URL.

    Raises:
        InputError: The storage cannot be opened.
    """

    def __init__(self, name: str, space: Space, storage: str) -> None:
        check_storage(storage)
        try:
            with quiet():
                self.study = optuna.create_study(
                    study_name=name,
                    storage=open_storage(storage),
                    direction="minimize",
                    load_if_exists=True,
                )
        except Exception as error:  # storage back ends raise their own kinds
            raise InputError(
                f"cannot open study storage '{storage}': {_reason(error)}", hint=_FORMS
            ) from error
        self.shared = SharedPoints(study=self.study, distributions=distributions(space))

    def record(self, item: Priced, plan: str) -> int:
        """Add a finished trial, unless the study has it; returns its number."""
        known = self.shared.numbers.get(item.point)
        if known is not None:
            return known
        with quiet():
            return self.shared.add(item.point, item.value, **_facts(item, plan))


def check_storage(url: str) -> None:
    """Refuse what is no URL and files that cannot be made.

    Raises:
        InputError: No scheme, no file, or no folder to put the file in.
    """
    wrong = f"cannot open study storage '{url}'"
    kind, separator, file = url.partition(JOURNAL if url.startswith(JOURNAL) else "://")
    if url == "sqlite://":  # in memory
        return
    if not separator or (kind == "sqlite" and not file.startswith("/")):
        raise InputError(f"{wrong}: it is not a URL of a storage", hint=_FORMS)
    if not kind or kind == "sqlite":
        path = file.removeprefix("/") if kind else file
        if not path:
            raise InputError(f"{wrong}: it names no file", hint=_FORMS)
        folder = Path(path).parent
        if not folder.is_dir():
            raise InputError(
                f"{wrong}: there is no folder {folder}", hint=f"make it: mkdir -p {folder}"
            )


_FORMS = (
    "use sqlite:///study.db, journal:study.log or postgresql://...; the driver of a database is "
    "a package of its own"
)


def _reason(error: Exception) -> str:
    """First line of what a storage back end says."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    name = type(error).__name__
    return f"{name}: {lines[0]}" if lines else name


def open_storage(url: str) -> str | BaseStorage:
    """Optuna storage of a URL; ``journal:FILE`` is a file that several processes append to."""
    if not url.startswith(JOURNAL):
        return url
    from autopar.search.walk.journal import (
        open_journal,  # file locks of its own, not on every system
    )

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
