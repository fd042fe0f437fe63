"""Time to score 1,000 heatmaps on masks of 512 × 512 pixels, against a limit of 60 seconds.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_localization.py [--maps 100] [--random 8]

Times `localization.score_table`: the scores, and those of random maps on the same mask ("chance_"). "chapter 3" is what
the book computes for each phrase: its eight scores, those of the location prior, and 32 random maps. Maps of 64² (the
paper's size) and of 512², on one or two boxes each, come from a generator. "cpu" and "wall" are seconds for 1,000 maps
on one core, extrapolated from the number scored (the random maps are made once: the fewer maps, the more they
weigh). "memory" is the peak of the process in GB, which must not grow with the number of maps.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator

import numpy as np
import pandas as pd

from chestxai import localization, runs
from chestxai.localization import references
from chestxai.localization.maps import CachedMask

#: Seconds for 1,000 maps.
LIMIT = 60.0


def box_masks(n: int, seed: int = 0) -> list[np.ndarray]:
    """One or two boxes, uint8 ``(512, 512)``."""
    rng, masks = np.random.default_rng(seed), []
    for i in range(n):
        labels = np.zeros((512, 512), np.uint8)
        for k in range(1 + i % 2):
            top, left, height, width = rng.integers((0, 0, 60, 60), (300, 300, 200, 200))
            labels[top : top + height, left : left + width] = k + 1
        masks.append(labels)
    return masks


def heatmaps(n: int, side: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Noise with a warm spot somewhere, float32 ``(side, side)``."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / side
    for _ in range(n):
        row, column = rng.random(2)
        spot = np.exp(-((y - row) ** 2 + (x - column) ** 2) / 0.03)
        yield (spot + 0.3 * rng.standard_normal((side, side))).astype(np.float32)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--maps", type=int, default=100, help="to score of each size (default: %(default)s)")
    parser.add_argument("--random", type=int, default=8, help="random maps of chance (default: %(default)s)")
    options = parser.parse_args()
    masks, rows = box_masks(options.maps), []
    prior = localization.location_prior(mask > 0 for mask in masks)
    cases = {name: (name, None, options.random) for name in localization.PROTOCOLS}
    cases = {"chapter 3": ("book", [prior] * options.maps, 32), **cases}
    for side in (64, 512):
        for name, (protocol, priors, random) in cases.items():
            references._noise.cache_clear()
            began = time.perf_counter(), time.process_time()
            maps = runs.progress(heatmaps(options.maps, side), f"{name} {side}²", total=options.maps)
            for heatmap, mask in zip(maps, map(CachedMask, masks), strict=True):
                for scored in (heatmap,) if priors is None else (heatmap, prior):
                    localization.score(scored, mask, protocol)
                localization.chance(mask, heatmap.shape, random, protocol)
            wall, cpu = time.perf_counter() - began[0], time.process_time() - began[1]
            rows.append(
                {
                    "protocol": name,
                    "map": side,
                    "scores": len(localization.PROTOCOLS[protocol].scores),
                    "random maps": random,
                    "cpu": cpu * 1000 / options.maps,
                    "wall": wall * 1000 / options.maps,
                    "limit": LIMIT,
                    "memory": runs.peak_memory(),
                }
            )
    table = pd.DataFrame(rows).set_index(["protocol", "map"])
    print(table.to_string(float_format="{:.2f}".format))
    slow = table.index[table["cpu"] > LIMIT].tolist()
    print(f"too slow: {slow}" if slow else "fast enough, each of them")
    return 1 if slow else 0


if __name__ == "__main__":
    raise SystemExit(main())
