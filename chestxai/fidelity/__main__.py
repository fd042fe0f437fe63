from chestxai import fidelity, runs

runs.command(fidelity.main)
