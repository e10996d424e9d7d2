"""Reports: one self-contained page (or Markdown, JSON, CSV) of what was planned and measured."""

from autopar.report.gate import evaluate_gate
from autopar.report.load import Document, load_any
from autopar.report.render import FORMATS, render, write_report

__all__ = ["FORMATS", "Document", "evaluate_gate", "load_any", "render", "write_report"]
