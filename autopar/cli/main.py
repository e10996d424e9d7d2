"""The ``autopar`` command: verbs, configuration files, exit codes."""

from __future__ import annotations

import os
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from autopar.cli import bench, catalog, doctor, export, plan, profile, report, run
from autopar.cli.session import report_error
from autopar.core.errors import AutoparError, InputError
from autopar.core.version import __version__

app = typer.Typer(
    name="autopar",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "AUTOPAR"},
    epilog="Exit codes: 0 ok, 1 internal, 2 bad input, 3 nothing feasible, 4 training failed, "
    "5 gate failed, 6 environment not able, 130 interrupted.",
)
VERBS: dict[str, Callable[..., None]] = {
    "profile": profile.command,
    "plan": plan.command,
    "run": run.command,
    "bench": bench.command,
    "report": report.command,
    "export": export.command,
    "catalog": catalog.command,
    "doctor": doctor.command,
}
for _name, _command in VERBS.items():
    app.command(_name)(_command)


def _version(value: bool) -> None:
    if value:
        sys.stdout.write(f"autopar {__version__}\n")
        raise typer.Exit()


@app.callback()
def _root(
    context: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option(help="TOML file, per verb: plan.global_batch = 64."),
    ] = None,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Benchmark and plan distributed PyTorch training: profile, plan, run, report, export.

    An option comes from its flag, else AUTOPAR_<VERB>_<OPTION>, else the --config file, else the
    tool.autopar table of ./pyproject.toml, else its default.
    """
    context.default_map = _lists(_defaults(config), context.command)


def _lists(defaults: dict[str, Any], group: Any) -> dict[str, Any]:
    """The defaults with one text for a repeatable option as a list of one."""
    return {
        verb: {
            name: [value] if isinstance(value, str) and name in repeatable else value
            for name, value in options.items()
        }
        for verb, options in defaults.items()
        for repeatable in [{p.name for p in group.commands[verb].params if p.multiple}]
    }


def _defaults(config: Path | None) -> dict[str, Any]:
    """Option defaults by verb from ``--config`` over ``[tool.autopar]``."""
    merged: dict[str, Any] = {}
    project = Path("pyproject.toml")
    tables = []
    if project.is_file():
        tables.append(_read_toml(project).get("tool", {}).get("autopar", {}))
    if config is not None:
        tables.append(_read_toml(config))
    for table in tables:
        for verb, options in table.items():
            if verb not in VERBS or not isinstance(options, dict):
                raise InputError(
                    f"configuration has '{verb}', a table named after a verb is needed",
                    hint="verbs: " + ", ".join(VERBS),
                )
            merged.setdefault(verb, {}).update(
                {k.replace("-", "_"): v for k, v in options.items()}
            )
    return merged


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"no such file: {path}", hint="check --config") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{path} is not valid TOML: {error}") from error


def main(arguments: list[str] | None = None) -> None:
    """Entry point; never shows a traceback for a mistake of the user's."""
    arguments = sys.argv[1:] if arguments is None else arguments
    sys.exit(_run(arguments))


def _run(arguments: list[str]) -> int:
    json_output = "--json" in arguments
    command = next((a for a in arguments if a in VERBS), "autopar")
    try:
        code = app(arguments, standalone_mode=False, prog_name="autopar")
        sys.stdout.flush()  # a reader that left is noticed here, not at the interpreter's end
        return int(code or 0)
    except AutoparError as error:
        report_error(command, error, json_output=json_output)
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        sys.stderr.write("interrupted\n")
        return 130
    except (BrokenPipeError, SystemExit) as error:
        if not _reader_left(error):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        return _unexpected(error, command, json_output)


def _reader_left(error: BaseException | None) -> bool:
    """True when a closed pipe is behind an error: parser and console make it an exit with 1."""
    while error is not None:
        if isinstance(error, BrokenPipeError):
            return True
        error = error.__context__
    return False


def _unexpected(error: Exception, command: str, json_output: bool) -> int:
    """Usage errors of the parser (exit 2); anything else is a bug of ours (exit 1)."""
    usage_code = getattr(error, "exit_code", None)
    if isinstance(usage_code, int) and hasattr(error, "format_message"):
        text = str(error.format_message()).replace(": Value error, ", ": ")
        wrong = InputError(text, hint=f"see `autopar {command} --help`".replace(" autopar", "", 1))
        report_error(command, wrong, json_output=json_output)
        return usage_code
    if os.environ.get("AUTOPAR_TRACEBACK"):
        raise error
    text = f"internal error: {type(error).__name__}: {error}"
    hint = "please report it; AUTOPAR_TRACEBACK=1 shows where it happened"
    report_error(command, AutoparError(text, hint=hint), json_output=json_output)
    return 1
