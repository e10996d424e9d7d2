"""Emulated hosts: real namespaces and links where this machine may make them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from autopar.core.errors import EnvironmentUnableError, InputError
from autopar.emulation import layout as layouts
from autopar.emulation import network
from autopar.emulation.layout import Layout, parse_quotas, parse_rates
from autopar.emulation.main import main
from autopar.emulation.running import filled

NAME = f"t{os.getpid() % 100_000}"
SUBNET = f"10.{64 + os.getpid() % 64}.{os.getpid() // 64 % 256}"
PAYLOAD = 1_000_000

SERVER = f"""
import socket
with socket.create_server(("{SUBNET}.1", 4000)) as server:
    peer, _ = server.accept()
    while peer.recv(1 << 16):
        pass
"""
CLIENT = f"""
import socket, time
for _ in range(100):
    try:
        peer = socket.create_connection(("{SUBNET}.1", 4000), 1)
        break
    except OSError:
        time.sleep(0.05)
start = time.monotonic()
peer.sendall(bytes({PAYLOAD}))
peer.shutdown(socket.SHUT_WR)
peer.recv(1)
print(time.monotonic() - start)
"""


def able() -> bool:
    """True when this machine lets us make a namespace."""
    if sys.platform != "linux" or os.geteuid() or not shutil.which("ip"):
        return False
    made = subprocess.run(
        ["ip", "netns", "add", f"{NAME}-probe"], capture_output=True, check=False
    )
    subprocess.run(["ip", "netns", "del", f"{NAME}-probe"], capture_output=True, check=False)
    return made.returncode == 0


needs_hosts = pytest.mark.skipif(not able(), reason="cannot make network namespaces here")


@pytest.fixture
def hosts() -> Iterator[Layout]:
    """Two hosts with 16 Mbit/s links."""
    line = f"up --name {NAME} --subnet {SUBNET} --rate 16mbit"
    assert main(line.split()) == 0
    yield Layout.load(NAME)
    if layouts.state_file(NAME).is_file():
        main(["down", "--name", NAME])


def run(host: str, *command: str) -> int:
    return main(["exec", "--name", NAME, host, "--", *command])


@needs_hosts
def test_a_link_has_the_rate_that_was_asked_for(
    hosts: Layout,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    for name, code in (("server.py", SERVER), ("client.py", CLIENT)):
        (tmp_path / name).write_text(code)
    pick = f'test {{host}} = 1 && exec "{sys.executable}" client.py || exec "$0" server.py'
    monkeypatch.chdir(tmp_path)
    assert run("all", "sh", "-c", pick, sys.executable) == 0
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("[")]
    seconds = float(line.split()[1])
    assert 8 * PAYLOAD / seconds == pytest.approx(16e6, rel=0.25)


@needs_hosts
def test_hosts_have_their_own_names_and_know_each_other(
    hosts: Layout, capfd: pytest.CaptureFixture[str]
):
    code = "import socket; print(socket.gethostname(), socket.gethostbyname('{}'))"
    assert run("0", sys.executable, "-c", code.format(hosts.host(1))) == 0
    assert capfd.readouterr().out.split() == [hosts.host(0), hosts.address(1)]


@needs_hosts
def test_a_failing_host_ends_the_others_and_gives_the_status(hosts: Layout):
    start = time.monotonic()
    assert run("all", "sh", "-c", "test {host} = 0 && exec sleep 60; exit 7") == 7
    assert time.monotonic() - start < 20


@needs_hosts
def test_down_removes_everything_and_its_processes(hosts: Layout):
    sleeper = subprocess.Popen(["ip", "netns", "exec", hosts.host(0), "sleep", "60"])
    time.sleep(0.2)
    assert main(["up", "--name", NAME, "--subnet", SUBNET]) == 2  # up already
    assert main(["down", "--name", NAME]) == 0
    assert sleeper.wait(5) != 0
    left = subprocess.run(["ip", "link"], capture_output=True, text=True, check=True).stdout
    left += subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout
    assert f"{NAME}-" not in left
    assert not hosts.state.exists()
    assert not (network.HOSTS_FILES / hosts.host(0)).exists()
    assert main(["down", "--name", NAME]) == 2


@needs_hosts
def test_a_network_that_fails_half_way_leaves_nothing(monkeypatch: pytest.MonkeyPatch):
    layout = Layout(name=NAME, subnet=SUBNET)

    def broken(layout: Layout) -> Iterator[list[str]]:
        yield from list(commands(layout))[:5]
        yield ["ip", "link", "add", "nothing", "type", "nonsense"]

    commands = network.commands
    monkeypatch.setattr(network, "commands", broken)
    with pytest.raises(EnvironmentUnableError, match="nonsense"):
        network.up(layout)
    left = subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout
    assert f"{NAME}-" not in left
    assert not layout.state.exists()


@needs_hosts
def test_a_quota_slows_a_host_down(capfd: pytest.CaptureFixture[str]):
    code = "import time; s = time.process_time(); w = time.monotonic()\n" + (
        "while time.monotonic() - w < 1: pass\nprint(time.process_time() - s)"
    )
    line = f"up --name {NAME} --subnet {SUBNET} --hosts 1 --quota 0.1"
    if main(line.split()) == 6:
        pytest.skip("control groups cannot be written here")
    try:
        capfd.readouterr()
        assert run("0", sys.executable, "-c", code) == 0
        assert 0.02 < float(capfd.readouterr().out) < 0.25
    finally:
        main(["down", "--name", NAME])


@pytest.mark.parametrize(("missing", "words"), [("root", "root"), ("ip", "iproute2")])
def test_a_machine_that_cannot_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], missing: str, words: str
):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "geteuid", lambda: 1000 if missing == "root" else 0)
    tools = None if missing == "ip" else "/usr/sbin/ip"
    monkeypatch.setattr(shutil, "which", lambda tool: tools)
    assert main(["up"]) == 6
    assert words in capsys.readouterr().err


def test_rates_and_quotas_as_they_are_written():
    assert parse_rates("50mbit", 2) == (50e6, 50e6)
    assert parse_rates("1.5gbit, 800kbit", 2) == (1.5e9, 8e5)
    assert parse_rates(None, 3) == (0.0, 0.0, 0.0)
    assert parse_quotas("0.5,2", 2) == (0.5, 2.0)
    for bad in ("50", "fast", "-1mbit", "1mbit,2mbit,3mbit"):
        with pytest.raises(InputError, match="--rate"):
            parse_rates(bad, 2)
    for bad in ("-1", "half", "nan", "1,2,3"):
        with pytest.raises(InputError, match="--quota"):
            parse_quotas(bad, 2)
    with pytest.raises(InputError, match="name"):
        Layout(name="Much-too-long-a-name")
    with pytest.raises(InputError, match="subnet"):
        Layout(subnet="10.300.1")


def test_every_host_gets_its_own_command_line():
    words = ["run", "--node-rank", "{host}", "--nnodes={hosts}", "--rdzv-endpoint", "{endpoint}"]
    line = filled(Layout(), 1, words)
    assert line == ["run", "--node-rank", "1", "--nnodes=2", "--rdzv-endpoint", "10.77.0.1:29500"]
