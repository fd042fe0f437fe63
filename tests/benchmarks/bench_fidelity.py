"""Fidelity on 5,000 images in bounded memory, and whether its numbers are those of torch-fidelity and clean-fid.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_fidelity.py [--images 5000]

Phantoms of 64 pixels go one by one through the shipped classifier; "peak" is the process's largest memory so far, so
what 5,000 images add to that of 500 is what their number costs: the features, 512 bytes each. The second pass reads the
cache. The parity part needs the two packages (``pip install --no-deps torch-fidelity clean-fid``) and no weights, for
it compares what is made of features; a package that is not there is said so.
"""

from __future__ import annotations

import argparse
import importlib
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from chestxai import fidelity, runs, sources


def pictures(n: int) -> Iterator[np.ndarray]:
    for study in sources.load("phantom", split="test", n=n, size=64):
        yield study.pixels()


def features_of_many(images: int) -> None:
    space = fidelity.feature_space("phantom")
    with tempfile.TemporaryDirectory() as folder:
        for n in (min(500, images), images, images):
            began = time.perf_counter()
            found = fidelity.extract(
                space,
                pictures(n),
                cache=Path(folder),
                identity=f"phantom-{n}",
                progress=lambda items, n=n: runs.progress(items, f"{n} images", total=n),
            )
            took = time.perf_counter() - began
            print(f"{len(found.names)} images: {took:.1f} s, peak {1000 * runs.peak_memory():.0f} MB")


def parity() -> None:
    rng = np.random.default_rng(0)
    real, fake = rng.standard_normal((400, 32)), 1.2 * rng.standard_normal((300, 32)) + 0.2
    ours = fidelity.fid(real, fake)
    precision, recall = (i.estimate for i in fidelity.precision_recall(real, fake, n=2))

    def moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return x.mean(axis=0), np.cov(x.T)

    try:
        frechet = importlib.import_module("cleanfid.fid").frechet_distance
        print(f"FID − clean-fid: {ours - frechet(*moments(real), *moments(fake)):.1e}")
    except ImportError as error:
        print(f"clean-fid: not compared ({error})")
    try:
        other = importlib.import_module("torch_fidelity.metric_fid")
        prc = importlib.import_module("torch_fidelity.metric_prc")
        statistics = [dict(zip(("mu", "sigma"), moments(x), strict=True)) for x in (fake, real)]
        theirs = other.fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
        print(f"FID − torch-fidelity: {ours - theirs:.1e}")
        both = prc.prc_features_to_metric(
            *(torch.from_numpy(x) for x in (fake, real)), prc_neighborhood=3, prc_batch_size=100, verbose=False
        )
        print(f"precision, recall − torch-fidelity: {precision - both['precision']:.1e}, {recall - both['recall']:.1e}")
    except ImportError as error:
        print(f"torch-fidelity: not compared ({error})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    given = parser.parse_args()
    parity()
    features_of_many(given.images)


if __name__ == "__main__":
    main()
