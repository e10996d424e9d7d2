"""TLS 1.3 with certificates on both sides."""

from __future__ import annotations

import json
import socket
import ssl
from pathlib import Path

import executor_helpers
import executor_models as models
import pytest
import server_helpers as helpers
import torch

from autopar.cli.main import _run
from autopar.core.errors import InputError, TrainingError
from autopar.executor.server.client import Endpoint, ServerClient
from autopar.executor.server.options import ServerOptions
from autopar.executor.server.protocol import Frame, Kind
from autopar.executor.server.tls import TlsFiles, worker_context
from autopar.tasks.resolve import resolve

STATUS = Frame(kind=Kind.STATUS)
REFUSED = "do not accept each other's certificates|does not accept this one's certificate"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    return helpers.make_certificates(tmp_path_factory.mktemp("ca"))


def test_a_member_with_a_certificate_trains(files: TlsFiles) -> None:
    with helpers.servers(2, "async", 1, tls=files) as made:
        own = helpers.gang(made, 0, helpers.ENTRIES, tls=files)
        own.set_weights(helpers.weights(), 0, 1.0, {})
        into = torch.empty(helpers.ELEMENTS)
        own.exchange(0, helpers.gradient(0, 0), set(), start=1, into=into)
        assert all(c._socket.version() == "TLSv1.3" for c in own._clients)
    reference = helpers.Reference(helpers.sgd)
    reference.step(helpers.gradient(0, 0))
    torch.testing.assert_close(into, reference.flat)


def still_serves(server: helpers.Server, files: TlsFiles) -> None:
    client = ServerClient(server.endpoint, 0, helpers.TOKEN, worker_context(files), 5.0)
    assert client.request(STATUS).kind is Kind.REPLY


def test_who_has_no_certificate_is_refused(files: TlsFiles) -> None:
    bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    bare.check_hostname = False
    bare.load_verify_locations(files.authority)
    with helpers.servers(1, "async", 1, tls=files, grace_s=60.0) as made:
        client = ServerClient(made[0].endpoint, 0, helpers.TOKEN, bare, 1.0)
        with pytest.raises(TrainingError, match=REFUSED):
            client.request(STATUS)
        still_serves(made[0], files)


def test_another_authority_is_refused(files: TlsFiles, tmp_path: Path) -> None:
    theirs = helpers.make_certificates(tmp_path, "others")
    mixed = TlsFiles(certificate=theirs.certificate, key=theirs.key, authority=files.authority)
    with helpers.servers(1, "async", 1, tls=files, grace_s=60.0) as made:
        for wrong in (theirs, mixed):  # does not trust the server; is not trusted by it
            client = ServerClient(made[0].endpoint, 0, helpers.TOKEN, worker_context(wrong), 1.0)
            with pytest.raises(TrainingError, match=REFUSED):
                client.request(STATUS)
        still_serves(made[0], files)


def test_plain_tcp_and_old_tls_are_refused(files: TlsFiles) -> None:
    old = worker_context(files)
    old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_2
    with helpers.servers(1, "async", 1, tls=files, grace_s=60.0) as made:
        with pytest.raises(TrainingError, match="cannot reach"):
            ServerClient(made[0].endpoint, 0, helpers.TOKEN, None, 0.5).request(STATUS)
        with socket.create_connection(("127.0.0.1", made[0].port)) as plain:
            plain.settimeout(2.0)
            plain.sendall(b"APPS" + bytes(100))
            assert b"nonce" not in plain.recv(4096)
        with pytest.raises(TrainingError, match=REFUSED):
            ServerClient(made[0].endpoint, 0, helpers.TOKEN, old, 0.5).request(STATUS)
        still_serves(made[0], files)


