"""``python -m chestxai.localization``, see `chestxai.localization.tables`."""

from chestxai import runs
from chestxai.localization.tables import main

if __name__ == "__main__":
    runs.command(main)
