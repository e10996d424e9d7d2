"""Any autopar document from any path: a file, a run folder, or a --json envelope."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autopar.cluster import Cluster
from autopar.core.errors import InputError
from autopar.core.io import check_schema, read_json
from autopar.graph import GraphProfile
from autopar.graph import profile as graph_profile
from autopar.plans import Plan
from autopar.plans import plan as plan_module
from autopar.results import BenchResult, RunRecord, SearchResult, bench, record, search

Document = SearchResult | RunRecord | GraphProfile | BenchResult | Plan

_Reader = Callable[[dict[str, Any], str], Document]
_READERS: dict[str, tuple[int, _Reader]] = {
    search.SCHEMA: (search.SCHEMA_VERSION, SearchResult.from_dict),
    record.SCHEMA: (record.SCHEMA_VERSION, RunRecord.from_dict),
    graph_profile.SCHEMA: (graph_profile.SCHEMA_VERSION, GraphProfile.from_dict),
    bench.SCHEMA: (bench.SCHEMA_VERSION, BenchResult.from_dict),
    plan_module.SCHEMA: (plan_module.SCHEMA_VERSION, Plan.from_dict),
}
_MARKS = (
    ({"certificate", "best", "top"}, search.SCHEMA),
    ({"median_abs_rel_error", "rows"}, bench.SCHEMA),
    ({"step_times_s", "timeline", "plan"}, record.SCHEMA),
    ({"ops", "blocks", "block_edges"}, graph_profile.SCHEMA),
)
_FOLDER_FILES = (record.FILE_NAME, "search.json", "bench.json", "profile.json", "plan.json")
_HINT = "pass a profile, plan, search result, run folder or bench file written by autopar"


def load_any(path: Path | str) -> Document:
    """Read a document of any kind.

    Args:
        path: A JSON file (a document, or the envelope ``--json`` prints), or a folder that holds
            ``record.json`` or another document under its usual name.

    Raises:
        InputError: Missing, truncated, unknown kind, wrong version or inconsistent.
    """
    path = Path(path)
    if path.is_dir():
        path = _inside(path)
    return _read(read_json(path), path)


@dataclass(frozen=True, slots=True, kw_only=True)
class Companions:
    """Documents that make a page more complete; each may be missing."""

    profile: GraphProfile | None = None
    search: SearchResult | None = None
    cluster: Cluster | None = None


def companions(path: Path | str) -> Companions:
    """What lies in a run folder under ``profile.json``, ``search.json`` and ``cluster.json``.

    Raises:
        InputError: A file with one of these names is there and is not what its name says.
    """
    path = Path(path)
    if not path.is_dir():
        if path.name != record.FILE_NAME:
            return Companions()
        path = path.parent
    files = {name: path / f"{name}.json" for name in ("profile", "search", "cluster")}
    return Companions(
        profile=GraphProfile.load(files["profile"]) if files["profile"].is_file() else None,
        search=SearchResult.load(files["search"]) if files["search"].is_file() else None,
        cluster=Cluster.load(files["cluster"]) if files["cluster"].is_file() else None,
    )


def _inside(folder: Path) -> Path:
    for name in _FOLDER_FILES:
        if (folder / name).is_file():
            return folder / name
    raise InputError(f"{folder} holds no {record.FILE_NAME}", hint=_HINT)


def _read(data: dict[str, Any], path: Path) -> Document:
    schema = data.get("schema")
    if schema in _READERS:
        version, reader = _READERS[schema]
        check_schema(data, path, schema, version)
        return reader(data, str(path))
    inner = data.get("data")
    if "command" in data and isinstance(inner, dict):
        return _read_envelope(data, inner, path)
    raise InputError(f"{path} is a '{schema}' document, which has no report", hint=_HINT)


def _read_envelope(envelope: dict[str, Any], inner: dict[str, Any], path: Path) -> Document:
    error = envelope.get("error")
    if isinstance(error, dict):
        raise InputError(
            f"{path} is the output of a failed command: {error.get('message')}",
            hint="run the command again until it succeeds",
        )
    if inner.get("schema") in _READERS:
        return _read(inner, path)
    for keys, schema in _MARKS:
        if keys <= set(inner):
            return _READERS[schema][1](inner, str(path))
    for key in ("run_dir", "profile"):
        place = inner.get(key)
        if isinstance(place, str) and place:
            return load_any(path.parent / place)
    raise InputError(
        f"{path} is the output of '{envelope.get('command')}', which has no report", hint=_HINT
    )
