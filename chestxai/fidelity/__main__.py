"""``python -m chestxai.fidelity``: score two folders, or ``draw`` the images of a run."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from accelerate import PartialState

from chestxai import models, profiles, runs
from chestxai.fidelity.arrays import Array, Groups, group_rows
from chestxai.fidelity.classifier import load_classifier
from chestxai.fidelity.evaluation import scores
from chestxai.fidelity.memory import memorisation
from chestxai.fidelity.metrics import fid_infinity, kid, ms_ssim_by_group, random_pairs
from chestxai.fidelity.sampling import requests, sample_run
from chestxai.fidelity.spaces import describe, extract, feature_space
from chestxai.stats import bootstrap_ci
from chestxai.studies import Frame, read_image, to_images


def main(arguments: Sequence[str] | None = None) -> int:
    """Score two folders, or draw the images of a run.

    Args:
        arguments: of the command line; default: ``sys.argv``.
    """
    parser = argparse.ArgumentParser(
        prog="python -m chestxai.fidelity",
        description="Scores of a folder of generated images against one of real ones (PNG or JPEG, at any depth). "
        "Images that share a sub-folder are one group (a patient's; a prompt's) and are resampled together.",
    )
    own = "phantom (default), inception, xrv, or the folder of a trained classifier"
    parser.add_argument("--real", type=Path, help="folder of real images, not trained on")
    parser.add_argument("--generated", type=Path, help="folder of generated images")
    parser.add_argument("--training", type=Path, help="folder of training images: are any of them copied?")
    parser.add_argument("--features", default="phantom", help=own)
    parser.add_argument("--weights", type=Path, help="folder of the weights of inception or xrv")
    parser.add_argument("--size", type=int, help="pixels to bring all images to (default: the feature space's)")
    parser.add_argument("--fit", choices=("crop", "letterbox"), default="crop", help="of images that are not square")
    parser.add_argument("--cache", type=Path, help="folder to keep the features in")
    parser.add_argument("--resamples", type=int, default=100, help="of the FID's interval; 0: none (default: 100)")
    parser.add_argument("--seed", type=int, default=0)
    parser.set_defaults(run=_score)
    commands = parser.add_subparsers(dest="command", title="commands")
    draw = commands.add_parser("draw", help="draw the images of a fine-tuned run that the chapter on fidelity scores")
    profiles.add_options(draw)
    draw.set_defaults(run=_draw)
    options = parser.parse_args(arguments)
    if options.run is _score and None in (options.real, options.generated):
        parser.error("--real and --generated are both needed")
    options.run(options)
    return 0


def _score(options: argparse.Namespace) -> None:
    own = Path(options.features)
    space = load_classifier(own) if own.is_dir() else feature_space(options.features, options.weights)
    space = space.to(runs.device())
    size, seed = options.size or space.size, options.seed
    folders = {"real": options.real, "generated": options.generated, "training": options.training}
    sets = {}
    for kind, folder in folders.items():
        if folder is not None:
            bar = lambda items, kind=kind: runs.progress(items, f"features · {kind}")  # noqa: E731
            sets[kind] = extract(space, folder, size, fit=options.fit, cache=options.cache, progress=bar)
            for line in sets[kind].skipped:
                print(f"left out: {line}")
    real, fake = sets["real"].values, sets["generated"].values
    patients, prompts = (_subfolders(sets[kind].names) for kind in ("real", "generated"))
    numbers = scores(real, fake, groups=prompts, real_groups=patients, resamples=options.resamples, seed=seed)
    table = {
        "FID ↓": str(numbers.pop("fid")),
        "FID∞ ↓": f"{fid_infinity(real, fake, seed=seed).estimate:.3f}",
        "KID ↓ (± over subsets)": "{:.4f} ± {:.4f}".format(*kid(real, fake, seed=seed)),
    }
    table |= {f"{name} ↑": str(interval) for name, interval in numbers.items()}
    compared = {"two real": ("real", None), "two generated": ("generated", None)}
    if prompts is not None:
        compared["two generated, one sub-folder"] = "generated", prompts
    for name, (kind, groups) in compared.items():
        files = [folders[kind] / file for file in sets[kind].names]
        pairs = _pairs(groups, len(files), np.random.default_rng(seed))
        if pairs.size:
            # No more images are held than are compared.
            pixels = (read_image(files[i]) for i in pairs.ravel())
            images = np.stack([Frame(*p.shape, size, options.fit).image(p) for p in pixels])
            alike = ms_ssim_by_group(images, np.repeat(np.arange(len(pairs)), 2).tolist())
            table[f"MS-SSIM of {name}"] = str(bootstrap_ci(list(alike.values()), seed=seed))
    if "training" in sets:
        memory = memorisation(sets["training"].values, fake, real, groups=prompts, unseen_groups=patients)
        table["closer to a training image than 95 % of the real"] = f"{memory.closer:.1%} (chance: 5 %)"
    print(f"feature space: {describe(space)}")
    for kind, images in sets.items():
        print(f"{kind}: {len(images.names)} images of {folders[kind]} at {size} px, {len(images.skipped)} left out")
    print(pd.Series(table).to_string())


def _subfolders(names: Sequence[str]) -> list[str] | None:
    """The sub-folder of each image, or the image itself outside of any; None where that would be one group."""
    groups = [name.rpartition("/")[0] or name for name in names]
    return groups if len(set(groups)) > 1 else None


def _pairs(groups: Groups, n: int, rng: np.random.Generator, most: int = 100) -> Array:
    """Pairs of ``n`` images, int ``(p, 2)``: of any two of all, or one pair of each group; ``most`` at random."""
    if groups is None:
        return random_pairs(n, most, rng)
    members = [rows for rows in group_rows(groups, n) if len(rows) > 1]
    return np.array([rng.choice(members[i], 2, replace=False) for i in rng.permutation(len(members))[:most]])


def _draw(options: argparse.Namespace) -> None:
    profile = profiles.load(options.profile)
    variant = options.variant or next(iter(profile.variants))
    run = profiles.run(profile, variant, options.seed, options.out).check_finished()
    is_main = runs.processes().is_main_process
    pipeline = models.load_pipeline(profile.base, device=PartialState().device)
    studies = profiles.studies(profile, "test", options.data)
    _, kept, _ = to_images(studies, models.image_size(pipeline), profile.data.fit)
    prompts, *_ = requests(kept, profile.sampling)
    total = len(prompts) * (1 + len(run.steps()))
    with runs.progress(total=total, description="draw", disable=not is_main) as bar:
        for step, images in sample_run(pipeline, profile, run, prompts, bar):
            if is_main:
                bar.write(f"{run.folder}: step {step}, {len(images)} images")


if __name__ == "__main__":
    runs.command(main)
