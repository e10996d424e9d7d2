"""Both sides prove that they know the run's token without sending it.

The server sends a random number, the worker answers with one of its own and a proof over both
and its rank, the server answers with its proof. A recorded exchange is of no use later. Without
TLS this says who connected, but does not protect what is sent afterwards.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets

TOKEN_BYTES = 32
_NONCE_BYTES = 16


def new_token() -> bytes:
    """A token for one run."""
    return secrets.token_bytes(TOKEN_BYTES)


def new_nonce() -> str:
    """A random number, used once."""
    return secrets.token_hex(_NONCE_BYTES)


def worker_proof(token: bytes, server_nonce: str, worker_nonce: str, rank: int) -> str:
    """What only a worker of the run can answer."""
    return _mac(token, f"worker|{server_nonce}|{worker_nonce}|{rank}")


def server_proof(token: bytes, server_nonce: str, worker_nonce: str) -> str:
    """What only a server of the run can answer."""
    return _mac(token, f"server|{server_nonce}|{worker_nonce}")


def same(one: str, other: str) -> bool:
    """Comparison that takes the same time wherever they differ."""
    return hmac.compare_digest(one.encode(), other.encode())


def _mac(token: bytes, text: str) -> str:
    return hmac.new(token, text.encode(), hashlib.sha256).hexdigest()
