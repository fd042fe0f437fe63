"""``python -m chestxai.finetune``: one run of a profile."""

from collections.abc import Sequence

from accelerate import PartialState

from chestxai import models, profiles, runs
from chestxai.finetune import plan
from chestxai.finetune.loop import finetune


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m chestxai.finetune``: one run of a profile."""
    parser = profiles.run_parser("finetune", "Fine-tune one variant of a profile. An unfinished run is resumed.")
    parser.add_argument("--plan", action="store_true", help="say what it takes, without weights or data, and stop")
    parser.add_argument("--gpu", type=float, metavar="GB", help="with --plan: memory of a GPU (default: that of yours)")
    parser.add_argument(
        "--gpus", type=runs.whole(1), default=1, help="with --plan: how many share a batch (default: 1)"
    )
    options = parser.parse_args(arguments)
    if options.gpu is not None and not 0 < options.gpu < 10_000:
        raise runs.InputError(f"--gpu takes the GB of a GPU's memory, as in 24: got {options.gpu}")
    profile, variant, run = profiles.chosen(options)
    if options.plan:
        text, fits = plan.report(profile, variant, options.gpu, options.gpus)
        print(text)
        return 1 if fits is False else 0
    folder = finetune(
        models.load_base(profile, device="cpu"),  # each process has its own GPU, known later
        profiles.studies(profile, "train", options.data),
        profile.finetune,
        run.folder,
        recipe=profile.recipe(variant),
        seed=options.seed,
        fit=profile.data.fit,
        cache=profiles.profile_folder(profile, options.out) / "cache",
        **profiles.about(profile, variant, options.data),
    )
    if PartialState().is_main_process:
        print(f"{folder}: finished")
    return 0
