"""Plan specifications such as ``pp=2,dp=4,schedule=1f1b``: parsed, checked, matched."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from autopar.core.errors import InputError
from autopar.core.registry import did_you_mean
from autopar.schedules import SCHEDULES
from autopar.sync import canonical_sync

Value = int | str
Spec = dict[str, Value]
"""Axis -> wanted value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One axis of the search space.

    Attributes:
        name: As in ``--fix name=value``.
        aliases: Other spellings.
        parse: Text to value; raises ``InputError``.
        summary: A line for people.
    """

    name: str
    aliases: tuple[str, ...]
    parse: Callable[[str], Value]
    summary: str


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"'{text}' is not a whole number >= 1", hint="write it like pp=2")
    return int(text)


def _level(text: str) -> int:
    if text not in ("0", "1", "2", "3"):
        raise InputError(f"zero={text} is not 0, 1, 2 or 3", hint="write it like zero=3")
    return int(text)


def _one_of(words: Iterable[str], what: str) -> Callable[[str], str]:
    known = list(words)

    def parse(text: str) -> str:
        if text not in known:
            raise InputError(f"unknown {what} '{text}'", hint=did_you_mean(text, known))
        return text

    return parse


_SWITCH = {"true": "on", "yes": "on", "1": "on", "false": "off", "no": "off", "0": "off"}
"""Other words for on and off."""


def _switch(what: str) -> Callable[[str], str]:
    known = _one_of(("on", "off"), what)
    return lambda text: known(_SWITCH.get(text.lower(), text))


AXES = {
    axis.name: axis
    for axis in (
        Axis(name="world", aliases=("devices", "ranks"), parse=_count, summary="devices used"),
        Axis(name="dp", aliases=(), parse=_count, summary="dp_replicate x dp_shard"),
        Axis(name="dp_replicate", aliases=(), parse=_count, summary="replicas"),
        Axis(name="pp", aliases=(), parse=_count, summary="pipeline ranks"),
        Axis(
            name="schedule",
            aliases=(),
            parse=_one_of(SCHEDULES, "schedule"),
            summary="pipeline schedule",
        ),
        Axis(name="chunks", aliases=("v",), parse=_count, summary="stages per pipeline rank"),
        Axis(name="microbatches", aliases=("m",), parse=_count, summary="microbatches per step"),
        Axis(
            name="microbatch_size",
            aliases=("b", "mbs"),
            parse=_count,
            summary="samples per microbatch",
        ),
        Axis(
            name="recompute",
            aliases=("rc",),
            parse=_one_of(("none", "selective", "full", "mixed"), "recompute mode"),
            summary="activations computed again",
        ),
        Axis(name="zero", aliases=(), parse=_level, summary="what dp_shard ranks share out"),
        Axis(
            name="sequence_parallel",
            aliases=("sp",),
            parse=_switch("sequence_parallel value"),
            summary="sequence divided outside tensor parallel regions",
        ),
        Axis(
            name="offload",
            aliases=(),
            parse=_switch("offload value"),
            summary="optimizer state in host memory",
        ),
        Axis(name="sync", aliases=(), parse=canonical_sync, summary="sync mode and compression"),
        Axis(name="dp_shard", aliases=("fsdp",), parse=_count, summary="sharding ranks"),
        Axis(name="cp", aliases=(), parse=_count, summary="context parallel ranks"),
        Axis(name="tp", aliases=(), parse=_count, summary="tensor parallel ranks"),
        Axis(name="ep", aliases=(), parse=_count, summary="expert parallel ranks"),
    )
}
"""Axes that may be named; those the space does not vary have the value 1."""

_NAMES = {alias: axis.name for axis in AXES.values() for alias in (axis.name, *axis.aliases)}


def parse_spec(text: str | Mapping[str, Value]) -> Spec:
    """Read ``axis=value,axis=value`` or check a mapping.

    Raises:
        InputError: Unknown axis or value, or an axis given two values.
    """
    if isinstance(text, Mapping):
        pairs = [(str(key), str(value)) for key, value in text.items()]
    else:
        pairs = []
        for part in filter(None, (part.strip() for part in text.split(","))):
            name, equals, value = part.partition("=")
            if not equals:
                raise InputError(
                    f"'{part}' is not axis=value", hint="write it like pp=2,schedule=1f1b"
                )
            pairs.append((name.strip(), value.strip()))
    if not pairs:
        raise InputError("the plan specification is empty", hint="write it like pp=2,dp=1")
    spec: Spec = {}
    for name, value in pairs:
        if name not in _NAMES:
            raise InputError(f"unknown axis '{name}'", hint=did_you_mean(name, list(_NAMES)))
        axis = AXES[_NAMES[name]]
        parsed = axis.parse(value)
        if spec.get(axis.name, parsed) != parsed:
            raise InputError(
                f"{axis.name} is both {spec[axis.name]} and {parsed}", hint="give it one value"
            )
        spec[axis.name] = parsed
    return spec


def describe(spec: Spec) -> str:
    """Text form of a specification."""
    return ",".join(f"{axis}={value}" for axis, value in spec.items())
