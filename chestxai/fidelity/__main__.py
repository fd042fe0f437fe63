"""``python -m chestxai.fidelity``: score images in folders or of runs, or ``draw`` the images of a run."""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from accelerate import PartialState
from torch import nn

from chestxai import models, profiles, runs
from chestxai.fidelity.arrays import Array, Groups, TooFewError, group_rows
from chestxai.fidelity.classifier import load_classifier, profile_classifier
from chestxai.fidelity.evaluation import scores
from chestxai.fidelity.memory import memorisation
from chestxai.fidelity.metrics import fid_infinity, kid, ms_ssim_by_group, random_pairs
from chestxai.fidelity.sampling import requests, sample_run
from chestxai.fidelity.spaces import describe, extract, feature_space, features
from chestxai.profiles import Profile
from chestxai.runs import InputError, MissingError, Run
from chestxai.stats import bootstrap_ci
from chestxai.studies import Frame, read_image, to_images


def main(arguments: Sequence[str] | None = None) -> int:
    """Score images in folders or of runs, or draw the images of a run."""
    parser = argparse.ArgumentParser(
        prog="python -m chestxai.fidelity",
        description="Scores of generated images against real ones: folders (PNG or JPEG, at any depth), or runs of the "
        "book. Images that share a sub-folder (a patient's; a prompt's) are one group and are resampled together.",
    )
    spaces = "phantom, inception, inception-cd, xrv, the folder of a trained classifier, or, of a run, findings"
    parser.add_argument("--real", type=Path, help="folder of real images not trained on (default: the test split)")
    parser.add_argument("--generated", type=Path, help="folder of generated images, or of a run")
    parser.add_argument("--training", type=Path, help="folder of training images: are any of them copied?")
    parser.add_argument("--step", type=runs.whole(0, 10**9), help="checkpoint of a run (default: the last)")
    parser.add_argument("--features", help=f"{spaces} (default: phantom; of a run, findings)")
    parser.add_argument("--weights", type=Path, help="folder of the weights of inception or xrv, or their file")
    parser.add_argument("--size", type=runs.whole(1, 4096), help="pixels of all images (default: the feature space's)")
    parser.add_argument("--fit", choices=("crop", "letterbox"), default="crop", help="of images that are not square")
    parser.add_argument("--cache", type=Path, help="folder to keep the features in")
    parser.add_argument("--out", type=Path, help="root of the runs, where a classifier is kept (default: runs/)")
    parser.add_argument("--resamples", type=runs.whole(0), default=100, help="of the FID's interval (100); 0: none")
    parser.add_argument("--seed", type=runs.whole(0, 2**32 - 1), default=0)
    parser.set_defaults(run=_score)
    commands = parser.add_subparsers(dest="command", title="commands")
    draw = commands.add_parser("draw", help="draw the images of a fine-tuned run that the chapter on fidelity scores")
    profiles.add_options(draw)
    draw.set_defaults(run=_draw)
    options = parser.parse_args(arguments)
    if options.run is _score and (options.generated is None or not (options.real or _is_run(options.generated))):
        parser.error("--real and --generated are both needed, or the folder of a run as --generated")
    options.run(options)
    return 0


class _Set(NamedTuple):
    """Images to compare: their features, their groups, the pixels of each by its number, and a line about them."""

    values: Array
    groups: list[str] | None
    pixels: Callable[[int], Array]
    about: str


def _is_run(path: Path | None) -> bool:
    return path is not None and Run(path).record_file.is_file()


def _score(options: argparse.Namespace) -> None:
    profile = _profile(options.generated) if _is_run(options.generated) else None
    space = _space(options, profile).to(runs.device())
    size, seed = options.size or space.size, options.seed
    sets = {}
    for kind in ("real", "generated", "training"):
        place = getattr(options, kind)
        if _is_run(place):
            sets[kind] = _of_run(space, place, size, options, None)
        elif place is not None:
            sets[kind] = _of_folder(space, place, size, options)
        elif kind == "real":
            sets[kind] = _of_run(space, options.generated, size, options, profile)
    real, fake = sets["real"].values, sets["generated"].values
    patients, prompts = sets["real"].groups, sets["generated"].groups
    numbers = scores(real, fake, groups=prompts, real_groups=patients, resamples=options.resamples, seed=seed)
    table = {"FID ↓": str(numbers.pop("fid"))}
    for name, score in {
        "FID∞ ↓": lambda: f"{fid_infinity(real, fake, seed=seed).estimate:.3f}",
        "KID ↓ (± over subsets)": lambda: "{:.4f} ± {:.4f}".format(*kid(real, fake, seed=seed)),
    }.items():
        try:
            table[name] = score()
        except TooFewError as error:
            print(f"{name} left out: {error}")
    table |= {f"{name} ↑": str(interval) for name, interval in numbers.items()}
    compared = {"two real": ("real", None), "two generated": ("generated", None)}
    if prompts is not None:
        compared["two generated, one group"] = "generated", prompts
    for name, (kind, groups) in compared.items():
        pairs = _pairs(groups, len(sets[kind].values), np.random.default_rng(seed))
        if pairs.size:
            # No more images are held than are compared.
            pixels = (sets[kind].pixels(i) for i in pairs.ravel())
            images = np.stack([Frame(*p.shape, size, options.fit).image(p) for p in pixels])
            alike = ms_ssim_by_group(images, np.repeat(np.arange(len(pairs)), 2).tolist())
            table[f"MS-SSIM of {name}"] = str(bootstrap_ci(list(alike.values()), seed=seed))
    if "training" in sets:
        memory = memorisation(sets["training"].values, fake, real, groups=prompts, unseen_groups=patients)
        table["closer to a training image than 95 % of the real"] = f"{memory.closer:.1%} (chance: 5 %)"
    print(f"feature space: {describe(space)}")
    for kind, images in sets.items():
        print(f"{kind}: {len(images.values)} images of {images.about}")
    print(pd.Series(table).to_string())


