"""Versioned JSON documents: one envelope, checked on reading, replaced atomically on writing."""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autopar.core.errors import InputError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

MAX_DOCUMENT_BYTES = 512 * 1024**2


def field_values(item: DataclassInstance) -> dict[str, Any]:
    """Fields of a dataclass by name, the values as they are: ``asdict`` would copy them."""
    return {name: getattr(item, name) for name in item.__dataclass_fields__}


def canonical_json(data: Any) -> str:
    """The one text a value is hashed by: sorted keys, no spaces, finite numbers only."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)


def content_hash(data: Any) -> str:
    """First 16 hex digits of the SHA-256 of the canonical JSON."""
    return hashlib.sha256(canonical_json(data).encode()).hexdigest()[:16]


def write_text_atomic(path: Path, text: str) -> None:
    """Write a file so that readers see the old or the new content, never a part.

    Raises:
        InputError: The place cannot be written; an existing file is left untouched.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror}", hint="choose another place with --out"
        ) from error
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        Path(temporary).unlink(missing_ok=True)
        raise InputError(
            f"cannot write {path}: {error.strerror}", hint="choose another place with --out"
        ) from error
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_document(path: Path, schema: str, version: int, body: dict[str, Any]) -> None:
    """Write ``{schema, schema_version, **body}`` atomically.

    Raises:
        InputError: The place cannot be written.
    """
    document = {"schema": schema, "schema_version": version, **body}
    write_text_atomic(path, json.dumps(document, indent=1, allow_nan=False) + "\n")


def _reject_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number autopar accepts")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is out of range")
    return value


def read_json(path: Path) -> dict[str, Any]:
    """Read one JSON object strictly: size cap, no NaN or infinity, no traceback.

    Raises:
        InputError: The file is missing, too large, truncated, or not a JSON object.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if path.is_dir():
            raise InputError(f"{path} is a directory, a JSON file is needed")
        if size > MAX_DOCUMENT_BYTES:
            raise InputError(f"{path} has {size} bytes, more than {MAX_DOCUMENT_BYTES} allowed")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise InputError(f"no such file: {path}", hint="check the path") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    try:
        data = json.loads(text, parse_constant=_reject_constant, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path} is not valid JSON: {error}", hint="the file may be cut short; make it again"
        ) from error
    if not isinstance(data, dict):
        raise InputError(f"{path} holds a {type(data).__name__}, a JSON object is needed")
    return data


def check_schema(data: dict[str, Any], path: Path | str, schema: str, version: int) -> None:
    """Refuse a document of another kind or a newer version.

    Raises:
        InputError: Schema or version do not match.
    """
    found = data.get("schema")
    if found != schema:
        raise InputError(
            f"{path} is a '{found}' document, '{schema}' is needed",
            hint="pass the file the matching command wrote",
        )
    if data.get("schema_version") != version:
        raise InputError(
            f"{path} has schema version {data.get('schema_version')}, "
            f"this autopar reads {version}",
            hint="make the file again with this version",
        )


def read_document(path: Path, schema: str, version: int) -> dict[str, Any]:
    """:func:`read_json` followed by :func:`check_schema`."""
    data = read_json(path)
    check_schema(data, path, schema, version)
    return data
