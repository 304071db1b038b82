"""`turtles compile`: L0's hot modules compiled by mypyc into the cache, or why that cannot be.

The rest becomes byte code in place. Of L0 it compiles a copy, so that an edit meanwhile does no harm, and
puts the result in place whole. Which modules there are, and how they are taken, is in `turtles.compiled`.
"""

from __future__ import annotations

import compileall
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from turtles import compiled
from turtles.tools.options import Failure

_SETUP: Final = """
from mypyc.build import mypycify
from setuptools import setup

options = ["--strict", "--config-file=", "--cache-dir=/dev/null", "--follow-imports=silent"]
modules = mypycify(options + {sources!r}, opt_level="2", debug_level="0")
setup(name="turtles-l0", packages=[], ext_modules=modules)
"""


def compile_l0(*, anew: bool = False) -> bool:
    """Compile, unless it is done; whether there was anything to do."""
    # The rest starts quicker from byte code, which Python itself may not be allowed to leave there.
    compileall.compile_dir(compiled.PACKAGE, quiet=2)
    place, digest = compiled.directory(), compiled.digest()
    if not anew and (place / compiled.DIGEST).exists() and (place / compiled.DIGEST).read_text() == digest:
        return False
    for module, package in (("mypyc", "mypy"), ("setuptools", "setuptools")):
        if importlib.util.find_spec(module) is None:
            raise Failure(f"L0 cannot be compiled, it runs as Python: the package {package} is missing")
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent, prefix="compiling-") as work_name:
        work = Path(work_name)
        ignored = shutil.ignore_patterns("*.so", "__pycache__")
        shutil.copytree(compiled.PACKAGE, work / "turtles", ignore=ignored)
        names = [f"turtles/{path}" for path in compiled.sources()]
        (work / "setup.py").write_text(_SETUP.format(sources=names))
        command = [sys.executable, "setup.py", "--quiet", "build_ext", "--build-lib", "made"]
        environment = {**os.environ, compiled.SWITCH: "python"}
        result = subprocess.run(
            command, cwd=work, env=environment, capture_output=True, text=True, check=False
        )
        if result.returncode:
            lines = (result.stdout + result.stderr).strip().splitlines()
            said = [line for line in lines if "error" in line.lower()] or lines or ["no message"]
            raise Failure(f"L0 cannot be compiled, it runs as Python: {said[0].strip()}")
        (work / "made" / compiled.DIGEST).write_text(digest)
        shutil.rmtree(place, ignore_errors=True)
        (work / "made").rename(place)
    return True
