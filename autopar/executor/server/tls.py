"""TLS 1.3 with certificates on both sides, and the fingerprint that ties a server to its run."""

from __future__ import annotations

import hashlib
import ssl
from dataclasses import dataclass
from pathlib import Path

from autopar.core.errors import InputError


@dataclass(frozen=True, kw_only=True)
class TlsFiles:
    """Certificates of this host, PEM.

    Attributes:
        certificate: Its certificate, followed by intermediate ones if any.
        key: The private key.
        authority: Certificates that sign those of all hosts of the run.
    """

    certificate: Path
    key: Path
    authority: Path


def server_context(files: TlsFiles) -> ssl.SSLContext:
    """For the listening side: only workers with a certificate of the authority get in.

    Raises:
        InputError: A file cannot be used.
    """
    return _context(files, ssl.PROTOCOL_TLS_SERVER)


def worker_context(files: TlsFiles) -> ssl.SSLContext:
    """For the connecting side.

    Servers are found by address and port, so the name in their certificate says nothing; the
    certificate must be of the authority and have the fingerprint published in the run's store.

    Raises:
        InputError: A file cannot be used.
    """
    return _context(files, ssl.PROTOCOL_TLS_CLIENT)


def _context(files: TlsFiles, side: int) -> ssl.SSLContext:
    context = ssl.SSLContext(side)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_verify_locations(cafile=files.authority)
        context.load_cert_chain(files.certificate, files.key, password=_no_password)
    except (OSError, ssl.SSLError) as error:
        raise InputError(
            f"cannot use certificate {files.certificate} with key {files.key} and authority "
            f"{files.authority}: {error}",
            hint="pass PEM files of one certificate, its key without a password, and its CA",
        ) from error
    return context


def _no_password() -> str:
    raise ssl.SSLError("the key has a password")


def fingerprint_of_file(files: TlsFiles) -> str:
    """SHA-256 of the certificate.

    Raises:
        InputError: It cannot be read.
    """
    try:
        pem = files.certificate.read_text(encoding="ascii")
        begin = pem.index("-----BEGIN CERTIFICATE-----")
        end = pem.index("-----END CERTIFICATE-----") + len("-----END CERTIFICATE-----")
        return fingerprint(ssl.PEM_cert_to_DER_cert(pem[begin:end]))
    except (OSError, ValueError) as error:
        raise InputError(
            f"cannot read certificate {files.certificate}: {error}", hint="pass a PEM file"
        ) from error


def fingerprint(der: bytes) -> str:
    """SHA-256 of a certificate in DER form."""
    return hashlib.sha256(der).hexdigest()
