"""Fixtures several folders share."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
# Where a test lets a process have several threads, they wait for each other asleep: beside another
# test on the same cores they would spin through each other's turns, 20 times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Commands and ranks that tests start would each compile all of autopar again: 1.5 s of CPU.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory, so that commands write nothing into the checkout."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
