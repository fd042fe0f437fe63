"""``python -m chestxai.grounding``: the maps of one run of a profile."""

from collections.abc import Sequence

from accelerate import PartialState

from chestxai import profiles, runs
from chestxai.grounding.dataset import ground_run
from chestxai.studies import phrases


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m chestxai.grounding``: all test phrases with every checkpoint of a run."""
    parser = profiles.run_parser("grounding", "Ground all test phrases with every checkpoint of a run.")
    options = parser.parse_args(arguments)
    profile, _, run = profiles.chosen(options)
    runs.processes()
    test = phrases(profiles.studies(profile, "test", options.data, boxes=True))
    for step, maps, _, skipped in ground_run(profile, run, test):
        if PartialState().is_main_process:
            print(f"{run.folder}: step {step}, {len(maps)} maps, {len(skipped)} phrases left out")
    return 0
