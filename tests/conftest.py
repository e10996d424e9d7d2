"""Fixtures several folders share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory, so that commands write nothing into the checkout."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
