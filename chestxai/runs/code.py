"""The identity of code: a hash of the syntax trees a stage reaches, without docstrings, comments and layout.

Results are named by settings, data, weights **and** the code that made them, so changed code never returns old results.
Imports are followed inside the package. Through a package's ``__init__`` only the re-exported names that are used are
followed, so that a change of one file reruns what depends on that file and nothing else.
"""

import ast
import hashlib
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
CHECKOUT = (PACKAGE.parent / "_toc.yml").is_file()
#: Where the book's files are; a wheel takes them along (``tools/wheel.py``).
ROOT = PACKAGE.parent if CHECKOUT else PACKAGE / "_book"
#: Code that moves results around, and settings and data sets, which have identities of their own.
INFRASTRUCTURE = ("chestxai.runs", "chestxai.profiles", "chestxai.sources")


def code_fingerprint(*modules: str, without: Collection[str] = INFRASTRUCTURE) -> str:
    """A name of 16 hex digits for the code of ``modules`` and of everything they import inside the package.

    ``modules`` are dotted names, such as ``"chestxai.finetune.loop"``; of a package, all that it re-exports counts.
    Modules and packages ``without`` are left out, with all that only they reach.
    """
    starts = [(name, None) for name in modules]
    return files_fingerprint(_follow(starts, without))


def reached(code: str) -> set[Path]:
    """Files of the package that Python source ``code`` imports, directly or not; SyntaxError if it is not Python."""
    return _follow(_imports(ast.parse(code)), ())


def files_fingerprint(files: Collection[Path]) -> str:
    """As `code_fingerprint`, of the given Python files alone."""
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(f"{path.relative_to(PACKAGE).as_posix()}\n{_syntax(path, path.stat().st_mtime_ns)}\n".encode())
        # What a file reads is beside it, under its name.
        for beside in map(path.with_suffix, (".yaml", ".css", ".js")):
            digest.update(beside.read_bytes() if beside.is_file() else b"")
    return digest.hexdigest()[:16]


def _follow(starts: Collection[tuple[str, str | None]], without: Collection[str]) -> set[Path]:
    waiting, done, files = list(starts), set(), set()
    while waiting:
        target = waiting.pop()
        if target in done or any(target[0] == name or target[0].startswith(f"{name}.") for name in without):
            continue
        done.add(target)
        for found in _resolve(*target):
            if not isinstance(found, Path):
                waiting.append(found)
            elif found not in files:
                files.add(found)
                waiting.extend(_imports(_tree(found, found.stat().st_mtime_ns)))
    return files


def _resolve(module: str, name: str | None) -> Iterator[Path | tuple[str, str | None]]:
    """The files that hold ``module.name``, or further targets where it is re-exported; nothing outside the package."""
    first, *rest = module.split(".")
    if first != PACKAGE.name:
        return
    base = PACKAGE.joinpath(*rest)
    if base.with_suffix(".py").is_file() and base != PACKAGE:
        yield base.with_suffix(".py")
        return
    start = base / "__init__.py"
    if not start.is_file():
        return
    if name is not None and ((base / f"{name}.py").is_file() or (base / name / "__init__.py").is_file()):
        yield f"{module}.{name}", None
        return
    exports = {
        alias.asname or alias.name: (node.module, alias.name)
        for node in ast.walk(_tree(start, start.stat().st_mtime_ns))
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }
    if name in exports:
        yield exports[name]
        return
    yield start
    if name is None and base != PACKAGE:
        yield from exports.values()


@cache
def _imports(tree: ast.Module) -> set[tuple[str, str | None]]:
    """``(module, name)`` of everything that a module imports or reads as an attribute of an imported package."""
    targets: set[tuple[str, str | None]] = set()
    bound: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets |= {(alias.name, None) for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                if (PACKAGE.joinpath(*node.module.split(".")[1:], alias.name) / "__init__.py").is_file():
                    bound[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                else:
                    targets.add((node.module, alias.name))
    attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    read = {(node.value.id, node.attr) for node in attributes if isinstance(node.value, ast.Name)}
    for name, module in bound.items():
        targets |= {(module, attribute) for of, attribute in read if of == name} or {(module, None)}
    return targets


@cache
def _tree(path: Path, changed: int) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def _syntax(path: Path, changed: int) -> str:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        documented = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        if documented and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:]
    return ast.unparse(tree)
