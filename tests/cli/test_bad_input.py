"""Bad input: one clear line, the right exit code, no traceback, no good file lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from autopar.api import clusters
from autopar.cli.main import _run
from autopar.plans import Mesh, Plan, Stage, TaskRef

USER_FILES = {
    "branching.py": """
import torch, autopar
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 3)
    def forward(self, x):
        return self.layer(x) if x.sum() > 0 else x
def task():
    return autopar.Task(name="branching", model=Net,
        batch=lambda n, g: (torch.randn(n, 3, generator=g), torch.zeros(n, 3)),
        loss=lambda out, t: (out - t).pow(2).mean(),
        optimizer=lambda p: torch.optim.SGD(p, lr=0.1))
""",
    "syntax.py": "def task(:\n",
    "raises.py": "import nothing_of_this_name\n",
    "number.py": "def task():\n    return 3\n",
}


@pytest.fixture
def place(workplace: Path) -> Path:
    for name, text in USER_FILES.items():
        (workplace / name).write_text(text)
    plan = Plan(
        task=TaskRef(name="mlp", target="zoo:mlp", fingerprint="another", op_count=3),
        mesh=Mesh(),
        stages=(Stage(first_op=0, stop_op=3, pp=0, recompute=((0, 2),)),),
    )
    plan.save(workplace / "foreign.json")
    body = json.loads((workplace / "foreign.json").read_text())
    (workplace / "zero.json").write_text(json.dumps({**body, "microbatches": 0}))
    (workplace / "newer.json").write_text(json.dumps({**body, "schema_version": 99}))
    (workplace / "unknown.json").write_text(json.dumps({**body, "turbo": True}))
    (workplace / "other.json").write_text(json.dumps({"schema": "something.else"}))
    (workplace / "cut.json").write_text(json.dumps(body)[:100])
    (workplace / "binary.json").write_bytes(bytes(range(256)))
    (workplace / "nan.json").write_text('{"schema": "autopar.plan", "x": NaN}')
    Plan(
        task=TaskRef(name="mlp", target="zoo:mlp", fingerprint="f", op_count=3),
        mesh=Mesh(dp_replicate=1024),
        stages=(Stage(first_op=0, stop_op=3, pp=0),),
    ).save(workplace / "cluster.json")
    plan.save(workplace / "zero_hope.json")
    (workplace / "broken.toml").write_text("[plan\n")
    (workplace / "verb.toml").write_text("[fly]\nhigh = 1\n")
    return workplace


CASES: list[tuple[str, int, str]] = [
    ("run missing.json", 2, "no such file"),
    ("run cut.json", 2, "not valid JSON"),
    ("run binary.json", 2, "cannot read"),
    ("run nan.json", 2, "NaN"),
    ("run other.json", 2, "something.else"),
    ("run newer.json", 2, "schema version 99"),
    ("run unknown.json", 2, "turbo"),
    ("run zero.json", 2, "microbatches=0"),
    ("run foreign.json --steps 1", 2, "another model"),
    ("run .", 2, "directory"),
    ("report missing.json", 2, "missing.json"),
    ("report other.json", 2, "something.else"),
    ("plan missing.json", 2, "no such file"),
    ("plan foreign.json --cluster 1x2:t4", 2, "autopar.plan"),
    ("profile zoo:resnet5O", 2, "resnet5O"),
    ("profile zoo:mlp?widht=3", 2, "widht"),
    ("profile zoo:mlp?width=wide", 2, "wide"),
    ("profile branching.py:task --no-measure", 2, "branching"),
    ("profile syntax.py:task", 2, "syntax.py"),
    ("profile raises.py:task", 2, "nothing_of_this_name"),
    ("profile number.py:task", 2, "int"),
    ("profile number.py:tusk", 2, "tusk"),
    ("profile absent.py:task", 2, "absent.py"),
    ("profile no.such.module:task", 2, "no"),
    ("profile zoo:mlp --batch 0", 2, "batch"),
    ("profile zoo:mlp --device h1000", 2, "h1000"),
    ("profile", 2, "nothing to profile"),
    ("profile zoo:mlp --cluster local:2", 2, "not both"),
    ("profile --cluster local:0", 2, "local:0"),
    ("plan zoo:mlp --cluster 0x8:t4", 2, "0"),
    ("plan zoo:mlp --cluster 2x8:t44", 2, "t44"),
    ("plan zoo:mlp --cluster nonsense", 2, "nonsense"),
    ("plan zoo:mlp --cluster 1x2:t4 --global-batch 0", 2, "--global-batch is 0"),
    ("plan zoo:mlp --cluster 1x2:t4 --deadline 3h", 2, "--deadline of 3.0 h without --samples"),
    ("plan zoo:mlp --cluster 1x2:t4 --budget 5", 2, "--budget of 5 USD without --samples"),
    ("plan zoo:mlp --cluster 1x2:t4 --precision int4", 2, "int4"),
    ("plan zoo:mlp --cluster 1x2:t4 --storage journal:", 2, "names no file"),
    ("catalog foo", 2, "Invalid value for 'kind': 'foo' is not one of"),
    ("plan zoo:mlp --cluster 1x2:t4 --max-memory lots", 2, "lots"),
    ("plan zoo:mlp --cluster 1x2:t4 --fix ppp=2", 2, "ppp"),
    ("plan zoo:mlp --cluster 1x2:t4 --fix pp=two", 2, "two"),
    ("plan zoo:mlp --cluster 1x2:t4 --fix schedule=2f2b", 2, "2f2b"),
    ("plan zoo:mlp --cluster 1x2:t4 --sync telepathy", 2, "telepathy"),
    ("plan zoo:mlp --objective fame", 2, "fame"),
    ("plan zoo:mlp --cluster 1x2:t4 --global-batch 8 --fix dp_replicate=4", 3, "4"),
    ("plan zoo:mlp --cluster 1x2:t4 --global-batch 8 --max-memory 1M", 3, "memory"),
    ("fly", 2, "fly"),
    ("run foreign.json --stepps 3", 2, "stepps"),
    ("--config broken.toml catalog", 2, "broken.toml"),
    ("--config verb.toml catalog", 2, "fly"),
    ("bench zoo:mlp --cluster 1x2:t4 --plans best", 2, "best"),
    ("bench zoo:mlp --cluster 1x2:t4", 6, "not this host"),
    ("run cluster.json", 6, "1024 ranks"),
    ("run zero_hope.json --tolerance 0.1", 2, "no prediction"),
    ("export missing.json --to csv", 2, "no such file"),
    ("export other.json --to csv", 2, "something.else"),
    ("export foreign.json --to torchtitam", 2, "torchtitam"),
    ("export foreign.json", 2, "--to"),
    ("export foreign.json --to perfetto", 2, "no prediction"),
    ("export cluster.json --to slurm --nnodes 3", 2, "3 hosts"),
    ("export foreign.json --to csv --out .", 2, "cannot write"),
    ("profile os:system?command=true --no-measure", 2, "os:system"),
]


@pytest.mark.parametrize(("line", "code", "word"), CASES, ids=[c[0] for c in CASES])
def test_one_clear_line(
    place: Path, capsys: pytest.CaptureFixture[str], line: str, code: int, word: str
) -> None:
    assert _run(line.split()) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "Traceback" not in printed.err
    errors = [row for row in printed.err.splitlines() if row.startswith("error:")]
    assert len(errors) == 1
    assert word in errors[0]


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("plan missing.json", "missing.json"),
        ("plan foreign.json --cluster local:2", "autopar.plan"),
        ("plan zoo:gtp --cluster local:2", "gtp"),
        ("plan missing.json --cluster local --samples 9 --deadline 1h", "missing.json"),
        ("bench zoo:gtp", "gtp"),
    ],
)
def test_this_host_is_not_measured_for_a_wrong_name(
    place: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    line: str,
    word: str,
) -> None:
    def measure(*_: object, **__: object) -> None:
        raise AssertionError("measured for a minute before the wrong name was told")

    monkeypatch.setattr(clusters, "measure_cluster", measure)
    assert _run(line.split()) == 2
    assert word in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["catalog", "catalog --json", "--help"])
def test_a_reader_that_leaves_ends_it_quietly(verb: str) -> None:
    """As in ``autopar catalog | head -1``, with a reader that is gone before the first line."""
    read, write = os.pipe()
    os.close(read)
    with open(write, "wb") as gone:
        done = subprocess.run(
            [sys.executable, "-m", "autopar", *verb.split()],
            check=False,
            stdout=gone,
            stderr=subprocess.PIPE,
        )
    assert (done.returncode, done.stderr) == (0, b"")


def test_the_precisions_named_are_those_of_the_help(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(["plan", "zoo:mlp", "--cluster", "1x2:t4", "--precision", "int4"]) == 2
    named = capsys.readouterr().err.split("known: ")[1].split("\n")[0].split(", ")
    assert sorted(named) == ["auto", "bfloat16", "float16", "float32", "float8", "tf32"]


def test_an_untraceable_model_prints_its_error_and_nothing_of_torch(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(["profile", "branching.py:task", "--no-measure"]) == 2
    assert [row.split(":")[0] for row in capsys.readouterr().err.splitlines()] == ["error", "hint"]


@pytest.mark.parametrize("line", ["run cut.json --json", "profile zoo:gtp --json", "fly --json"])
def test_json_errors_are_one_document(
    place: Path, capsys: pytest.CaptureFixture[str], line: str
) -> None:
    assert _run(line.split()) == 2
    document = json.loads(capsys.readouterr().out)
    assert document["status"] == "invalid"
    assert document["error"]["code"] == "bad_input"
    assert document["error"]["hint"]


def _unwritable(place: Path) -> str:
    (place / "file").write_text("I am a file")
    return "file/plan.json"


def _directory(place: Path) -> str:
    (place / "folder").mkdir()
    return "folder"


@pytest.mark.parametrize("make_out", [_unwritable, _directory])
def test_unwritable_out(
    place: Path, capsys: pytest.CaptureFixture[str], make_out: Callable[[Path], str]
) -> None:
    out = make_out(place)
    line = f"plan zoo:mlp --cluster 1x2:t4 --global-batch 8 --out {out}"
    assert _run(line.split()) == 2
    assert out in capsys.readouterr().err
    assert not (place / "file").exists() or (place / "file").read_text() == "I am a file"
