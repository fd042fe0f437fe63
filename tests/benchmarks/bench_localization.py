"""How long it takes to score 1,000 heatmaps against masks of 512 × 512 pixels, against the limit of 60 seconds.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_localization.py [--maps 100]

One core does it all; the limit is for two. Maps of 64² (the paper's) and of 512² with one or two boxes each come from a
generator, and nothing but the scores is kept. Seconds are the processor's, so that others on the machine disturb
little, and are told for 1,000 maps, whatever number was scored. "chance" are milliseconds: the same scores of
8 random maps for one mask. "memory" is the peak of the whole process in GB: it must not grow with the number of maps.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator

import numpy as np
import pandas as pd

from chestxai import localization, runs

#: Seconds for 1,000 maps.
LIMIT = 60.0


def cases(n: int, side: int, seed: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Noise with a warm spot somewhere, float32 ``(side, side)``, and one or two boxes, uint8 ``(512, 512)``."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / side
    for i in range(n):
        labels = np.zeros((512, 512), np.uint8)
        for k in range(1 + i % 2):
            top, left, height, width = rng.integers((0, 0, 60, 60), (300, 300, 200, 200))
            labels[top : top + height, left : left + width] = k + 1
        row, column = rng.random(2)
        spot = np.exp(-((y - row) ** 2 + (x - column) ** 2) / 0.03)
        yield (spot + 0.3 * rng.standard_normal((side, side))).astype(np.float32), labels


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--maps", type=int, default=100, help="to score of each size (default: %(default)s)")
    given = parser.parse_args()
    rows = []
    for side in (64, 512):
        for name in localization.PROTOCOLS:
            spent, chance = 0.0, 0.0
            for i, (heatmap, mask) in enumerate(
                runs.progress(cases(given.maps, side), f"{name} {side}²", total=given.maps)
            ):
                began = time.process_time()
                localization.score(heatmap, mask, name)
                spent += time.process_time() - began
                if 2 <= i < 7:  # the first two prepare the random maps
                    began = time.process_time()
                    localization.chance(mask, heatmap.shape, 8, protocol=name)
                    chance += time.process_time() - began
                elif i < 2:
                    localization.chance(mask, heatmap.shape, 8, protocol=name)
            scale = 1000 / given.maps
            rows.append(
                {
                    "protocol": name,
                    "map": side,
                    "scores": len(localization.PROTOCOLS[name].scores),
                    "s per 1,000": spent * scale,
                    "limit": LIMIT,
                    "chance": chance / 5 * 1000,
                    "memory": runs.peak_memory(),
                }
            )
    table = pd.DataFrame(rows).set_index(["protocol", "map"])
    print(table.to_string(float_format="{:.2f}".format))
    slow = table.index[table["s per 1,000"] > LIMIT].tolist()
    print(f"too slow: {slow}" if slow else "fast enough, each of them")
    return 1 if slow else 0


if __name__ == "__main__":
    raise SystemExit(main())
