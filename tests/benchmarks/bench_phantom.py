"""How fast chest phantoms are made, on one core, against the limit of 100 a second at 64 pixels.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_phantom.py [--seconds 2]

A study is the image, the exact masks, the boxes and the report. Times are processor times, which other load on the
machine hardly disturbs; the table shows the best of three rounds. "ratio" is the speed over the limit, which is
inversely proportional to the number of pixels: 1 or more is fast enough. "render" is the share of images and masks.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import pandas as pd

from chestxai.sources import phantom

#: Studies per second at 64 × 64 pixels.
LIMIT = 100.0


def best(make: Callable[[], object], rounds: int = 3) -> float:
    """Processor seconds of the fastest of a few rounds."""
    seconds = []
    for _ in range(rounds):
        began = time.process_time()
        make()
        seconds.append(time.process_time() - began)
    return min(seconds)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--seconds", type=float, default=2.0, help="approximate length of a round (default: %(default)s)"
    )
    arguments = parser.parse_args()
    phantom.load(n=8)  # the first call pays for imports and caches
    rows = []
    for size in (64, 128, 256):
        limit = LIMIT * (64 / size) ** 2
        n = max(8, int(arguments.seconds * limit))
        patients = [phantom.patient(0, "test", k, 0) for k in range(n)]
        chunk = max(1, 64 * 64 * 64 // size**2)
        whole = best(lambda n=n, size=size: phantom.load(n=n, size=size))
        image = best(
            lambda patients=patients, size=size, chunk=chunk: [
                phantom.render(patients[i : i + chunk], size) for i in range(0, len(patients), chunk)
            ]
        )
        rows.append(
            {
                "size": size,
                "studies": n,
                "studies/s": n / whole,
                "limit": limit,
                "ratio": n / whole / limit,
                "render": image / whole,
            }
        )
    table = pd.DataFrame(rows).set_index("size")
    print(table.to_string(float_format="{:.2f}".format))
    slow = table.index[table["ratio"] < 1].tolist()
    print(f"too slow at {slow} pixels" if slow else "fast enough at every size")
    return 1 if slow else 0


if __name__ == "__main__":
    raise SystemExit(main())
