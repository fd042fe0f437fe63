"""Results know their code: which change reruns which stage, tried on copies of the package."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

from chestxai import runs
from chestxai.profiles import ROOT

STAGES = {
    "weights": ["chestxai.finetune.loop", "chestxai.recipes"],
    "maps": ["chestxai.grounding.dataset"],
    "images": ["chestxai.fidelity.sampling"],
    "figures": ["chestxai.plots.page"],
}


@pytest.fixture
def package(tmp_path):
    shutil.copytree(ROOT / "chestxai", tmp_path / "chestxai", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "chestxai"


def identities(package) -> dict[str, str]:
    code = (
        "import importlib.util, json, sys\n"
        f"spec = importlib.util.spec_from_file_location('code', {str(package / 'runs/code.py')!r})\n"
        "code = importlib.util.module_from_spec(spec); spec.loader.exec_module(code)\n"
        f"print(json.dumps({{k: code.code_fingerprint(*v) for k, v in {STAGES!r}.items()}}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("file", "old", "new", "stages"),
    [
        ("finetune/loop.py", "F.mse_loss(", "F.l1_loss(", ["weights"]),
        ("recipes/networks.py", "distance = 1 -", "distance = 2 -", ["weights", "maps", "images"]),
        ("grounding/passes.py", "passes.seed, keys[i], t, d", "passes.seed, keys[i], d, t", ["maps"]),
        ("attention.py", "depth**-0.5", "depth**-0.25", ["weights", "maps"]),
        ("localization/scores.py", "import math", "x = 1\nimport math", []),
        ("fidelity/sampling.py", "import numpy", "x = 1\nimport numpy", ["images"]),
        ("fidelity/metrics.py", "import numpy", "x = 1\nimport numpy", []),
        ("profiles.py", "from __future__", "x = 1\nfrom __future__", []),
        ("plots/page.js", "(() =>", "( () =>", ["figures"]),
        ("reports/words.yaml", "bullous", "bulbous", ["weights", "maps", "images"]),
        # Neither docstrings nor comments nor layout count.
        ("finetune/loop.py", '"""The training loop.', '"""A training loop.', []),
        ("finetune/loop.py", "# One read from the device", "# A single read from the device", []),
        ("attention.py", "weights = F.pad(", "weights  =  F.pad(", []),
    ],
)
def test_a_change_reruns_what_depends_on_it_and_nothing_else(package, file, old, new, stages):
    before = identities(package)
    text = (package / file).read_text()
    assert old in text
    (package / file).write_text(text.replace(old, new))
    after = identities(package)
    assert [name for name in STAGES if after[name] != before[name]] == stages


def test_a_package_is_followed_by_the_names_that_are_used():
    maps = {p.name for p in runs.reached("from chestxai import grounding\ngrounding.paper_timesteps(1)")}
    assert "passes.py" in maps
    assert "dataset.py" not in maps
    assert "dataset.py" in {p.name for p in runs.reached("from chestxai.grounding import ground_run")}
    assert "dataset.py" in {p.name for p in runs.reached("from chestxai import grounding\nf(grounding)")}
    assert runs.reached("import numpy") == set()
