"""The shape of the code is held: sizes, edges, imports without work, errors that are raised."""

from __future__ import annotations

import ast
import inspect
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from worker import errors

ROOT = Path(__file__).parent.parent
PACKAGES = ("worker", "usage_sources", "sandbox")
PROGRAM = [
    *sorted(path for folder in PACKAGES for path in (ROOT / folder).rglob("*.py")),
    ROOT / "webhook_app.py",
]
TESTS = sorted((ROOT / "tests").glob("*.py"))
BENCH = sorted((ROOT / "bench").glob("*.py"))
MOST_LINES, MOST_BODY, MOST_PARAMETERS = 350, 60, 6

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(path: Path) -> Iterator[Function]:
    """Yield every function of a file, methods and inner ones too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, Function):
            yield node


def body_lines(function: Function) -> int:
    """Count a function's lines without its signature and docstring."""
    body = function.body
    if ast.get_docstring(function) is not None:
        body = body[1:]
    if not body:
        return 0
    return (body[-1].end_lineno or 0) - body[0].lineno + 1


def parameters(function: Function) -> int:
    """Count what a caller passes."""
    given = function.args
    names = [a.arg for a in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


def test_files_stay_small() -> None:
    """No file of the program has more than 350 lines."""
    sizes = {path: len(path.read_text().splitlines()) for path in PROGRAM + BENCH}
    assert [f"{p}: {n}" for p, n in sizes.items() if n > MOST_LINES] == []


def test_functions_stay_short() -> None:
    """No function body has more than 60 lines, here or in the tests."""
    long = [
        f"{path}:{function.lineno} {function.name}: {body_lines(function)}"
        for path in PROGRAM + TESTS + BENCH
        for function in functions(path)
        if body_lines(function) > MOST_BODY
    ]
    assert long == []


def test_functions_take_few_parameters() -> None:
    """No function of the program takes more than six."""
    many = [
        f"{path}:{function.lineno} {function.name}: {parameters(function)}"
        for path in PROGRAM
        for function in functions(path)
        if parameters(function) > MOST_PARAMETERS
    ]
    assert many == []


def test_every_test_says_what_it_promises() -> None:
    """Each test function has a docstring of one sentence at least."""
    silent = [
        f"{path}:{function.lineno} {function.name}"
        for path in TESTS
        for function in functions(path)
        if function.name.startswith("test_") and not ast.get_docstring(function)
    ]
    assert silent == []


def test_no_function_imports() -> None:
    """Imports stand at the top, where the import directions are checked."""
    hidden = [
        f"{path}:{node.lineno}"
        for path in PROGRAM
        for function in functions(path)
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    assert hidden == []


def test_the_endpoint_is_an_edge() -> None:
    """webhook_app knows the worker's edges and core, and no adapter but by wiring."""
    tree = ast.parse((ROOT / "webhook_app.py").read_text())
    modules = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    ours = {m for m in modules if m and m.split(".")[0] in PACKAGES}
    assert not {m for m in ours if m.startswith(("worker.platforms", "usage_sources", "sandbox"))}
    assert "worker.reconcile" not in ours


WATCHER = """
import builtins, importlib, socket, sys
def refuse(*_, **__): raise AssertionError("work at import")
socket.socket.connect = refuse
opened = builtins.open
builtins.open = lambda file, mode="r", *a, **k: (
    refuse() if set(mode) & set("wax+") else opened(file, mode, *a, **k))
for name in sys.argv[1:]:
    importlib.import_module(name)
"""


def test_importing_does_no_work(tmp_path: Path) -> None:
    """No module connects, writes a file or needs a configuration when it is imported."""
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in PROGRAM
        if path.name != "__main__.py"
    ]
    environ = {"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1", "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", WATCHER, *names],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [n for n, c in inspect.getmembers(errors, inspect.isclass)])
def test_every_error_has_a_use(name: str) -> None:
    """Each error class is raised or caught outside the module that names it; all have one root."""
    found = getattr(errors, name)
    if not issubclass(found, Exception):
        return
    assert issubclass(found, errors.ReconcilerError)
    others = "".join(p.read_text() for p in PROGRAM if p.name != "errors.py")
    assert name in others
    assert f"{name}" in (errors.__doc__ or "")


def test_mocks_are_rare() -> None:
    """Fakes, real stores and real servers stand in; mock objects at most 2 in 1,000 lines."""
    texts = [path.read_text() for path in TESTS if path.name != Path(__file__).name]
    mocks = sum(
        text.count("Mock(") + text.count("mock.patch") + text.count("mocker.") for text in texts
    )
    lines = sum(len(text.splitlines()) for text in texts)
    assert mocks * 1000 <= 2 * lines
