"""``python -m chestxai.finetune``: see `chestxai.finetune.command`."""

from chestxai import runs
from chestxai.finetune.command import main

if __name__ == "__main__":
    runs.command(main)
