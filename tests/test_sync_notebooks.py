"""Which form of a notebook is right is decided by what was edited, never by the clock."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import time

import pytest

from chestxai.profiles import ROOT

spec = importlib.util.spec_from_file_location("sync_notebooks", ROOT / "tools" / "sync_notebooks.py")
sync_notebooks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sync_notebooks)
NAME = "05_scores"


def git(folder, *arguments: str) -> None:
    author = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run(["git", *author, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def pair(tmp_path):
    for ending in ("py", "ipynb"):
        shutil.copyfile(ROOT / "notebooks" / f"{NAME}.{ending}", tmp_path / f"{NAME}.{ending}")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "both")
    return tmp_path / f"{NAME}.py", tmp_path / f"{NAME}.ipynb"


def edit(path, words: str) -> None:
    text = path.read_text("utf-8")
    assert "## Takeaways" in text
    path.write_text(text.replace("## Takeaways", f"## Takeaways {words}"), "utf-8")


def later(path) -> None:
    os.utime(path, (time.time() + 60,) * 2)


def test_a_touched_notebook_does_not_undo_an_edited_text(pair):
    text, notebook = pair
    assert sync_notebooks.sync(text) == ""
    edit(text, "MY EDIT")
    later(notebook)
    assert sync_notebooks.sync(text) == f"{NAME}.ipynb from {NAME}.py"
    assert "MY EDIT" in text.read_text("utf-8")
    assert "MY EDIT" in notebook.read_text("utf-8")


def test_an_edited_notebook_goes_into_the_text(pair):
    text, notebook = pair
    before = text.read_text("utf-8")
    edit(notebook, "MY EDIT")
    later(text)
    assert sync_notebooks.sync(text) == f"{NAME}.py from {NAME}.ipynb"
    assert text.read_text("utf-8") == before.replace("## Takeaways", "## Takeaways MY EDIT")


def test_two_edits_stop_and_nothing_is_written(pair, capsys):
    text, notebook = pair
    edit(text, "ONE")
    edit(notebook, "TWO")
    before = [path.read_bytes() for path in pair]
    assert sync_notebooks.main([str(text)]) == 1
    assert "were both edited" in capsys.readouterr().out
    assert [path.read_bytes() for path in pair] == before


def test_without_git_and_without_a_pair_the_text_is_right(pair):
    text, notebook = pair
    shutil.rmtree(text.parent / ".git")
    edit(text, "ONE")
    edit(notebook, "TWO")
    sync_notebooks.sync(text)
    assert "ONE" in notebook.read_text("utf-8")
    notebook.unlink()
    sync_notebooks.sync(text)
    assert "ONE" in notebook.read_text("utf-8")
