"""Sync modes and gradient compressions: what is sent, what it does to the mathematics."""

from autopar.sync.base import (
    AbstractCompression,
    AbstractSyncMode,
    Literature,
    Message,
    Overlap,
    Payload,
    Scope,
    Semantics,
    SyncContext,
    SyncGroup,
    SyncWork,
)
from autopar.sync.parse import Sync, canonical_sync, parse_sync
from autopar.sync.registry import COMPRESSIONS, SYNC_MODES

__all__ = [
    "COMPRESSIONS",
    "SYNC_MODES",
    "AbstractCompression",
    "AbstractSyncMode",
    "Literature",
    "Message",
    "Overlap",
    "Payload",
    "Scope",
    "Semantics",
    "Sync",
    "SyncContext",
    "SyncGroup",
    "SyncWork",
    "canonical_sync",
    "parse_sync",
]
