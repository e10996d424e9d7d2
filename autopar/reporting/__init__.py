"""Reports: one self-contained page (or Markdown, JSON, CSV) of what was planned and measured."""

from autopar.reporting.gate import evaluate_gate
from autopar.reporting.load import Document, load_any
from autopar.reporting.render import FORMATS, render, write_report

__all__ = ["FORMATS", "Document", "evaluate_gate", "load_any", "render", "write_report"]
