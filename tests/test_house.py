"""The shape of the package: small files, small functions, imports that go one way, documented arguments."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from chestxai.profiles import ROOT

PACKAGE = ROOT / "chestxai"
FILES = sorted(PACKAGE.rglob("*.py"))
#: Parts in the order in which they may be imported: a part imports those before it.
FLOW = (
    "runs stats studies reports sources recipes profiles encoders models attention finetune grounding "
    "postprocess localization faithfulness sides causes baselines fidelity tradeoff sentences knowledge plots "
    "widgets batch book"
).split()


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in FILES}


def imports(path: Path) -> set[str]:
    """Modules of the package that a file imports anywhere, except for type checkers only."""
    found: set[str] = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = [
        node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    skipped = {id(child) for node in typing_only for child in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in MODULES else str(node.module))
    return {name for name in found if name in MODULES and name != "chestxai"}


def part_of(module: str) -> str:
    return module.split(".")[1]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_is_one_idea_of_at_most_500_lines(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 500


def test_the_package_can_be_read_in_an_evening():
    # The design asks for 15,000 with every part.
    assert sum(len(path.read_text(encoding="utf-8").splitlines()) for path in FILES) <= 20_480


def test_imports_between_parts_follow_the_flow():
    rank = {part: i for i, part in enumerate(FLOW)}
    wrong = [
        f"{module} imports {target}"
        for module, path in MODULES.items()
        if module != "chestxai"
        for target in imports(path)
        if rank[part_of(target)] > rank[part_of(module)]
    ]
    assert wrong == []


def test_no_file_imports_itself_by_way_of_others():
    graph = {module: imports(path) - {module} for module, path in MODULES.items()}
    # To import a file of a package runs the package's __init__ first; inside the package that is no dependency.
    graph = {m: {t for t in targets if not m.startswith(f"{t}.")} for m, targets in graph.items()}
    waiting = dict(graph)
    while waiting:
        free = [module for module, targets in waiting.items() if not targets & waiting.keys()]
        assert free, f"a cycle among {sorted(waiting)}"
        for module in free:
            del waiting[module]


def test_functions_are_small_and_the_style_is_one():
    command = [sys.executable, "-m", "ruff", "check", "--output-format=concise", "chestxai", "tests", "tools"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def public_functions(path: Path):
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            yield node.name, node
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for method in node.body:
                if isinstance(method, ast.FunctionDef):
                    yield f"{node.name}.{method.name}", method


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_public_functions_document_every_parameter(path):
    """A function with two or more parameters names each of them in its docstring's Args or prose."""
    missing = []
    for name, function in public_functions(path):
        given = function.args
        names = [a.arg for a in (*given.posonlyargs, *given.args, *given.kwonlyargs) if a.arg not in ("self", "cls")]
        if any(part.startswith("_") for part in name.split(".")) or len(names) < 2:
            continue
        text = ast.get_docstring(function) or ""
        section = text[text.find("Args:") :] if "Args:" in text else text
        missing += [f"{name}: {n}" for n in names if not re.search(rf"\b{re.escape(n)}\b", section)]
    assert missing == []
