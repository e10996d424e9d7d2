"""From a target string to a Task.

``zoo:NAME``, ``package.module:function`` and ``path/to/file.py:function``, each with
``?key=value&key=value`` for the function's keyword arguments.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from autopar.core.errors import AutoparError, InputError
from autopar.core.registry import did_you_mean
from autopar.tasks.options import (
    Option,
    format_value,
    function_options,
    parse_options,
    split_options,
)
from autopar.tasks.task import Task
from autopar.tasks.zoo import SMALL, ZOO, zoo_names

SIZES = ("small", "full")
FORMS = "zoo:NAME[?key=value&...], package.module:function or path/to/file.py:function"


def resolve(target: str) -> Task:
    """Find and call the function that a target names.

    Args:
        target: ``zoo:NAME``, ``package.module:function`` or ``path/to/file.py:function``, each
            with optional ``?key=value&...``.

    Returns:
        The task; its ``target`` is the normalised string, with an absolute path for a file, from
        which another process can resolve it again.

    Raises:
        InputError: The target is malformed, names nothing, has options that do not fit, or the
            user's code failed.
        EnvironmentUnableError: An optional package is missing.
    """
    location, _, query = target.partition("?")
    texts = split_options(query, target)
    place, colon, name = location.rpartition(":")
    if not colon or not place or not name:
        hint = f"did you mean zoo:{target}?" if location in ZOO else f"targets are {FORMS}"
        raise InputError(f"target '{target}' has no function", hint=hint)
    if place == "zoo":
        return _from_zoo(name, texts)
    if place.endswith(".py") or "/" in place or "\\" in place:
        path = _existing(place)
        return _from_code(_load_file(path), str(path), name, texts)
    return _from_code(_load_module(place), place, name, texts)


def zoo_options(name: str) -> dict[str, Option]:
    """The options of a zoo model, ``size`` first.

    Args:
        name: Zoo name.

    Raises:
        InputError: The name is unknown.
    """
    size = Option(name="size", kind=str, default="full")
    return {"size": size} | function_options(ZOO.load(name))


def _from_zoo(name: str, texts: Mapping[str, str]) -> Task:
    if name not in ZOO:
        raise InputError(f"unknown zoo model '{name}'", hint=did_you_mean(name, zoo_names()))
    values = parse_options(texts, zoo_options(name), f"zoo:{name}")
    target = _join(f"zoo:{name}", values)
    size = values.pop("size", "full")
    if size not in SIZES:
        raise InputError(
            f"size={size} of zoo:{name}: must be small or full",
            hint="set single sizes with the options " + ", ".join(list(zoo_options(name))[1:]),
        )
    defaults = SMALL[name] if size == "small" else {}
    return dataclasses.replace(ZOO.load(name)(**defaults | values), target=target)


def _from_code(module: ModuleType, place: str, name: str, texts: Mapping[str, str]) -> Task:
    owner = f"{place}:{name}"
    function = _function(module, place, name)
    values = parse_options(texts, function_options(function), owner)
    try:
        task = function(**values)
    except (AutoparError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise _user_error(error, owner) from error
    if not isinstance(task, Task):
        raise InputError(
            f"{owner} returned {type(task).__name__}: must return an autopar.Task",
            hint="return autopar.Task(name=..., model=..., batch=..., loss=..., optimizer=...)",
        )
    return dataclasses.replace(task, target=_join(owner, values))


def _function(module: ModuleType, place: str, name: str) -> Callable[..., Any]:
    found = getattr(module, name, None)
    if not callable(found):
        names = [key for key, value in vars(module).items() if _is_local(value, module)]
        hint = did_you_mean(name, names) if names else f"define {name}() -> autopar.Task in it"
        state = "no function" if found is None else f"a {type(found).__name__}, not a function,"
        raise InputError(f"{place} has {state} '{name}'", hint=hint)
    home = str(getattr(found, "__module__", "")).partition(".")[0]
    if not inspect.isfunction(found) or home in sys.stdlib_module_names:
        raise InputError(
            f"{place}:{name} is not a task function, it is not called",
            hint="name a Python function of yours that returns an autopar.Task",
        )
    function: Callable[..., Any] = found
    return function


def _is_local(value: object, module: ModuleType) -> bool:
    own = getattr(value, "__module__", None) == module.__name__
    return callable(value) and own and not isinstance(value, type)


def _existing(place: str) -> Path:
    path = Path(place).expanduser()
    if path.is_file():
        return path.resolve()
    siblings = path.parent.glob("*.py") if path.parent.is_dir() else ()
    known = [str(sibling) for sibling in siblings]
    if path.is_dir():
        raise InputError(
            f"{place}: is a folder, must be a Python file", hint=f"targets are {FORMS}"
        )
    hint = did_you_mean(place, known) if known else f"the current folder is {Path.cwd()}"
    raise InputError(f"{place}: no such file", hint=hint)


def _load_file(path: Path) -> ModuleType:
    """Run a Python file as a module of its own name, with its folder importable as for scripts."""
    name = f"autopar_target_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path}: is not a Python file", hint="its name must end with .py")
    _make_importable(path.parent)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (AutoparError, KeyboardInterrupt):
        del sys.modules[name]
        raise
    except BaseException as error:
        del sys.modules[name]
        raise _user_error(error, str(path)) from error
    return module


def _load_module(place: str) -> ModuleType:
    """Import a module as ``python -m`` would, from the current folder too."""
    _make_importable(Path.cwd())
    try:
        return importlib.import_module(place)
    except (AutoparError, KeyboardInterrupt):
        raise
    except BaseException as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is not None and (place == missing or place.startswith(missing + ".")):
            raise InputError(
                f"no module '{place}' ({type(error).__name__}: {error})",
                hint=f"run in the folder that has it or install it; targets are {FORMS}",
            ) from error
        raise _user_error(error, place) from error


def _make_importable(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _user_error(error: BaseException, owner: str) -> InputError:
    """One line about a mistake in the user's code: what was raised and where in their file."""
    hint = "fix the file, or run it with python to see the whole traceback"
    if isinstance(error, ModuleNotFoundError):
        hint = f"install the package '{error.name}' or fix the import"
    what = error.msg if isinstance(error, SyntaxError) else str(error).replace("\n", " ")
    return InputError(
        f"{owner} raised {type(error).__name__}: {what}{_user_line(error, owner)}", hint=hint
    )


def _user_line(error: BaseException, owner: str) -> str:
    """`` (line 3)`` of the file that the target names, or with the file's name if another."""
    frames = [
        (frame.filename, frame.lineno)
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename not in (__file__, importlib.__file__)
        and not frame.filename.startswith("<frozen")
    ]
    if isinstance(error, SyntaxError) and error.filename:
        frames = [(error.filename, error.lineno)]
    if not frames:
        return ""
    file = frames[0][0]
    line = [number for name, number in frames if name == file][-1]
    place = f"line {line}" if Path(file).stem in owner else f"{Path(file).name} line {line}"
    return f" ({place})"


def _join(owner: str, values: Mapping[str, Any]) -> str:
    pairs = "&".join(f"{key}={format_value(value)}" for key, value in values.items())
    return f"{owner}?{pairs}" if pairs else owner
