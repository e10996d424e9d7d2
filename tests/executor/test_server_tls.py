"""TLS 1.3 with certificates on both sides."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

import executor_helpers
import executor_models as models
import pytest
import server_helpers as helpers
import torch

from autopar.core.errors import InputError, TrainingError
from autopar.executor.server.client import Endpoint, ServerClient
from autopar.executor.server.options import ServerOptions
from autopar.executor.server.protocol import Frame, Kind
from autopar.executor.server.tls import TlsFiles, worker_context

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
