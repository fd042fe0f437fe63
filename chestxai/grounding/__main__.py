"""``python -m chestxai.grounding``: see `chestxai.grounding.command`."""

from chestxai import runs
from chestxai.grounding.command import main

if __name__ == "__main__":
    runs.command(main)
