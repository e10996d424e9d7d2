"""Sections of the page: each takes a :class:`Subject` and returns a section, or nothing."""

from autopar.reporting.sections.subject import Subject

__all__ = ["Subject"]