def test_a_server_with_another_certificate_is_refused(files: TlsFiles) -> None:
    """Of the right authority, but not the one that the run's store names."""
    with helpers.servers(1, "async", 1, tls=files) as made:
        here = Endpoint(address="127.0.0.1", port=made[0].port, fingerprint="0" * 64)
        client = ServerClient(here, 0, helpers.TOKEN, worker_context(files), 1.0)
        with pytest.raises(InputError, match="another certificate"):
            client.request(STATUS)


def test_a_run_over_tls_equals_one_process(files: TlsFiles, tmp_path: Path) -> None:
    task = models.mlp()
    plan = executor_helpers.make_plan(task, dp=2, sync="ps_sync")
    options = ServerOptions(
        certificate=files.certificate, key=files.key, authority=files.authority
    )
    record = executor_helpers.run(plan, task, tmp_path, verify=True, servers=options)
    assert record.verify is not None
    assert record.verify.passed, record.verify


def test_files_that_do_not_fit_are_refused(files: TlsFiles, tmp_path: Path) -> None:
    wrong = TlsFiles(certificate=files.key, key=files.key, authority=files.authority)
    with pytest.raises(InputError, match="cannot use certificate"):
        worker_context(wrong)
    with pytest.raises(InputError, match="only certificate"):
        ServerOptions(certificate=files.certificate)


TARGET = "zoo:mlp?inputs=8&width=16&classes=4"


def command_line(plan_sync: str, files: TlsFiles, *more: str) -> list[str]:
    """``autopar run`` of a plan in the working folder, with certificates."""
    executor_helpers.make_plan(resolve(TARGET), dp=2, sync=plan_sync).save(Path("plan.json"))
    tls = ["--server-tls-cert", str(files.certificate), "--server-tls-key", str(files.key)]
    steps = ["--steps", "3", "--warmup", "0", "--json", "--out", "run"]
    return ["run", "plan.json", *steps, *tls, "--server-tls-ca", str(files.authority), *more]


def test_the_command_line_runs_over_tls(
    files: TlsFiles, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(command_line("ps_sync", files, "--verify")) == 0
    data = json.loads(capsys.readouterr().out)["data"]
    assert data["verify"]["passed"]
    job = json.loads((workplace / "run" / "job.json").read_text())
    assert job["options"]["servers"]["authority"] == str(files.authority)


def test_certificates_of_another_authority_end_a_run(
    files: TlsFiles, workplace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The options reach both ends: with a foreign authority nobody trusts anybody."""
    theirs = helpers.make_certificates(tmp_path / "theirs", "others")
    mixed = TlsFiles(certificate=files.certificate, key=files.key, authority=theirs.authority)
    assert _run(command_line("ps_sync", mixed)) == 4
    assert "certificate" in json.loads(capsys.readouterr().out)["error"]["message"]


def test_tls_for_a_plan_without_servers_is_refused(
    files: TlsFiles, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(command_line("all_reduce", files)) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert "collectives are not encrypted" in error["message"]
    assert "--sync ps_sync" in error["hint"]


def test_the_command_line_wants_all_three_files(
    files: TlsFiles, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = command_line("ps_sync", files)
    at = line.index("--server-tls-ca")
    assert _run(line[:at] + line[at + 2 :]) == 2
    assert "--server-tls-ca" in json.loads(capsys.readouterr().out)["error"]["hint"]
    wrong = TlsFiles(certificate=files.key, key=files.key, authority=files.authority)
    assert _run(command_line("ps_sync", wrong)) == 2
    assert "cannot use certificate" in json.loads(capsys.readouterr().out)["error"]["message"]


def test_several_hosts_need_an_address_and_a_token(
    files: TlsFiles, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hosts = ["--nnodes", "2", "--rdzv-endpoint", "127.0.0.1:29511"]
    assert _run(command_line("ps_async", files, *hosts)) == 2
    assert "--server-address" in json.loads(capsys.readouterr().out)["error"]["hint"]
    assert _run(command_line("ps_async", files, *hosts, "--server-address", "127.0.0.1")) == 2
    assert "--server-token" in json.loads(capsys.readouterr().out)["error"]["hint"]
