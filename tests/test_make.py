"""The Makefile: values with spaces and quotes arrive whole; a half-made environment is made anew."""

from __future__ import annotations

import shlex
import shutil
import subprocess

import pytest

from chestxai.profiles import ROOT

pytestmark = pytest.mark.skipif(not shutil.which("make"), reason="there is no make")


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "a folder with spaces"
    place.mkdir()
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, place)
    return place


@pytest.mark.parametrize("value", ["/a b/mine.yaml", "it's.yaml", 'say "x".yaml', "a;b&c.yaml", "*.yaml"])
@pytest.mark.parametrize(
    ("goal", "name", "option"),
    [
        ("book", "PROFILE", "--profile"), ("book", "DATA", "--data"), ("book", "VARIANTS", "--variants"),
        ("book", "SEEDS", "--seeds"), ("grid", "GRID", "--grid"), ("grid", "DATA", "--data"),
        ("check-result", "ROW", "--check"), ("check-result", "GRID", "--grid"),
    ],
)  # fmt: skip
def test_a_value_arrives_whole(folder, goal, name, option, value):
    done = subprocess.run(
        ["make", "-n", goal, f"{name}={value}"], cwd=folder, capture_output=True, text=True, check=True
    )
    commands = [shlex.split(line) for line in done.stdout.splitlines() if "-m chestxai." in line]
    assert commands
    assert all(words[words.index(option) + 1] == value for words in commands)


def test_a_path_may_begin_with_the_home_folder(folder):
    command = ["make", "-n", "book", "DATA=~/chest x-rays", "HOME=/home/me"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    assert "--data '/home/me/chest x-rays'" in done.stdout


def test_an_option_without_a_value_is_left_out(folder):
    done = subprocess.run(["make", "-n", "book"], cwd=folder, capture_output=True, text=True, check=True)
    assert ".venv/bin/python -m chestxai.batch --profile 'demo'" in done.stdout
    assert "--data" not in done.stdout


@pytest.mark.parametrize("made", ["venv", "without-pip", ""])
def test_an_environment_without_pip_is_made_anew_or_the_package_named(folder, made):
    """The one that makes it anew is a stand-in that notes its calls."""
    python = folder / "python"
    new = ".venv/bin/python"
    pip = f"mkdir -p .venv/bin && printf '#!/bin/sh\necho env \"$@\" >>calls\n' >{new} && chmod +x {new}"
    python.write_text(
        f'#!/bin/sh\necho "$@" >>calls\ncase "$*" in *{made or "no"}*) {pip};; *--clear*) exit 1;; esac\n'
    )
    python.chmod(0o755)
    half = folder / ".venv" / "bin" / "python"
    half.parent.mkdir(parents=True)
    half.write_text("#!/bin/sh\nexit 1\n")
    half.chmod(0o755)
    done = subprocess.run(["make", ".venv/installed", "PYTHON=./python"], cwd=folder, capture_output=True, text=True)
    calls = (folder / "calls").read_text()
    assert "-m venv --clear .venv" in calls
    if made:
        assert done.returncode == 0, done.stderr
        assert "env -m pip install" in calls
    else:
        assert done.returncode == 2
        assert "./python cannot make an environment with pip: install the system's package" in done.stderr
        assert not (folder / ".venv" / "installed").exists()
