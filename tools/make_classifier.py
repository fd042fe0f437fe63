"""Train a findings classifier: by default the one that ships in ``data/classifier``, else one for another data source.

    python tools/make_classifier.py
    python tools/make_classifier.py --source openi --root FOLDER --out FOLDER

The book trains the classifier of another source by itself, in ``runs/<profile>/classifier``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from chestxai import fidelity, runs, sources
from chestxai.fidelity.classifier import SHIPPED
from chestxai.stats import Interval
from chestxai.studies import to_images


def main(arguments: Sequence[str] | None = None) -> None:
    """Load both splits, train, and print the AUC on the validation images."""
    parser = argparse.ArgumentParser(prog="python tools/make_classifier.py", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--source", default="phantom", help="data source (default: phantom)")
    parser.add_argument("--root", help="folder of the data source, where it needs one")
    parser.add_argument("--out", type=Path, help="folder to write (default: data/classifier, for phantoms only)")
    parser.add_argument("--images", type=int, default=6000, help="training images (default: 6000)")
    parser.add_argument("--val", type=int, default=1000, help="validation images (default: 1000)")
    parser.add_argument("--size", type=int, default=64, help="pixels (default: 64)")
    parser.add_argument("--epochs", type=int, default=12, help="passes over the images (default: 12)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and augmentation (default: 0)")
    options = parser.parse_args(arguments)
    if options.out is None and options.source != "phantom":
        parser.error("--out is needed: the classifier that ships is one of phantoms")
    out = options.out or SHIPPED
    splits = {}
    for split, n in (("train", options.images), ("val", options.val)):
        phantom = {"n": n, "size": options.size} if options.source == "phantom" else {}
        studies = sources.load(options.source, root=options.root, split=split, **phantom)[:n]
        if not studies:
            raise runs.InputError(f"source {options.source!r} has no studies in split {split!r}")
        images, kept, skipped = to_images(studies, options.size)
        for line in skipped:
            print(f"left out: {line}")
        splits[split] = images, np.stack([study.labels() for study in kept])
    training = fidelity.Training(options.source, epochs=options.epochs, seed=options.seed)
    fidelity.train_classifier(*splits["train"], out, training, val=splits["val"])
    for name, auc in runs.read_json(out / "classifier.json")["val_auc"].items():
        print(f"{name:18s}", "one class only" if auc["estimate"] is None else Interval(**auc))
    print(f"wrote {out}")


if __name__ == "__main__":
    runs.command(main)
