"""What a wheel takes along of the book, so that ``pip install git+…`` finds the files: see pyproject.toml."""

import shutil
from pathlib import Path

from setuptools.command.build_py import build_py

BOOK = ("data", "notebooks", "pages", "_static", "_toc.yml", "_config.yml", "intro.md", "references.bib")


class WithBook(build_py):
    """Copies the book into the package, as ``chestxai/_book``, where `chestxai.profiles.ROOT` looks for it."""

    def run(self) -> None:
        """Build as ever, then copy; an editable install reads the checkout itself."""
        super().run()
        if self.editable_mode:
            return
        root, target = Path(__file__).resolve().parents[1], Path(self.build_lib) / "chestxai" / "_book"
        shutil.rmtree(target, ignore_errors=True)
        for name in BOOK:
            if (root / name).is_dir():
                shutil.copytree(root / name, target / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
            else:
                shutil.copy(root / name, target / name)
