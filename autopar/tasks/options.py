"""Options in a target string: ``key=value`` pairs, typed by the function that receives them."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from autopar.core.errors import InputError
from autopar.core.registry import did_you_mean

BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
KINDS: tuple[type, ...] = (bool, int, float, str)
REQUIRED = inspect.Parameter.empty


@dataclass(frozen=True, kw_only=True)
class Option:
    """One option of a target.

    Attributes:
        name: Its key.
        kind: ``int``, ``float``, ``bool`` or ``str``.
        default: The value without it; ``REQUIRED`` when there is none.
    """

    name: str
    kind: type
    default: Any


def split_options(text: str, target: str) -> dict[str, str]:
    """Take ``key=value&key=value`` apart.

    Args:
        text: What follows the question mark; may be empty.
        target: The whole target, for error messages.

    Returns:
        Keys to values, in the order given.

    Raises:
        InputError: A part is no pair, or a key comes twice.
    """
    pairs: dict[str, str] = {}
    for part in text.split("&") if text else []:
        key, equals, value = part.partition("=")
        if not key or not equals:
            raise InputError(
                f"'{part}' in target '{target}': must be key=value",
                hint="join options with '&' and quote the target, because shells read '&'",
            )
        if key in pairs:
            raise InputError(f"option '{key}' comes twice in target '{target}'", hint="keep one")
        pairs[key] = value
    return pairs


def function_options(function: Callable[..., Any]) -> dict[str, Option]:
    """The options a function takes, from its parameters' annotations or defaults.

    Args:
        function: Any function.

    Returns:
        Option names to options.
    """
    try:
        hints = typing.get_type_hints(function)
    except Exception:  # annotations may name what only a type checker imports
        hints = {}
    options = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            kind = _kind(hints.get(name), parameter.default)
            options[name] = Option(name=name, kind=kind, default=parameter.default)
    return options


def parse_options(
    texts: Mapping[str, str], known: Mapping[str, Option], owner: str
) -> dict[str, Any]:
    """Turn option texts into typed values.

    Args:
        texts: Keys to values as given.
        known: The options there are.
        owner: What has the options (``"zoo:gpt"``), for error messages.

    Returns:
        Keyword arguments.

    Raises:
        InputError: An option is unknown, has a value of the wrong type, or is missing.
    """
    values = {}
    listing = "options: " + ", ".join(known) if known else "it takes none"
    for name, text in texts.items():
        if name not in known:
            guess = did_you_mean(name, list(known))
            hint = f"{guess} {listing}" if guess.startswith("did") else listing
            raise InputError(f"unknown option '{name}' of {owner}", hint=hint)
        values[name] = parse_value(known[name], text, owner)
    for name, option in known.items():
        if option.default is REQUIRED and name not in values:
            raise InputError(
                f"{owner} needs the option '{name}'", hint=f"append ?{name}=VALUE to the target"
            )
    return values


def parse_value(option: Option, text: str, owner: str) -> Any:
    """Read one value.

    Args:
        option: What is expected.
        text: The value as given.
        owner: What has the option, for the error message.

    Raises:
        InputError: The text is not of the option's type.
    """
    try:
        if option.kind is bool:
            return BOOLEANS[text.lower()]
        return option.kind(text)
    except (ValueError, KeyError):
        words = {int: "a whole number", float: "a number", bool: "true or false"}
        example = "" if option.default in (REQUIRED, None) else f", for example {option.default}"
        raise InputError(
            f"{option.name}={text} of {owner}: must be {words[option.kind]}",
            hint=f"give {option.name} {words[option.kind]}{example}",
        ) from None


def format_value(value: Any) -> str:
    """The text that ``parse_value`` reads back."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _kind(annotation: Any, default: Any) -> type:
    """The first of the four types in an annotation, else the type of the default."""
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    candidates = typing.get_args(annotation) if union else (annotation,)
    for candidate in (*candidates, type(default)):
        if candidate in KINDS:
            return KINDS[KINDS.index(candidate)]
    return str
