"""Names to implementations, imported on first use, so that a listing costs nothing."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from autopar.core.errors import InputError

T = TypeVar("T")


def did_you_mean(name: str, known: list[str]) -> str:
    """A hint that names the closest known words, or all of them when none is close."""
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(close) + "?"
    return "known: " + ", ".join(sorted(known))


@dataclass(frozen=True, slots=True)
class Entry:
    """One registration: where the object is, and a line about it for ``autopar catalog``."""

    location: str
    summary: str


class Registry(Generic[T]):
    """A fixed table ``name -> "module:attribute"``.

    Args:
        kind: What the names are, for error messages (``"schedule"``).
        entries: The registrations.
    """

    def __init__(self, kind: str, entries: dict[str, Entry]) -> None:
        self.kind = kind
        self._entries = dict(entries)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def summary(self, name: str) -> str:
        """The one-line description of an entry."""
        return self._entries[name].summary

    def load(self, name: str) -> T:
        """Import and return the object registered under a name.

        Raises:
            InputError: The name is unknown; the hint names the closest ones.
        """
        if name not in self._entries:
            raise InputError(
                f"unknown {self.kind} '{name}'", hint=did_you_mean(name, list(self._entries))
            )
        module, _, attribute = self._entries[name].location.partition(":")
        loaded: T = getattr(importlib.import_module(module), attribute)
        return loaded