def _profile(run: Path) -> Profile:
    try:
        return Profile.model_validate(Run(run).record()["profile"])
    except (KeyError, ValueError) as error:
        what = f"{Run(run).record_file}: holds no profile of this version; give --real and --features"
        raise InputError(what) from error


def _space(options: argparse.Namespace, profile: Profile | None) -> nn.Module:
    name = options.features or ("phantom" if profile is None else "findings")
    if Path(name).is_dir():
        return load_classifier(Path(name))
    if name == "findings" and profile is not None:
        return profile_classifier(profile, Run(options.generated).record().get("data_root", ""), options.out)
    return feature_space(name, options.weights)


def _of_folder(space: nn.Module, folder: Path, size: int, options: argparse.Namespace) -> _Set:
    bar = lambda items: runs.progress(items, f"features · {folder.name}")  # noqa: E731
    found = extract(space, folder, size, fit=options.fit, cache=options.cache, progress=bar)
    for line in found.skipped:
        print(f"left out: {line}")
    # The sub-folder of each image, or the image itself outside of any; None where that would be one group.
    groups = [name.rpartition("/")[0] or name for name in found.names]
    groups, about = groups if len(set(groups)) > 1 else None, f"{folder} at {size} px, {len(found.skipped)} left out"
    return _Set(found.values, groups, lambda i: read_image(folder / found.names[i]), about)


def _of_run(space: nn.Module, folder: Path, size: int, options: argparse.Namespace, profile: Profile | None) -> _Set:
    """The images that a run has drawn; with its ``profile``, the held-out real images instead."""
    run = Run(folder)
    if profile is not None:
        studies = profiles.studies(profile, "test", run.record().get("data_root", ""))
        images, kept, skipped = to_images(studies, size, profile.data.fit)
        groups = [study.patient for study in kept]
        about = f"the test split of {profile.data.source} at {size} px, {len(skipped)} left out"
    else:
        step = max(run.steps(), default=0) if options.step is None else options.step
        path, about = run.samples_file(step), f"{folder}, step {step}, at {size} px"
        if not path.is_file():
            advice = f"run chapter 6, or 'python -m chestxai.fidelity draw'; {run.remedy()}"
            raise MissingError(f"{path} is missing: {advice}")
        images, groups = runs.load_tensors(path)["images"].numpy(), json.loads(runs.tensor_metadata(path)["prompts"])
        images = np.stack([Frame(*image.shape, size, options.fit).image(image) for image in images])
    return _Set(features(space, images), groups, images.__getitem__, about)


def _pairs(groups: Groups, n: int, rng: np.random.Generator) -> Array:
    """Pairs of ``n`` images, int ``(p, 2)``: of any two of all, or one pair of each group; 100 at random."""
    if groups is None:
        return random_pairs(n, 100, rng)
    members = [rows for rows in group_rows(groups, n) if len(rows) > 1]
    return np.array([rng.choice(members[i], 2, replace=False) for i in rng.permutation(len(members))[:100]])


def _draw(options: argparse.Namespace) -> None:
    profile, _, run = profiles.chosen(options)
    run.check_finished()
    is_main = runs.processes().is_main_process
    pipeline = models.load_base(profile, device=PartialState().device)
    studies = profiles.studies(profile, "test", options.data)
    _, kept, _ = to_images(studies, models.image_size(pipeline), profile.data.fit)
    prompts, *_ = requests(kept, profile.sampling, pipeline)
    total = len(prompts) * (1 + len(run.steps()))
    with runs.progress(total=total, description="draw", disable=not is_main) as bar:
        for step, images in sample_run(pipeline, profile, run, prompts, bar):
            if is_main:
                bar.write(f"{run.folder}: step {step}, {len(images)} images")


if __name__ == "__main__":
    runs.command(main)
