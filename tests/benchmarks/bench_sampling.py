"""What generating costs if a prompt's keys and values are computed once, over computing them in each of the steps.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_sampling.py [--images 64] [--steps 10]

With the tiny base, guided. Times are processor seconds, the best of three rounds taken in turn. "ratio" is the second
time over the first; both give the same images.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from unittest import mock

import torch

from chestxai import models


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--steps", type=int, default=10)
    arguments = parser.parse_args()
    pipeline = models.load_pipeline("tiny", device="cpu")
    noise = torch.stack([models.seeded_noise((4, 16, 16), 0, i) for i in range(arguments.images)])
    text = models.encode_text(pipeline, ["Small left pleural effusion."]).expand(arguments.images, -1, -1)
    empty = models.encode_text(pipeline, [""])

    def drawn(once: bool) -> tuple[float, torch.Tensor]:
        instead = models.text_read_once if once else contextlib.nullcontext
        began = time.process_time()
        with torch.inference_mode(), mock.patch("chestxai.models.schedules.text_read_once", instead):
            latents = models.draw(pipeline, noise, text, empty, steps=arguments.steps, guidance=2.0)
        return time.process_time() - began, latents

    rounds = [(drawn(False), drawn(True)) for _ in range(3)]
    each, once = (min(pair[i][0] for pair in rounds) for i in (0, 1))
    torch.testing.assert_close(rounds[0][0][1], rounds[0][1][1])
    print(f"each step {each:.2f} s, once {once:.2f} s, ratio {once / each:.2f}")
    return int(once > each)


if __name__ == "__main__":
    raise SystemExit(main())
