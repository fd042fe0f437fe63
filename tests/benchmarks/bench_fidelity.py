"""Time and memory of extracting the features of a folder of images, and of scoring them.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_fidelity.py [--images 500 5000] [--size 64]

Phantoms are written to a folder and pass through the classifier that ships; each number of images runs in its own
process. Memory is the rise of the peak over what the process held after a first batch (on Linux); it should grow by the
features (512 bytes an image) and names only. Then one half of the features is scored against the other, for which not
all distances may be in memory at once.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path

import pandas as pd
from PIL import Image

from chestxai import fidelity, sources


def peak() -> float:
    """Peak resident memory of this process in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(images: int, size: int) -> dict[str, float]:
    """Seconds and MiB of extraction and scores for one number of images."""
    space = fidelity.feature_space()
    studies = sources.load("phantom", split="train", n=images, size=size)

    with tempfile.TemporaryDirectory() as folder:
        for i, study in enumerate(studies):
            Image.fromarray(study.pixels()).save(Path(folder, f"{i}.png"))
            if i == 63:
                fidelity.extract(space, Path(folder), size)
        rest, start = peak(), time.perf_counter()
        extracted = fidelity.extract(space, Path(folder), size)
        row = {"images": images, "seconds": time.perf_counter() - start, "MiB": peak() - rest}
    assert extracted.values.shape == (images, space.num_features)
    rest, start = peak(), time.perf_counter()
    half = images // 2
    fidelity.scores(extracted.values[:half], extracted.values[half:], resamples=0)
    return row | {"seconds of scores": time.perf_counter() - start, "MiB of scores": peak() - rest}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[500, 5000])
    parser.add_argument("--size", type=int, default=64)
    args = parser.parse_args()
    rows = []
    for images in args.images:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            rows.append(pool.apply(measure, (images, args.size)))
    print(pd.DataFrame(rows).round(1).to_string(index=False))


if __name__ == "__main__":
    main()
