"""Cluster files: the ones autopar writes, and descriptions made by hand (see ``parse``)."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from autopar.cluster.catalog import load_entry
from autopar.cluster.cluster import SCHEMA, SCHEMA_VERSION, Cluster, NodeGroup
from autopar.cluster.machine import Device, Link
from autopar.cluster.parse import MAX_DEVICES, backend_of
from autopar.core.errors import InputError
from autopar.core.io import MAX_DOCUMENT_BYTES, check_schema, read_json

SPEC_SCHEMA = "autopar.cluster_spec"

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=MAX_DEVICES, strict=True)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    sources: dict[str, str] = {}

    def overrides(self) -> dict[str, Any]:
        """The figures the user gave."""
        return self.model_dump(exclude={"sources"}, exclude_none=True)


class DeviceSpec(_Strict):
    """Overrides of a catalogue device; units as in :class:`Device`."""

    peak_flop_per_s: dict[str, Positive] | None = None
    memory_bytes: Positive | None = None
    memory_bytes_per_s: Positive | None = None
    launch_s: NotNegative | None = None
    power_watt: Positive | None = None
    idle_watt: NotNegative | None = None
    usd_per_hour: NotNegative | None = None
    clock_share: Annotated[float, Field(gt=0, le=1)] | None = None


class LinkSpec(_Strict):
    """Overrides of a catalogue link; units as in :class:`Link`."""

    name: str | None = None
    bytes_per_s: Positive | None = None
    latency_s: NotNegative | None = None
    efficiency: Annotated[float, Field(gt=0, le=1)] | None = None


class GroupSpec(BaseModel):
    """``nodes`` machines made from a catalogue machine."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    nodes: Count
    machine: str
    devices_per_node: Count | None = None
    device: DeviceSpec = DeviceSpec()
    intra: LinkSpec = LinkSpec()
    inter: LinkSpec = LinkSpec()


class ClusterSpec(BaseModel):
    """A cluster described by hand."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    schema_name: Literal["autopar.cluster_spec"] = Field("autopar.cluster_spec", alias="schema")
    schema_version: Literal[1] = 1
    name: str | None = None
    backend: Literal["nccl", "gloo", "xla"] | None = None
    groups: Annotated[list[GroupSpec], Field(min_length=1)]


def load_cluster_file(path: Path) -> Cluster:
    """Read a cluster that autopar wrote, or one described by hand, from JSON or TOML.

    Raises:
        InputError: Missing, truncated, of another schema, or a field is unknown or out of range.
    """
    data = _read_toml(path) if path.suffix == ".toml" else read_json(path)
    if data.get("schema", SPEC_SCHEMA) != SPEC_SCHEMA:
        check_schema(data, path, SCHEMA, SCHEMA_VERSION)
        return Cluster.from_dict(data, str(path))
    try:
        spec = ClusterSpec.model_validate(data)
    except ValidationError as error:
        raise InputError(_first_fault(path, error), hint=_HINT) from error
    return _build(spec, path)


_HINT = "see the example in the documentation of autopar.cluster.parse"


def _first_fault(path: Path, error: ValidationError) -> str:
    fault = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in fault["loc"]) or "document"
    value = "" if fault["type"] in {"missing", "extra_forbidden"} else f", got {fault['input']!r}"
    return f"{path}: {place}: {fault['msg'].lower()}{value[:80]}"


def _build(spec: ClusterSpec, path: Path) -> Cluster:
    groups = tuple(_group(group, path) for group in spec.groups)
    total = sum(group.devices for group in groups)
    if total > MAX_DEVICES:
        raise InputError(f"{path} has {total} devices, more than {MAX_DEVICES} allowed")
    return Cluster(
        name=spec.name or path.stem, groups=groups, backend=spec.backend or backend_of(groups)
    )


def _group(spec: GroupSpec, path: Path) -> NodeGroup:
    entry = load_entry(spec.machine)
    machine = entry.with_devices(spec.devices_per_node or entry.machine.devices_per_node)
    changed = [part for part in (spec.device, spec.intra, spec.inter) if part.overrides()]
    return NodeGroup(
        nodes=spec.nodes,
        machine=replace(
            machine,
            # Another name, so that changed machines are not taken for the catalogue's.
            name=f"{machine.name}@{path.stem}" if changed else machine.name,
            device=_device(machine.device, spec.device, path),
            intra=_link(machine.intra, spec.intra, path),
            inter=_link(machine.inter, spec.inter, path),
        ),
    )


def _device(device: Device, spec: DeviceSpec, path: Path) -> Device:
    given = spec.overrides()
    if not given:
        return device
    sources = {**device.sources, **_sources(given, spec, path)}
    if spec.peak_flop_per_s:
        given["peak_flop_per_s"] = {**device.peak_flop_per_s, **spec.peak_flop_per_s}
    return replace(device, name=f"{device.name}@{path.stem}", sources=sources, **given)


def _link(link: Link, spec: LinkSpec, path: Path) -> Link:
    given = spec.overrides()
    return replace(link, sources={**link.sources, **_sources(given, spec, path)}, **given)


def _sources(given: dict[str, Any], spec: _Strict, path: Path) -> dict[str, str]:
    default = dict.fromkeys(given.keys() - {"name"}, f"given in {path.name}")
    return {**default, **spec.sources}


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_DOCUMENT_BYTES:
            raise InputError(f"{path} has more than {MAX_DOCUMENT_BYTES} bytes")
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"no such file: {path}", hint="check the path") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise InputError(f"{path} is not valid TOML: {error}", hint=_HINT) from error
