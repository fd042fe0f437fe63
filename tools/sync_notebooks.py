"""Bring each notebook's two forms in line: whichever was edited since the last commit wins, whatever the clock says.

    python tools/sync_notebooks.py [notebooks/*.py]

Where both were edited and differ, nothing is written for that notebook, and the exit status is 1. Without git, or where
neither was edited, the text form wins.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import jupytext
from jupytext.combine import combine_inputs_with_outputs

ROOT = Path(__file__).resolve().parents[1]


def cells(text: str, form: str) -> list[tuple]:
    """What must be the same in both forms: type, source and tags of every cell.

    Args:
        text: The file's content.
        form: "py:percent" or "ipynb".
    """
    notebook = jupytext.reads(text, form)
    return [(cell.cell_type, cell.source, cell.metadata.get("tags", [])) for cell in notebook.cells]


def edited(path: Path, form: str) -> bool:
    """Whether a file says something else than its last commit; False where that cannot be known.

    Args:
        path: The file.
        form: As in `cells`.
    """
    command = ["git", "-C", str(path.parent), "show", f"HEAD:./{path.name}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        return False
    if done.returncode:
        # New in a repository: that is an edit. No repository: nothing is known.
        inside = subprocess.run(["git", "-C", str(path.parent), "rev-parse", "HEAD"], capture_output=True)
        return inside.returncode == 0
    return cells(done.stdout, form) != cells(path.read_text("utf-8"), form)


def sync(text: Path) -> str:
    """Bring one pair in line.

    Args:
        text: The ``.py``; its ``.ipynb`` need not exist.

    Returns:
        What was done, or "" if both said the same. Begins with "conflict" if both were edited.
    """
    pair = text.with_suffix(".ipynb")
    if pair.is_file():
        if cells(text.read_text("utf-8"), "py:percent") == cells(pair.read_text("utf-8"), "ipynb"):
            return ""
        if edited(pair, "ipynb"):
            if edited(text, "py:percent"):
                return (
                    f"conflict: {text.name} and {pair.name} were both edited; take one back (git checkout), then again"
                )
            jupytext.write(jupytext.read(pair), text, fmt="py:percent")
            return f"{text.name} from {pair.name}"
    notebook = jupytext.read(text)
    if pair.is_file():  # keep outputs and the names of cells
        notebook = combine_inputs_with_outputs(notebook, jupytext.read(pair))
    jupytext.write(notebook, pair)
    return f"{pair.name} from {text.name}"


def main(arguments: Sequence[str]) -> int:
    """``python tools/sync_notebooks.py``."""
    done = [sync(path) for path in map(Path, arguments or sorted((ROOT / "notebooks").glob("*.py")))]
    print("\n".join(filter(None, done)) or "All pairs say the same.")
    return int(any(line.startswith("conflict") for line in done))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
