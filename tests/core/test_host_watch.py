"""What other programs take of the host is told from what the process takes itself."""

import os
import subprocess
import sys
import time

import pytest

from autopar.core import host_watch
from autopar.core.host_watch import HostWatch, disturbed, quiet_again

SPIN = "import time\nend = time.time() + 1.5\nwhile time.time() < end: pass"


def _spin(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def _shares(monkeypatch: pytest.MonkeyPatch, busy_s: list[float], own_s: list[float]) -> float:
    """What a watch says of given counters, over ten seconds on two processors."""
    monkeypatch.setattr(host_watch, "_busy_s", iter(busy_s).__next__)
    monkeypatch.setattr(host_watch, "_own_s", iter(own_s).__next__)
    monkeypatch.setattr(host_watch, "_processors", lambda: {0, 1})
    monkeypatch.setattr(host_watch.time, "monotonic", iter([100.0, 110.0]).__next__)
    others = HostWatch().others()
    assert others is not None
    return others


def test_own_time_is_not_others(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _shares(monkeypatch, [50.0, 65.0], [7.0, 17.0]) == pytest.approx(0.25)


def test_share_stays_between_none_and_all(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _shares(monkeypatch, [50.0, 51.0], [7.0, 17.0]) == 0.0


def test_a_child_waited_for_is_own() -> None:
    """Beside whatever else runs: a child's 1.5 s count as own, so others do not rise by them."""
    own = host_watch._own_s()
    subprocess.run([sys.executable, "-c", SPIN], check=True)
    assert host_watch._own_s() - own > 0.5


@pytest.mark.skipif(not os.path.exists("/proc/stat"), reason="counts come from the kernel")
def test_another_process_is_seen() -> None:
    with subprocess.Popen([sys.executable, "-c", SPIN]) as other:
        watch = HostWatch()
        time.sleep(1.0)
        others = watch.others()
        other.wait()
    processors = len(host_watch._processors())
    assert others is not None and others > 0.3 / processors


def test_own_work_shows_in_the_counters() -> None:
    before = host_watch._busy_s(), host_watch._own_s()
    _spin(0.5)
    assert before[0] is not None and (host_watch._busy_s() or 0.0) > before[0]
    assert host_watch._own_s() > before[1] + 0.1


def test_disturbed_names_the_share() -> None:
    assert disturbed("the profile", 0.37) == (
        "the profile was measured while other programs took 37% of this host's processors: "
        "measure again when it is idle"
    )
    assert disturbed("the profile", 0.02) is None and disturbed("the profile", None) is None


def test_only_a_disturbed_measurement_looks_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HostWatch, "others", lambda self: 0.0)
    assert quiet_again(0.5, seconds=0.01)
    assert not quiet_again(0.01) and not quiet_again(None)
    monkeypatch.setattr(HostWatch, "others", lambda self: 0.6)
    assert not quiet_again(0.5, seconds=0.01)
