from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from autopar.core.errors import EnvironmentUnableError, InputError
from autopar.tasks import Task, resolve, small_target, zoo_names
from autopar.tasks.resolve import zoo_options
from autopar.tasks.zoo import SMALL, ZOO

FILE = """
    import torch
    from autopar.tasks import Task

    def task(
        width: int = 4,
        scale: float = 1.0,
        bias: bool = True,
        name="mine",
        depth: int | None = None,
    ):
        return Task(
            name=f"{name}-{width}-{scale}-{bias}-{depth}",
            model=lambda: torch.nn.Linear(width, 1, bias=bias),
            batch=lambda n, generator: (torch.zeros(n, width), torch.zeros(n, 1)),
            loss=torch.nn.functional.mse_loss,
            optimizer=lambda params: torch.optim.SGD(params, lr=0.1),
        )

    def broken():
        missing_name + 1

    def quits():
        raise SystemExit(3)

    def number():
        return 3

    def needs(width: int):
        return task(width)

    constant = 7
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(textwrap.dedent(FILE))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def failure(target: str) -> InputError:
    with pytest.raises(InputError) as caught:
        resolve(target)
    assert caught.value.hint
    assert "\n" not in caught.value.message
    return caught.value


def test_listing_imports_neither_torch_nor_transformers():
    code = (
        "import sys, autopar.tasks as t; from autopar.tasks.zoo import ZOO;"
        "[ZOO.summary(n) for n in t.zoo_names()]; t.small_target('gpt');"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_zoo_target_is_normalised_and_resolves_to_itself():
    task = resolve("zoo:mlp?width=007&depth=3")
    assert task.target == "zoo:mlp?width=7&depth=3"
    assert resolve(task.target).target == task.target
    assert resolve("zoo:mlp").target == "zoo:mlp"


def test_options_reach_the_model():
    model = resolve("zoo:mlp?inputs=5&width=7&depth=3&classes=2").model()
    assert [tuple(p.shape) for p in model.parameters() if p.dim() == 2] == [
        (7, 5),
        (7, 7),
        (7, 7),
        (2, 7),
    ]


def test_size_small_takes_small_options_and_others_override():
    task = resolve("zoo:mlp?size=small&width=9")
    assert task.target == "zoo:mlp?size=small&width=9"
    shapes = [tuple(p.shape) for p in task.model().parameters() if p.dim() == 2]
    assert shapes[0] == (9, SMALL["mlp"]["inputs"])
    assert len(shapes) == SMALL["mlp"]["depth"] + 1
    full = resolve("zoo:mlp?size=full").model()
    assert next(full.parameters()).shape == (10, 10)


@pytest.mark.parametrize("name", zoo_names())
def test_small_targets_use_known_options(name):
    assert set(SMALL[name]) < set(zoo_options(name))
    assert resolve(small_target(name)).name == name
    assert ZOO.summary(name)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("zoo:gtp", ["gtp", "gpt"]),
        ("zoo:mlp?widht=3", ["widht", "width", "inputs", "depth", "classes", "size"]),
        ("zoo:mlp?zzz=3", ["zzz", "inputs"]),
        ("zoo:mlp?width=big", ["width=big", "whole number"]),
        ("zoo:mlp?width=1.5", ["width=1.5", "whole number"]),
        ("zoo:efficientnet_b0?width=wide", ["width=wide", "a number"]),
        ("zoo:mlp?width=0", ["width=0", "greater than 0"]),
        ("zoo:mlp?size=tiny", ["size=tiny", "small", "full"]),
        ("zoo:mlp?width", ["'width'", "key=value"]),
        ("zoo:mlp?width=1&width=2", ["width", "twice"]),
        ("zoo:gpt?hidden=10&heads=3", ["hidden=10", "heads=3"]),
        ("zoo:gpt?dropout=1.5", ["dropout=1.5"]),
        ("zoo:unet?image=100", ["image=100", "16", "96"]),
        ("zoo:dlrm?dim=64", ["bottom", "64"]),
        ("zoo:dlrm?top=a-b", ["top=a-b"]),
        ("zoo:moe?experts=1", ["experts=1"]),
        ("zoo:bert?vocab=2", ["vocab=2"]),
        ("gpt", ["did you mean zoo:gpt?"]),
        ("", ["zoo:NAME"]),
        ("nothing", ["zoo:NAME"]),
        ("mine.py", ["mine.py", "file.py:function"]),
    ],
)
def test_bad_targets_say_what_to_do(target, words):
    error = failure(target)
    text = f"{error.message} {error.hint}"
    assert [word for word in words if word not in text] == []


def test_small_target_of_an_unknown_name():
    with pytest.raises(InputError, match="gtp"):
        small_target("gtp")


def test_missing_transformers_is_the_environments_fault(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(EnvironmentUnableError) as caught:
        resolve("zoo:gpt")
    assert caught.value.hint == "pip install 'autopar[zoo]'"
    assert resolve("zoo:mlp").name == "mlp"


def test_file_target_becomes_absolute(folder):
    task = resolve("mine.py:task?width=8&scale=2&bias=no&depth=3")
    assert task.name == "mine-8-2.0-False-3"
    path = folder.resolve() / "mine.py"
    assert task.target == f"{path}:task?width=8&scale=2.0&bias=false&depth=3"
    assert resolve(task.target).name == task.name
    assert resolve("./mine.py:task").target == f"{path}:task"


def test_file_is_read_again_and_may_import_its_neighbours(folder):
    (folder / "neighbour_of_mine.py").write_text("from mine import task\n")
    (folder / "second.py").write_text("from neighbour_of_mine import task\n")
    assert resolve("second.py:task?width=2").name.startswith("mine-2")
    sys.modules.pop("neighbour_of_mine"), sys.modules.pop("mine")
    (folder / "second.py").write_text("raise ValueError('changed')\n")
    assert "changed" in failure("second.py:task").message


def test_module_target(folder):
    package = folder / "some_package_here"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "jobs.py").write_text(textwrap.dedent(FILE))
    task = resolve("some_package_here.jobs:task?width=3")
    assert task.target == "some_package_here.jobs:task?width=3"
    assert isinstance(task, Task)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("mien.py:task", ["mien.py", "no such file", "mine.py"]),
        ("nowhere/mine.py:task", ["nowhere", "no such file"]),
        ("mine.py:tsak", ["tsak", "task"]),
        ("mine.py:constant", ["constant", "int"]),
        ("mine.py:number", ["int", "autopar.Task"]),
        ("mine.py:broken", ["NameError", "missing_name", "(line 21)"]),
        ("mine.py:quits", ["SystemExit", "(line 24)"]),
        ("mine.py:needs", ["width"]),
        ("mine.py:task?width=x", ["width=x", "whole number"]),
        ("mine.py:task?bias=maybe", ["bias=maybe", "true or false"]),
        ("mine.py:task?hight=1", ["hight", "width, scale, bias, name, depth"]),
        ("no_such_module_here.sub:task", ["no_such_module_here", "ModuleNotFoundError"]),
    ],
)
def test_bad_user_targets_say_what_to_do(folder, target, words):
    error = failure(target)
    text = f"{error.message} {error.hint}"
    assert [word for word in words if word not in text] == [], text


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("x = 1\ny = undefined\n", ["raised NameError", "undefined", "(line 2)"]),
        ("x = 1\n\ndef f(:\n", ["raised SyntaxError", "(line 3)"]),
        ("import no_such_thing_here\n", ["ModuleNotFoundError", "(line 1)", "install"]),
        ("import sys\nsys.exit(1)\n", ["SystemExit", "(line 2)"]),
    ],
)
@pytest.mark.parametrize("form", ["file", "module"])
def test_mistakes_in_user_code_are_one_line(folder, code, words, form):
    (folder / "faulty_user_code.py").write_text(code)
    sys.modules.pop("faulty_user_code", None)
    error = failure("faulty_user_code.py:f" if form == "file" else "faulty_user_code:f")
    text = f"{error.message} {error.hint}"
    assert [word for word in words if word not in text] == [], text


def test_mistakes_in_another_file_name_it(folder):
    package = folder / "faulty_package_here"
    package.mkdir()
    (package / "__init__.py").write_text("\n1 / 0\n")
    (package / "jobs.py").write_text("")
    error = failure("faulty_package_here.jobs:task")
    assert "ZeroDivisionError" in error.message
    assert "(__init__.py line 2)" in error.message


def test_folder_is_not_a_file(folder):
    Path("folder.py").mkdir()
    assert "folder" in failure("folder.py:task").message
