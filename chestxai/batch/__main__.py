from chestxai import runs
from chestxai.batch.commands import main

if __name__ == "__main__":
    runs.command(main)
