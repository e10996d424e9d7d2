"""Sync modes as the command line lists and names them."""

from __future__ import annotations

import json

import typer
from typer.testing import CliRunner

from autopar.cli import plan
from autopar.cli.main import app
from autopar.sync import COMPRESSIONS, SYNC_MODES, parse_sync


def test_the_catalogue_lists_every_mode_and_compression_with_its_semantics():
    done = CliRunner().invoke(app, ["catalog", "sync", "--json"])
    assert done.exit_code == 0
    rows = json.loads(done.stdout)["data"]["sync"]
    names = [row["name"] for row in rows]
    assert names == [
        *(parse_sync(name).name for name in SYNC_MODES),
        *(parse_sync(f"all_reduce+{c}").name.removeprefix("all_reduce")
          for c in COMPRESSIONS if c != "none"),
    ]  # fmt: skip
    for row in rows:
        sync = parse_sync(f"all_reduce{row['name']}" if row["name"][0] == "+" else row["name"])
        assert row["semantics"] == sync.semantics
        assert bool(row["citations"]) == (not sync.exact)
    text = CliRunner().invoke(app, ["catalog", "sync"]).stdout
    for row in rows:
        assert row["name"] in text
        assert row["semantics"] in text


def test_the_help_of_plan_names_every_mode():
    context = typer.Context(typer.main.get_command(app))
    command = typer.main.get_group(app).get_command(context, "plan")
    assert command is not None
    (option,) = (p for p in command.params if p.name == "sync")
    text = str(getattr(option, "help", ""))
    assert all(name in text for name in ("exact", "any", *SYNC_MODES))
    assert plan.command.__doc__
