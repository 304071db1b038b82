"""L0's compiled form: taken when it fits the sources, left when they were edited, and said either way."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from turtles import compiled
from turtles.tools import compiling
from turtles.tools.options import Failure

SAY = (
    "from turtles import compiled; import turtles.l0.vcpu as module;"
    "print(compiled.state()); print(module.__file__)"
)
ONE = ("l0/exits/simple.py",)


def copy_of_package(to: Path, *, compile_one: bool) -> dict[str, str]:
    """A copy of the package with a cache of its own; what to run Python with so that it is found."""
    package = to / "turtles"
    shutil.copytree(compiled.PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    path = package / "compiled.py"
    text = path.read_text()
    begin, end = text.index("HOT: Final = ("), text.index("SUFFIX: Final")
    path.write_text(f"{text[:begin]}HOT: Final = {ONE!r}\n{text[end:]}")
    environment = {**os.environ, "PYTHONPATH": str(to), "TURTLES_CACHE": str(to / "cache")}
    environment.pop(compiled.SWITCH, None)
    if compile_one:
        command = [sys.executable, "-c", "from turtles.tools.cli import main; main()", "compile"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.stdout == "compiled\n", done.stderr
        again = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert again.stdout == "up to date\n"
    return environment


def say(environment: dict[str, str], what: str) -> list[str]:
    command = [sys.executable, "-c", what]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True
    ).stdout.splitlines()


def test_compiled_form_follows_the_sources(tmp_path: Path) -> None:
    what = SAY.replace("vcpu", "exits.simple")
    environment = copy_of_package(tmp_path, compile_one=True)
    state, file = say(environment, what)
    assert (state, Path(file).suffix) == ("compiled", ".so")
    state, file = say({**environment, compiled.SWITCH: "python"}, what)
    assert (state, Path(file).suffix) == ("Python (TURTLES_L0=python)", ".py")
    edited = tmp_path / "turtles" / ONE[0]
    edited.write_text(edited.read_text() + "\n")
    state, file = say(environment, what)
    assert (state, Path(file).suffix) == ("Python (edited since `turtles compile`)", ".py")


def test_without_a_build_python_runs(tmp_path: Path) -> None:
    state, file = say(copy_of_package(tmp_path, compile_one=False), SAY)
    assert (state, Path(file).suffix) == ("Python (`turtles compile` has not been run)", ".py")


def test_every_hot_module_is_there() -> None:
    names = {str(path) for path in compiled.sources()}
    assert {"l0/vcpu.py", "l0/nested/entry.py", "devices/lapic.py"} <= names
    assert all((compiled.PACKAGE / pattern.split("*")[0]).exists() for pattern in compiled.HOT)


def test_a_failure_says_what_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURTLES_CACHE", str(tmp_path))
    monkeypatch.setenv("CC", "false")
    monkeypatch.setattr(compiled, "HOT", ONE)
    with pytest.raises(Failure, match="it runs as Python"):
        compiling.compile_l0()
    assert not compiled.directory().exists()
