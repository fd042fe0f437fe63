"""``pip install git+…``: a wheel of this checkout, used from a folder that is no checkout."""

import os
import runpy
import shutil
import subprocess
import sys
import zipfile

import pytest

from chestxai.profiles import ROOT

pytest.importorskip("setuptools", minversion="77")
BOOK = runpy.run_path(ROOT / "tools" / "wheel.py")["BOOK"]
USE = """
from pathlib import Path
from chestxai import batch, book, profiles, sources
assert Path(profiles.__file__).is_relative_to(Path.cwd() / "site"), profiles.__file__
assert profiles.RUNS == Path.cwd() / "runs"
assert book.BUILD == Path.cwd() / "_build"
smoke = profiles.load("smoke")
assert profiles.base_folder(smoke.base).joinpath("unet").is_dir()
assert all((batch.graph.NOTEBOOKS / f"{chapter.name}.py").is_file() for chapter in batch.CHAPTERS)
assert all((profiles.ROOT / name).is_file() for name in (*book.pages.SOURCES, *book.pages.PAGES))
print(len(sources.cards()))
"""


def test_a_wheel_takes_the_book_along(tmp_path):
    wanted = [*BOOK, "chestxai", "tools", "pyproject.toml", "README.md", "LICENSE"]
    for name in wanted:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        (tmp_path / "copy").mkdir(exist_ok=True)
        copy(ROOT / name, tmp_path / "copy" / name)
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", tmp_path, "."]
    subprocess.run(pip, cwd=tmp_path / "copy", check=True)
    zipfile.ZipFile(next(tmp_path.glob("*.whl"))).extractall(tmp_path / "site")
    env = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run([sys.executable, "-c", USE], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 1000
