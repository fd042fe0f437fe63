"""What it costs to take the features of many images, one after the other: time and memory.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_fidelity.py [--images 500 5000] [--size 64]

Phantoms are drawn as they are asked for and go through the classifier that ships; each number of images has a process
of its own. Memory is the rise of the process's peak over what it held after a first batch (on Linux), so it should not
depend on the number of images but for their features (512 bytes each) and names. Then one half's features are scored
against the other's, for which not all distances may be held at once.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import time
from collections.abc import Iterator

import numpy as np
import pandas as pd

from chestxai import fidelity, sources


def peak() -> float:
    """MiB, the most that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(images: int, size: int) -> dict[str, float]:
    space = fidelity.feature_space()
    studies = sources.load("phantom", split="train", n=images, size=size)

    def stream(n: int) -> Iterator[np.ndarray]:
        for i in range(n):
            yield studies[i].pixels()

    fidelity.extract(space, stream(64))
    rest, start = peak(), time.perf_counter()
    found = fidelity.extract(space, stream(images))
    row = {"images": images, "seconds": time.perf_counter() - start, "MiB": peak() - rest}
    assert found.values.shape == (images, space.num_features)
    rest, start = peak(), time.perf_counter()
    half = images // 2
    fidelity.scores(found.values[:half], found.values[half:], resamples=0)
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
